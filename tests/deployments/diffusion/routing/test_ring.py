"""Homes of keys: the same for everybody, even, and moved by as little as may be."""

from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from deployments.diffusion.routing.ring import Ring

MEMBERS = st.sets(st.text(min_size=1, max_size=8), min_size=1, max_size=12)
KEYS = [str(number) for number in range(300)]


def ring(*members: str) -> Ring:
    made = Ring()
    made.update(members)
    return made


def first(of: Ring) -> dict[str, str]:
    return {key: next(of.homes(key)) for key in KEYS}


@given(MEMBERS)
def test_every_member_is_met_once(members: set[str]) -> None:
    of = ring(*members)
    for key in KEYS[:20]:
        met = list(of.homes(key))
        assert len(met) == len(members)
        assert set(met) == members


@given(MEMBERS, st.lists(MEMBERS, max_size=4))
def test_homes_do_not_depend_on_what_was_before(members: set[str], before: list[set[str]]) -> None:
    of = Ring()
    for some in before:
        of.update(some)
    of.update(members)
    for key in KEYS[:20]:
        assert list(of.homes(key)) == list(ring(*sorted(members, reverse=True)).homes(key))


@given(MEMBERS, st.text(min_size=1, max_size=8))
def test_only_what_a_member_has_moves(members: set[str], one: str) -> None:
    without, having = ring(*(members - {one})), ring(*members, one)
    if members == {one}:
        return
    was, now = first(without), first(having)
    assert {now[key] for key in KEYS if was[key] != now[key]} <= {one}
    # Whoever loses its home goes to the next one on its way, which the key had second.
    for key in KEYS:
        others = [home for home in having.homes(key) if home != one]
        assert was[key] == others[0]


def test_shares_are_about_even() -> None:
    members = [f"replica-{number}" for number in range(8)]
    of = ring(*members)
    keys = [str(number) for number in range(8000)]
    counts = Counter(next(of.homes(key)) for key in keys)
    assert set(counts) == set(members)
    assert all(0.6 * 1000 < count < 1.5 * 1000 for count in counts.values())


def test_nobody_is_at_home_nowhere() -> None:
    assert list(Ring().homes("a")) == []
    assert list(islice(ring("a").homes("b"), 4)) == ["a"]
