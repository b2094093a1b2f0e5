"""The adapter cache keeps its budget, never evicts what is in use, lets no job wait for ever."""

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from deployments.diffusion.engine.adapters import cache
from deployments.diffusion.engine.adapters.cache import (
    Action,
    Attach,
    Detach,
    Discard,
    Load,
    LoraCache,
    Ready,
    TooLarge,
)

SIZES = {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 7, "g": 10, "huge": 100}


@dataclass
class Device:
    """Carries out what a cache decides, and refuses what cannot be right.

    Attributes:
        waiting, ready: keys by job; a ready job uses its adapters until it is released.
        ended: how the other jobs ended.
    """

    cache: LoraCache
    loading: set[str] = field(default_factory=set)
    parked: set[str] = field(default_factory=set)
    attached: set[str] = field(default_factory=set)
    waiting: dict[str, set[str]] = field(default_factory=dict)
    ready: dict[str, set[str]] = field(default_factory=dict)
    ended: dict[str, str] = field(default_factory=dict)

    @property
    def in_use(self) -> set[str]:
        return {key for keys in self.ready.values() for key in keys}

    def request(self, job_id: str, *keys: str) -> list[Action]:
        self.waiting[job_id] = set(keys)
        return self.carry_out(self.cache.request(job_id, keys))

    def loaded(self, key: str) -> list[Action]:
        self.loading.remove(key)
        self.parked.add(key)
        return self.carry_out(self.cache.loaded(key, SIZES[key]))

    def slow(self, key: str) -> list[Action]:
        return self.carry_out(self.cache.slow(key))

    def load_failed(self, key: str) -> list[Action]:
        self.loading.remove(key)
        victims, actions = self.cache.load_failed(key)
        assert set(victims) == {job for job, keys in self.waiting.items() if key in keys}
        for job_id in victims:
            del self.waiting[job_id]
            self.ended[job_id] = "failed"
        return self.carry_out(actions)

    def release(self, job_id: str) -> list[Action]:
        if self.waiting.pop(job_id, None) or self.ready.pop(job_id, None):
            self.ended[job_id] = "released"
        return self.carry_out(self.cache.release(job_id))

    def resize(self, budget: int) -> list[Action]:
        return self.carry_out(self.cache.resize(budget))

    def carry_out(self, actions: list[Action]) -> list[Action]:
        shrinks = self.attached_bytes > self.cache.budget_bytes
        evicted: list[str] = []
        for action in actions:
            match action:
                case Load(key):
                    assert key not in self.loading | self.parked | self.attached
                    self.loading.add(key)
                case Attach(key):
                    self.parked.remove(key)
                    assert key not in self.attached
                    self.attached.add(key)
                    assert self.attached_bytes <= self.cache.budget_bytes
                    if not shrinks:
                        assert all(self.wanted_since(v) > self.wanted_since(key) for v in evicted)
                    evicted.clear()
                case Detach(key):
                    assert key not in self.in_use
                    self.attached.remove(key)
                    evicted.append(key)
                case Discard(key):
                    self.parked.remove(key)
                case Ready(job_id):
                    self.ready[job_id] = self.waiting.pop(job_id)
                    assert self.ready[job_id] <= self.attached
                case TooLarge(job_id, needed):
                    keys = self.waiting.pop(job_id)
                    assert self.cache.budget_bytes < needed <= sum(SIZES[key] for key in keys)
                    self.ended[job_id] = "too large"
        return actions

    def wanted_since(self, key: str) -> float:
        """The place in line of the first waiting job that wants it."""
        line = (place for place, keys in enumerate(self.waiting.values()) if key in keys)
        return next(line, float("inf"))

    @property
    def attached_bytes(self) -> int:
        return sum(SIZES[key] for key in self.attached)


class LoraCacheMachine(RuleBasedStateMachine):
    """Any order of requests, loads, failures, releases and new budgets."""

    def __init__(self) -> None:
        super().__init__()
        self.device = Device(LoraCache(0))
        self.jobs: list[str] = []

    @initialize(budget=st.integers(1, 14))
    def start(self, budget: int) -> None:
        self.device = Device(LoraCache(budget))

    @rule(keys=st.lists(st.sampled_from(sorted(SIZES)), min_size=1, max_size=3))
    def request(self, keys: list[str]) -> None:
        job_id = f"job {len(self.jobs)}"
        self.jobs.append(job_id)
        self.device.request(job_id, *keys)

    @precondition(lambda self: self.device.loading)
    @rule(data=st.data())
    def a_load_ends(self, data: st.DataObject) -> None:
        self.device.loaded(data.draw(st.sampled_from(sorted(self.device.loading))))

    @precondition(lambda self: self.device.loading)
    @rule(data=st.data())
    def a_load_takes_long(self, data: st.DataObject) -> None:
        self.device.slow(data.draw(st.sampled_from(sorted(self.device.loading))))

    @precondition(lambda self: self.device.loading)
    @rule(data=st.data())
    def a_load_fails(self, data: st.DataObject) -> None:
        self.device.load_failed(data.draw(st.sampled_from(sorted(self.device.loading))))

    @precondition(lambda self: self.jobs)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        """Of any job: one that runs, one that waits (cancelled), or one that has ended."""
        self.device.release(data.draw(st.sampled_from(self.jobs)))

    @precondition(lambda self: self.device.ready)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.device.release(data.draw(st.sampled_from(sorted(self.device.ready))))

    @rule(budget=st.integers(0, 14))
    def resize(self, budget: int) -> None:
        self.device.resize(budget)

    @invariant()
    def only_adapters_in_use_may_exceed_the_budget(self) -> None:
        device = self.device
        assert (
            device.attached_bytes <= device.cache.budget_bytes or device.attached <= device.in_use
        )

    @invariant()
    def the_cache_knows_what_is_attached(self) -> None:
        assert set(self.device.cache.resident) == self.device.attached
        assert self.device.cache.resident_bytes == self.device.attached_bytes

    @invariant()
    def the_cache_knows_what_somebody_has_or_wants(self) -> None:
        device = self.device
        wanted = {key for keys in device.waiting.values() for key in keys}
        assert device.cache.known == device.attached | device.parked | device.loading | wanted

    @invariant()
    def no_job_is_lost(self) -> None:
        device = self.device
        assert sorted([*device.waiting, *device.ready, *device.ended]) == sorted(self.jobs)

    @invariant()
    def a_waiting_job_waits_for_something(self) -> None:
        """A load, or the release of adapters in use: nothing else can wake it."""
        device = self.device
        assert not device.waiting or device.loading or device.in_use

    @invariant()
    def everything_for_the_oldest_is_on_its_way(self) -> None:
        device = self.device
        for keys in list(device.waiting.values())[:1]:
            assert keys <= device.loading | device.parked | device.attached

    @invariant()
    def what_is_parked_is_wanted(self) -> None:
        device = self.device
        assert device.parked <= {key for keys in device.waiting.values() for key in keys}

    def teardown(self) -> None:
        """Once loads are answered and adapters released, every job has its end."""
        device = self.device
        for _ in range(4 * len(self.jobs) * len(SIZES) + 4):
            if device.loading:
                device.loaded(min(device.loading))
            elif device.ready:
                device.release(min(device.ready))
        assert not device.waiting
        assert not device.ready
        assert not device.loading
        assert set(device.ended) == set(self.jobs)
        assert not device.parked


@pytest.mark.parametrize("patience", [1, cache.PATIENCE])
def test_any_order_of_calls(patience: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache, "PATIENCE", patience)
    run_state_machine_as_test(
        LoraCacheMachine, settings=settings(max_examples=100, stateful_step_count=50)
    )


@pytest.mark.deep
@pytest.mark.timeout(3600)
def test_any_order_of_calls_for_long() -> None:
    run_state_machine_as_test(
        LoraCacheMachine, settings=settings(max_examples=5000, stateful_step_count=100)
    )


def holding(budget: int, *keys: str) -> Device:
    """A device with these adapters attached, least recently used first, none in use."""
    device = Device(LoraCache(budget))
    for key in keys:
        device.request(f"brings {key}", key)
        device.loaded(key)
        device.release(f"brings {key}")
    return device


def test_a_job_is_ready_when_all_its_adapters_are_attached() -> None:
    device = Device(LoraCache(10))
    assert device.request("job", "a", "b") == [Load("a"), Load("b")]
    assert device.loaded("b") == [Attach("b")]
    assert device.loaded("a") == [Attach("a"), Ready("job")]


def test_an_adapter_named_twice_is_loaded_once() -> None:
    device = Device(LoraCache(10))
    assert device.request("job", "a", "a") == [Load("a")]
    assert device.request("other", "a") == []
    assert device.loaded("a") == [Attach("a"), Ready("job"), Ready("other")]


def test_an_attached_adapter_is_ready_at_once() -> None:
    assert holding(10, "a").request("job", "a") == [Ready("job")]


def test_the_least_recently_used_goes_first() -> None:
    device = holding(6, "a", "b", "c")
    device.request("uses a again", "a")
    device.release("uses a again")
    device.request("job", "d")
    assert device.loaded("d") == [Detach("b"), Detach("c"), Attach("d"), Ready("job")]


def test_no_more_is_evicted_than_needed() -> None:
    device = holding(6, "c", "b", "a")
    device.request("job", "b", "c")
    device.release("job")
    device.request("other", "a")
    device.release("other")
    device.request("new", "d")
    assert device.loaded("d") == [Detach("b"), Detach("c"), Attach("d"), Ready("new")]
    assert device.attached == {"a", "d"}


def test_an_adapter_in_use_makes_others_wait() -> None:
    device = holding(5, "c")
    device.request("user", "c")
    device.request("job", "d")
    assert device.loaded("d") == []
    assert device.release("user") == [Detach("c"), Attach("d"), Ready("job")]


def test_a_job_above_the_budget_is_refused_when_its_size_is_known() -> None:
    device = Device(LoraCache(8))
    device.request("job", "e", "d")
    assert device.loaded("e") == [Attach("e")]
    assert device.loaded("d") == [TooLarge("job", 9), Discard("d")]


def test_a_failed_load_ends_every_job_that_wants_it() -> None:
    device = Device(LoraCache(8))
    device.request("one", "a")
    device.request("two", "a", "b")
    device.request("three", "b")
    assert device.cache.load_failed("a") == (("one", "two"), [])
    assert device.cache.loaded("b", 2) == [Attach("b"), Ready("three")]


def test_a_cancelled_job_leaves_nothing_behind() -> None:
    device = Device(LoraCache(8))
    device.request("job", "a")
    device.release("job")
    assert device.loaded("a") == [Discard("a")]


def test_a_smaller_budget_waits_for_what_is_in_use() -> None:
    device = holding(8, "c", "d")
    device.request("user", "d")
    assert device.resize(2) == [Detach("c")]
    assert device.cache.resident_bytes == 4
    assert device.release("user") == [Detach("d")]


def test_an_older_job_takes_the_room_of_what_a_younger_one_still_waits_with() -> None:
    """Each needs all of the budget; if each kept a part of it, neither could go on."""
    device = Device(LoraCache(10))
    device.request("older", "d", "e", "a")
    device.request("younger", "c", "f")
    assert device.loaded("c") == [Attach("c"), Load("f")]
    device.loaded("e")
    assert device.loaded("d") == [Detach("c"), Attach("d"), Load("c")]
    assert device.loaded("a") == [Attach("a"), Ready("older")]
    device.loaded("f")
    device.loaded("c")
    device.release("older")
    assert "younger" in device.ready


def test_a_job_is_not_overtaken_for_ever() -> None:
    """Users of a small adapter come and overlap, so that it is always in use."""
    device = holding(10, "a")
    device.request("user 0", "a")
    device.request("patient", "g")
    device.loaded("g")
    for n in range(1, 100):
        device.request(f"user {n}", "a")
        device.release(f"user {n - 1}")
        if "patient" in device.ready:
            break
    assert "patient" in device.ready
    assert n > 10, "a few may overtake: they cost it little"
    device.release("patient")
    device.loaded("a")
    assert f"user {n}" in device.ready


def test_few_adapters_are_loaded_ahead() -> None:
    device = Device(LoraCache(1))
    device.request("user", "a")
    device.loaded("a")
    for key in ("b", "c", "d", "e", "f", "g"):
        device.request(key, key)
    assert len(device.loading) <= 4


def test_loads_that_take_long_keep_no_other_from_being_begun() -> None:
    device = Device(LoraCache(100))
    for key in ("a", "b", "c", "d", "e", "f"):
        device.request(key, key)
    assert device.loading == {"a", "b", "c", "d"}
    assert device.slow("b") == [Load("e")]
    assert device.slow("c") == [Load("f")]
    assert device.slow("c") == []
    assert device.loaded("b") == [Attach("b"), Ready("b")]
    device.load_failed("c")
    assert device.request("again", "c") == [], "its place is taken like any other's"
    assert device.loaded("a") == [Attach("a"), Ready("a"), Load("c")]
