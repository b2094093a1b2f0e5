"""The policies in Ray's own autoscaling state: up by what comes and waits, from and to zero, and
models that share GPUs."""

from collections.abc import Callable
from math import inf, nan

import pytest
from ray.serve._private.autoscaling_state import AutoscalingStateManager

from deployments.diffusion import pool
from deployments.diffusion.autoscaling import ByPendingWork, ByWork, SharedGpus, steady
from deployments.jobs.autoscaling import ByOpenJobs
from tests.deployments.diffusion.scaled import Scaled

BY_WORK = "deployments.diffusion.autoscaling:ByWork"
SHARED = "deployments.diffusion.autoscaling:SharedGpus"


@pytest.fixture
def manager() -> AutoscalingStateManager:
    return AutoscalingStateManager()


def shared(
    manager: AutoscalingStateManager,
    name: str,
    floor: int = 0,
    priority: float = 1.0,
    **keys: float,
) -> Scaled:
    kwargs: dict[str, object] = {"pool": f"of {id(manager)}", "gpus": 4, "priority": priority}
    return Scaled(manager, f"model-{name}", SHARED, kwargs, floor, **keys)


def settle(*models: Scaled, rounds: int = 10) -> list[int]:
    """Decisions until nothing moves; what was decided upon runs."""
    for _ in range(rounds):
        for model in models:
            model.decide()
            model.run()
    return [model.target for model in models]


@pytest.mark.parametrize(
    ("pending_s", "arriving_s", "replicas"),
    [
        (0.0, 0.4, 2),  # of each of two: 0.8 of a device comes in, 0.5 a replica
        (5.0, 0.4, 3),  # and one more does in ten seconds what waits
        (30.0, 0.0, 6),
        (0.0, 0.0, 0),
    ],
)
def test_by_what_comes_and_what_waits(
    manager: AutoscalingStateManager, pending_s: float, arriving_s: float, replicas: int
) -> None:
    model = Scaled(manager, "model-a", BY_WORK, {"utilization": 0.5, "target_s": 10})
    model.target = 2
    model.run()
    assert model.decide() == 2  # nobody has said anything
    model.say(pending_s, arriving_s)
    # From two to none by way of one, as Serve has it.
    assert model.decide() == (replicas or 1)
    if not replicas:
        assert model.decide() == 0


def test_by_what_waits_alone(manager: AutoscalingStateManager) -> None:
    policy = "deployments.diffusion.autoscaling:ByPendingWork"
    model = Scaled(manager, "model-a", policy, {"target_s": 10})
    model.target = 2
    model.run()
    assert model.decide() == 2
    model.say(12.0, 9.0)
    assert model.decide() == 3


def test_a_little_less_work_ends_no_replica(manager: AutoscalingStateManager) -> None:
    model = Scaled(manager, "model-a", BY_WORK, {"utilization": 0.5})
    model.target = 2
    model.run()
    for arriving_s in (0.49, 0.24, 0.26, 0.22):  # wants 1.96, 0.96, 1.04, 0.88
        model.say(0.0, arriving_s)
        assert model.decide() == 2
    model.say(0.0, 0.2)
    assert model.decide() == 1


@pytest.mark.parametrize(
    ("policy", "kwargs"), [(BY_WORK, {}), (SHARED, {"pool": "alone", "gpus": 2})]
)
def test_from_zero_with_whoever_waits_and_back_when_idle(
    manager: AutoscalingStateManager, policy: str, kwargs: dict[str, object]
) -> None:
    model = Scaled(manager, "model-a", policy, kwargs)
    assert model.decide() == 0
    model.queue(3)
    assert model.decide() == 1
    model.queue(0)
    assert model.decide() == 1  # it starts, and has not said anything
    model.run()
    model.say(40.0, 0.1)
    assert model.decide() > 1
    model.say(0.0, 0.0)
    for _ in range(3):
        model.decide()
    assert model.target == 0


def test_by_work_and_priority_when_there_are_too_few(manager: AutoscalingStateManager) -> None:
    first, second = shared(manager, "a", floor=1, priority=3.0), shared(manager, "b", floor=1)
    assert settle(first, second) == [1, 1]
    for _ in range(10):
        for model in (first, second):
            model.say(40.0 / model.target, 0.0)  # each wants four
            model.decide()
            model.run()
            assert first.target + second.target <= 4
    assert (first.target, second.target) == (3, 1)


def test_an_idle_model_gives_its_gpus_to_others(manager: AutoscalingStateManager) -> None:
    first, second = shared(manager, "a"), shared(manager, "b")
    first.target = 4
    first.run()
    second.queue(1)
    assert second.decide() == 1  # Serve's own way from zero, whoever has the GPUs
    second.run()
    for _ in range(10):
        first.say(0.0, 0.0)
        second.say(60.0 / second.target, 0.0)
        for model in (first, second):
            model.decide()
            model.run()
    assert (first.target, second.target) == (0, 4)


@pytest.mark.parametrize("factor", [0.3, 1.0, 1.7, 5.0])
def test_serves_factors_carry_no_share_past_its_pool(
    manager: AutoscalingStateManager, factor: float
) -> None:
    factors = {"upscaling_factor": factor, "downscaling_factor": factor}
    first, second = shared(manager, "a", floor=1, **factors), shared(manager, "b", floor=1)
    settle(first, second)
    first.say(100.0, 0.0)
    assert first.decide() == 3
    first.run()
    first.say(0.0, 0.0)
    assert first.decide() == 1


def test_one_free_gpu_goes_to_one_model(manager: AutoscalingStateManager) -> None:
    """Two want it in one turn of Serve's loop, and a third keeps a while what it is to let go."""
    third = shared(manager, "c", downscale_delay_s=60.0)
    first, second = shared(manager, "a", floor=1), shared(manager, "b", floor=1)
    assert settle(first, second, third) == [1, 1, 0]
    third.target = 1
    third.run()
    third.say(0.0, 0.0)
    for model in (first, second):
        model.say(100.0, 0.0)
    for _ in range(3):
        assert [model.decide() for model in (third, first, second)] == [1, 2, 1]


def test_a_model_that_wakes_gets_a_gpu(
    manager: AutoscalingStateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much the others want: Serve does not ask the policy of a model without replicas for
    which requests wait, and its replica finds no room until another model lets go."""
    first, second = shared(manager, "a", priority=9.0), shared(manager, "b")
    settle(first, second)
    first.target = 4
    first.run()
    first.say(100.0, 0.0)
    assert first.decide() == 4
    monkeypatch.setattr(pool, "WAKING_S", 0.0)
    second.queue(1)
    assert second.decide() == 1
    assert first.decide() == 3
    assert second.decide() == 1
    assert first.decide() == 3


def test_a_model_that_is_deployed_anew_while_it_wakes_keeps_its_gpu(
    manager: AutoscalingStateManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve makes it a new policy, which it does not ask until a replica runs."""
    first, second = shared(manager, "a"), shared(manager, "b")
    settle(first, second)
    first.target = 3
    first.run()
    first.say(100.0, 0.0)
    monkeypatch.setattr(pool, "WAKING_S", 0.0)
    second.queue(1)
    assert second.decide() == 1
    second.deploy()
    assert second.decide() == 1
    assert first.decide() == 3
    second.run()
    second.say(300.0, 0.0)
    assert settle(first, second, rounds=3) == [2, 2]
    second.remove()
    assert settle(first, rounds=3) == [4]


def test_a_model_that_is_removed_is_forgotten(manager: AutoscalingStateManager) -> None:
    first, second = shared(manager, "a", floor=2), shared(manager, "b")
    settle(first, second)
    second.target = 1
    second.run()
    second.say(90.0, 0.0)
    assert settle(second, rounds=3) == [2]  # two are the other's floor
    first.remove()
    second.say(90.0, 0.0)
    assert settle(second, rounds=3) == [4]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ByWork(utilization=0), "utilization is 0; it must be above 0, at most 1"),
        (lambda: ByWork(utilization=1.1), "utilization is 1.1"),
        (lambda: ByWork(target_s=0), "target_s is 0; it must be above 0"),
        (lambda: ByPendingWork(target_s=-1), "target_s is -1; it must be above 0"),
        (lambda: ByPendingWork(target_s=nan), "target_s is nan; it must be above 0, and finite"),
        (lambda: ByWork(target_s=nan), "target_s is nan; it must be above 0, and finite"),
        (lambda: ByWork(utilization=nan), "utilization is nan; it must be above 0, at most 1"),
        (lambda: SharedGpus("a", 1, priority=nan), "priority is nan; it must be above 0, and fini"),
        (lambda: SharedGpus("a", 1, priority=inf), "priority is inf; it must be above 0, and fini"),
        (lambda: ByOpenJobs(0), "at_once is 0; it must be 1 or more"),
        (lambda: SharedGpus("a", 0), "gpus is 0; it must be 1 or more"),
        (lambda: SharedGpus("a", 1, priority=0), "priority is 0; it must be above 0"),
        (lambda: SharedGpus("a", 1, utilization=2), "utilization is 2"),
    ],
)
def test_arguments_that_are_refused(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make()


def test_whole_replicas() -> None:
    assert [steady(wanted, 3) for wanted in (3.1, 2.0, 1.7, 1.6, 0.0)] == [4, 3, 3, 2, 0]
