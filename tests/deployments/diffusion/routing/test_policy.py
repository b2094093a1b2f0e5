"""Where jobs go: near their adapters, never far behind, and elsewhere when that is gone."""

import pickle
from collections import Counter
from itertools import count
from random import Random
from statistics import quantiles

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.diffusion.engine.policy.report import Report
from deployments.diffusion.routing.policy import SAMPLE, UNSENT_S, Policy, Worth
from tests.deployments.diffusion.routing.fleet import STEP_PIXEL_S, Fleet, asked

ADAPTERS = st.lists(st.integers(0, 20), max_size=3, unique=True)
# A job of so many seconds with these adapters; a pause of so many seconds and whether replicas
# report after it; a replica more, or one less; an adapter that loads on half of them no more.
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.floats(0, 3), ADAPTERS),
        st.tuples(st.floats(0, 3), st.booleans()),
        st.sampled_from(["add", "add silent", "remove"]),
        st.integers(0, 20),
    ),
    max_size=60,
)


def play(fleet: Fleet, event: object) -> None:
    """One event of `EVENTS`."""
    match event:
        case float(seconds), list(adapters):
            fleet.send(asked(*adapters, seconds=seconds))
        case float(seconds), bool(reports):
            fleet.wait(seconds)
            if reports:
                fleet.report()
        case "add" | "add silent":
            fleet.add(reports=event == "add")
        case int(adapter):
            for name in sorted(fleet.replicas)[::2]:
                fleet.replicas[name].broken.add(adapter)
        case "remove" if len(fleet.replicas) > 1:
            fleet.remove(fleet.random.choice(sorted(fleet.replicas)))


@given(EVENTS, st.integers(1, SAMPLE), ADAPTERS)
def test_no_replica_is_put_far_behind_the_others(
    events: list[object], replicas: int, adapters: list[int]
) -> None:
    """Up to `SAMPLE` of them. Whatever happened before."""
    fleet, worth = Fleet(replicas), Worth()
    for event in events:
        play(fleet, event)
        if len(fleet.replicas) > SAMPLE:
            return
    before = {name: fleet.policy.pending_s(name, fleet.now) for name in fleet.replicas}
    chosen = fleet.policy.choose(asked(*adapters), fleet.now)[0]
    assert before[chosen] <= min(before.values()) + worth.most_s(len(adapters)) + 1e-9


@given(EVENTS, st.integers(1, 30), ADAPTERS)
def test_every_job_is_sent_to_somebody_who_is_there(
    events: list[object], replicas: int, adapters: list[int]
) -> None:
    fleet = Fleet(replicas)
    for event in events:
        play(fleet, event)
    ranked = fleet.policy.choose(asked(*adapters), fleet.now)
    assert ranked
    assert len(set(ranked)) == len(ranked)
    assert set(ranked) <= set(fleet.replicas)


@given(EVENTS)
def test_nothing_is_under_way_when_all_is_done(events: list[object]) -> None:
    fleet = Fleet(3)
    for event in events:
        play(fleet, event)
    fleet.wait(10_000)
    assert [fleet.policy.pending_s(name, fleet.now) for name in fleet.replicas] == pytest.approx(
        [0.0] * len(fleet.replicas), abs=1e-9
    )


def test_a_hot_adapter_is_made_by_all_that_hold_it() -> None:
    """Of a fleet of which a sample hardly ever finds one; the first homes have much to do."""
    fleet = Fleet(120)
    holders = [fleet.send(asked(7, seconds=60.0)).name for _ in range(12)]
    assert len(set(holders)) == 12
    assert fleet.loads == 12
    fleet.wait(61.0)
    for name in holders[:8]:
        fleet.send(asked(7, seconds=0.8), name)
    fleet.report()
    for _ in range(20):
        chosen = fleet.policy.choose(asked(7, seconds=0.0), fleet.now)[0]
        assert chosen in holders[8:]


@given(st.permutations(range(12)), st.integers(2, 12))
def test_an_adapter_stays_where_it_is(order: list[int], replicas: int) -> None:
    """However many requests come for it, while no replica has more to do than another; also for
    another router that knows only what replicas report, and when a replica is added."""
    fleet = Fleet(replicas)

    def places() -> dict[int, str]:
        found = {}
        for adapter in order:
            found[adapter] = fleet.send(asked(adapter, seconds=0.01)).name
            fleet.wait(1.0)
        return found

    before = places()
    assert places() == before
    assert fleet.loads == len(order)
    fleet.report()
    other = Policy(Worth(), Random(1))
    other.update(sorted(fleet.replicas, reverse=True))
    for replica in fleet.replicas.values():
        other.hear(replica.name, replica.report(fleet.now), fleet.now)
    assert {a: other.choose(asked(a, seconds=0), fleet.now)[0] for a in order} == before
    fleet.add()
    assert places() == before


@given(st.integers(2, 12))
def test_routers_that_know_nothing_agree(replicas: int) -> None:
    names = [f"replica-{number}" for number in range(replicas)]
    one, other = Policy(Worth(), Random(1)), Policy(Worth(), Random(2))
    one.update(names)
    other.update(names[::-1])
    for adapter in range(20):
        job = asked(adapter, seconds=0)
        assert one.choose(job, 0.0)[0] == other.choose(job, 0.0)[0]


@given(st.integers(2, 12))
def test_only_adapters_of_a_replica_that_is_gone_move(replicas: int) -> None:
    fleet = Fleet(replicas)
    before = {}
    for adapter in range(24):
        before[adapter] = fleet.send(asked(adapter, seconds=0.01)).name
        fleet.wait(1.0)
    gone = before[0]
    fleet.remove(gone)
    for adapter, place in before.items():
        now = fleet.send(asked(adapter, seconds=0.01)).name
        assert now in fleet.replicas
        assert now == place or place == gone
        fleet.wait(1.0)


def test_a_hot_adapter_has_several_homes_and_few_more_than_it_needs() -> None:
    """Ten requests of a second each second, all for one adapter, among twenty replicas."""
    fleet = Fleet(20)
    used: Counter[str] = Counter()
    for second in range(60):
        for _ in range(10):
            used[fleet.send(asked(7, seconds=1.0)).name] += 1
            fleet.wait(0.1)
        if second % 2:
            fleet.report()
    assert 10 <= len(used) <= 20
    assert fleet.loads == len(used)
    behind = [max(0.0, replica.free - fleet.now) for replica in fleet.replicas.values()]
    assert max(behind) < 4.0


def test_a_hot_adapter_among_very_many_finds_its_homes_again() -> None:
    """Spread over the homes that it has, not over whom chance picks."""
    fleet = Fleet(500)
    for second in range(120):
        for _ in range(6):
            fleet.send(asked(7, seconds=1.0))
            fleet.wait(1 / 6)
        if second % 2:
            fleet.report()
    assert fleet.loads <= 24


def test_plain_requests_are_spread_by_work() -> None:
    fleet = Fleet(4)
    counts: Counter[str] = Counter()
    chance = Random(3)
    for number in range(2000):
        seconds = chance.choice([0.05, 0.5])
        counts[fleet.send(asked(seconds=seconds, prompt=str(number))).name] += 1
        fleet.wait(0.275 / 4 / 0.9)
        if number % 20 == 0:
            fleet.report()
    assert min(counts.values()) > 0.7 * max(counts.values())


def test_the_same_prompt_goes_to_the_same_replica_if_that_is_as_free() -> None:
    fleet = Fleet(4)
    places = set()
    for _ in range(20):
        places.add(fleet.send(asked(prompt="a cat", seconds=0.01)).name)
        fleet.wait(1.0)
    assert len(places) == 1
    crowd = Counter(fleet.send(asked(prompt="a cat", seconds=1.0)).name for _ in range(40))
    assert set(crowd.values()) == {10}


@pytest.mark.parametrize("reports", [True, False])
def test_a_new_replica_gets_its_share(reports: bool) -> None:
    """Of requests that each want one of as many adapters as there is room for."""
    fleet = Fleet(3)
    chance = Random(0)

    def second(load: int) -> None:
        for _ in range(load):
            fleet.send(asked(chance.randrange(40), seconds=1 / 5))
            fleet.wait(1 / load)

    for _ in range(30):
        second(14)
        fleet.report()
    new = fleet.add(reports=reports)
    done = sum(replica.rows for replica in fleet.replicas.values())
    for _ in range(30):
        second(19)
        fleet.report()
    done = sum(replica.rows for replica in fleet.replicas.values()) - done
    assert new.rows > done / 4 / 2


def tried(load: float, *, by_policy: bool) -> tuple[int, float]:
    """Adapters loaded and the p95 of plain requests, in seconds, once the replicas are full: four
    with room for a quarter of 200 adapters, of which seven requests of ten name one by Zipf's law.

    Args:
        load: of what the replicas can do, without loading.
        by_policy: else by the shorter queue of two, as Serve's own router does.
    """
    adapters = Random(0).choices(range(200), [1 / rank for rank in range(1, 201)], k=4000)
    fleet, kinds, arrivals = Fleet(4, room=50, load_s=0.1), Random(5), Random(2)
    took, before = [], 0
    for number, adapter in enumerate(adapters):
        fleet.wait(arrivals.expovariate(load * 4 / 0.1))
        if number % 80 == 0:
            fleet.report()
        if number == 1000:
            before = fleet.loads
        job = asked(prompt=str(number)) if kinds.random() < 0.3 else asked(adapter)
        two = arrivals.sample(sorted(fleet.replicas), 2)
        shorter = min(two, key=lambda name: len(fleet.replicas[name].jobs))
        replica = fleet.send(job, None if by_policy else shorter)
        if not job.adapters and number > 1000:
            took.append(replica.free - fleet.now)
    return fleet.loads - before, quantiles(took, n=20)[-1]


@pytest.mark.parametrize("load", [0.5, 0.7, 0.9])
def test_far_fewer_adapters_are_loaded_than_by_the_power_of_two_choices(load: float) -> None:
    """And nobody waits longer for it."""
    (ours, our_p95), (theirs, their_p95) = (tried(load, by_policy=mine) for mine in (True, False))
    assert ours < theirs / 5
    assert our_p95 < their_p95


def test_a_job_that_is_sent_again_goes_to_others_first() -> None:
    fleet = Fleet(3)
    job = asked(7, key="again")
    met = []
    for _ in range(3):
        met.append(fleet.policy.choose(job, 0.0)[0])
        fleet.policy.sent(job, met[-1], 0.0)
        fleet.policy.done(met[-1], job.call)
    assert len(set(met)) == 3
    assert fleet.policy.choose(job, 0.0)[0] in met


def test_among_many_too() -> None:
    fleet = Fleet(100)
    job = asked(7, key="again")
    met = {fleet.policy.choose(job, 0.0)[0] for _ in range(40)}
    assert len(met) == 40


def test_work_counts_where_it_went_in_the_end() -> None:
    fleet = Fleet(2)
    job = asked(seconds=2.0)
    first, second = fleet.policy.choose(job, 0.0)
    fleet.policy.sent(job, second, 0.0)
    assert fleet.policy.pending_s(first, 0.0) == 0
    assert fleet.policy.pending_s(second, 0.0) > 0
    fleet.policy.done(second, job.call)
    assert fleet.policy.pending_s(second, 0.0) == 0


def test_what_was_given_up_before_it_was_sent_counts_no_longer() -> None:
    fleet = Fleet(2)
    chosen = fleet.policy.choose(asked(seconds=2.0), 0.0)[0]
    fleet.policy.choose(asked(seconds=0), UNSENT_S - 1)
    assert fleet.policy.pending_s(chosen, UNSENT_S - 1) > 0
    fleet.policy.choose(asked(seconds=0), UNSENT_S + 1)
    assert fleet.policy.pending_s(chosen, UNSENT_S + 1) == 0


def test_work_of_others_is_known_by_reports_and_goes_by_with_time() -> None:
    fleet = Fleet(2)
    busy, free = fleet.replicas
    fleet.policy.hear(busy, Report(5.0, STEP_PIXEL_S), 0.0)
    assert fleet.policy.choose(asked(seconds=1), 0.0)[0] == free
    assert fleet.policy.pending_s(busy, 2.0) == pytest.approx(3.0)
    job = asked(seconds=1)
    fleet.policy.sent(job, busy, 2.0)  # was not chosen there: nothing is known of it
    assert fleet.policy.pending_s(busy, 2.0) == pytest.approx(3.0)
    fleet.policy.hear(busy, Report(0.0, STEP_PIXEL_S, rows_total=9), 3.0)
    assert fleet.policy.pending_s(busy, 3.0) == 0


def test_what_a_report_no_longer_names_is_not_there() -> None:
    fleet = Fleet(6)
    place = fleet.send(asked(7, seconds=0.01))
    fleet.wait(60)
    place.adapters.clear()
    for _ in range(3):
        place.rows += 1
        fleet.report()
    other = next(name for name in fleet.replicas if name != place.name)
    fleet.policy.hear(other, Report(adapters=frozenset({7}), rows_total=1), fleet.now)
    assert fleet.policy.choose(asked(7, seconds=0), fleet.now)[0] == other


def test_where_an_adapter_failed_to_load_it_is_at_home_no_longer() -> None:
    """Its next home has it, however often it was sent to the first, and stays the first one when
    the failure is no longer told: it holds the adapter."""
    fleet = Fleet(6)
    home = fleet.replicas[fleet.policy.choose(asked(7, seconds=0), fleet.now)[0]]
    home.broken.add(7)
    for _ in range(5):
        assert fleet.send(asked(7)) is home
    fleet.report()
    second = fleet.send(asked(7))
    assert second is not home
    fleet.wait(60)
    home.failed.clear()
    fleet.report()
    assert {fleet.send(asked(7)).name for _ in range(5)} == {second.name}


@pytest.mark.parametrize("seed", range(5))
def test_an_adapter_that_loads_nowhere_is_at_home_nowhere(seed: int) -> None:
    """It goes where there is least to do, wherever it was sent before."""
    fleet = Fleet(4, seed=seed)
    for replica in fleet.replicas.values():
        replica.broken.add(7)
        fleet.send(asked(7), replica.name)
    fleet.report()
    fleet.send(asked(7))
    busy = {fleet.send(asked(seconds=0.5)).name for _ in range(3)}
    assert len(busy) == 3
    assert fleet.policy.choose(asked(7), fleet.now)[0] not in busy


def test_an_adapter_that_failed_is_not_held_once_that_is_told_no_more() -> None:
    """Between two reports that say the same nothing was heard of it: the replica had no work."""
    fleet = Fleet(2)
    home = fleet.send(asked(7, seconds=0))
    other = next(one for one in fleet.replicas.values() if one is not home)
    home.broken.add(7)
    fleet.send(asked(7), home.name)
    home.adapters.clear()
    fleet.report()
    home.failed.clear()
    home.free += 0.5
    fleet.report()  # its home again, and no more than that
    assert fleet.policy.choose(asked(7), fleet.now)[0] == other.name


def test_what_is_remembered_does_not_grow() -> None:
    fleet, number = Fleet(4), count()

    def busy(jobs: int) -> int:
        for _ in range(jobs):
            fleet.send(asked(next(number), seconds=0.01))
            fleet.wait(0.01)
        fleet.report()
        return len(pickle.dumps(fleet.policy))

    busy(5000)
    size = busy(500)
    assert busy(5000) == pytest.approx(size, rel=0.05)


def test_nobody_is_there() -> None:
    policy = Policy(Worth(), Random(0))
    assert policy.choose(asked(7), 0.0) == []
    policy.done("nobody", "nothing")
    policy.forget("nobody")
    policy.update(["one"])
    assert policy.choose(asked(7), 0.0) == ["one"]
    policy.forget("one")
    assert policy.choose(asked(7), 0.0) == []


@pytest.mark.parametrize("worth", [{"load_s": -1}, {"prompt_s": float("nan")}, {"load_s": 1e9}])
def test_what_is_worth_no_time(worth: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(worth))} is .*must be 0 to 3600 seconds"):
        Worth(**worth)
