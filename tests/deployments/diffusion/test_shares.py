"""Shares of GPUs: what holds for all claims, and a few by hand."""

from dataclasses import replace
from math import ceil

from hypothesis import given
from hypothesis import strategies as st

from deployments.diffusion.shares import Claim, granted, shares


@st.composite
def claim(draw: st.DrawFn) -> Claim:
    wanted, floor = draw(st.floats(0, 12)), draw(st.integers(0, 3))
    return Claim(
        wanted=wanted,
        alone=max(floor, draw(st.integers(0, ceil(wanted)))),
        held=draw(st.integers(0, 6)),
        floor=floor,
        priority=draw(st.floats(0.1, 10)),
    )


def by_hand(wanted: float, held: int, floor: int = 0, priority: float = 1.0) -> Claim:
    return Claim(wanted, max(floor, ceil(wanted)), held, floor, priority)


CLAIMS = st.dictionaries(st.sampled_from("abcde"), claim(), min_size=1)
GPUS = st.integers(1, 12)


@given(GPUS, CLAIMS)
def test_never_more_than_there_are_and_everyone_has_its_floor(
    gpus: int, claims: dict[str, Claim]
) -> None:
    given_ = shares(gpus, claims)
    assert sum(given_.values()) <= max(gpus, sum(one.floor for one in claims.values()))
    for name, one in claims.items():
        assert one.floor <= given_[name] <= one.alone


@given(GPUS, CLAIMS)
def test_no_gpu_is_idle_that_somebody_wants(gpus: int, claims: dict[str, Claim]) -> None:
    given_ = shares(gpus, claims)
    if sum(given_.values()) < gpus:
        assert given_ == {name: one.alone for name, one in claims.items()}


@given(GPUS, CLAIMS, st.floats(1, 5))
def test_more_work_or_priority_never_gets_less(
    gpus: int, claims: dict[str, Claim], times: float
) -> None:
    name = min(claims)
    before = shares(gpus, claims)[name]
    more = replace(claims[name], wanted=claims[name].wanted * times)
    assert shares(gpus, claims | {name: more})[name] >= before
    dearer = replace(claims[name], priority=claims[name].priority * times)
    assert shares(gpus, claims | {name: dearer})[name] >= before


@given(GPUS, CLAIMS)
def test_constant_work_comes_to_rest(gpus: int, claims: dict[str, Claim]) -> None:
    """Each is asked in turn; what is given is held then, and never more than there is."""
    claims = {name: replace(one, held=one.floor) for name, one in claims.items()}
    gpus = max(gpus, sum(one.floor for one in claims.values()))
    seen = []
    for _ in range(40):
        for name in claims:
            claims[name] = replace(claims[name], held=granted(gpus, name, claims))
            assert sum(one.held for one in claims.values()) <= gpus
        seen.append({name: one.held for name, one in claims.items()})
    assert seen[-1] == seen[-20]
    assert seen[-1] == shares(gpus, claims)


def test_by_hand() -> None:
    both = {"a": by_hand(6.0, 0, 0, priority=2.0), "b": by_hand(6.0, 0)}
    assert shares(6, both) == {"a": 4, "b": 2}  # two to one
    assert shares(12, both) == {"a": 6, "b": 6}  # enough for all
    floored = both | {"b": by_hand(0.0, 0, 2)}
    assert shares(6, floored) == {"a": 4, "b": 2}
    idle = both | {"b": by_hand(0.0, 3)}
    assert shares(6, idle) == {"a": 6, "b": 0}


def test_a_small_difference_moves_no_gpu() -> None:
    claims = {"a": by_hand(4.2, 2), "b": by_hand(4.0, 2)}
    assert shares(4, claims) == {"a": 2, "b": 2}
    assert shares(3, claims | {"a": by_hand(4.2, 1)}) == {"a": 1, "b": 2}
    clear = claims | {"a": by_hand(9.0, 2)}
    assert shares(4, clear) == {"a": 3, "b": 1}


def test_one_waits_until_the_other_has_let_go() -> None:
    claims = {"a": by_hand(9.0, 0), "b": by_hand(0.0, 4)}
    assert granted(4, "a", claims) == 0
    assert granted(4, "b", claims) == 0
    assert granted(4, "a", claims | {"b": by_hand(0.0, 1)}) == 3
