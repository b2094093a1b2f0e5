"""The fleet in virtual time against arithmetic that knows nothing of it."""

from dataclasses import replace
from pathlib import Path
from random import Random
from statistics import mean

import pytest
from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingConfig

from benchmarks.fleet import scenarios, traces
from benchmarks.fleet.clock import Clock
from benchmarks.fleet.device import H100, PIXELS, UNET_MS, VAE_MS, Device
from benchmarks.fleet.replica import Replica
from benchmarks.fleet.routers import OfTwo
from benchmarks.fleet.scaling import Autoscaler
from benchmarks.fleet.simulation import Outcome, Simulation
from benchmarks.fleet.traces import Arrival
from benchmarks.report import percentile
from configs.app import Limits
from deployments.contracts.jobs import ImageJob, LoraWeight
from deployments.diffusion.autoscaling import ByPendingWork
from deployments.diffusion.routing.standing import Asked

PAGE = Path(__file__).resolve().parents[3] / "docs" / "scale.md"


def job(number: int, steps: int = 4, guidance: float = 0.0, adapter: str = "") -> ImageJob:
    loras = (LoraWeight(adapter),) if adapter else ()
    name = f"job-{number}"
    return ImageJob(name, name, (1,), 1024, 1024, None, steps, 0.3, guidance, loras=loras)


def run(router: str, seed: int, *, limits: Limits | None = None, load: float = 20.0) -> Outcome:
    simulation = Simulation(router=router, replicas=4, limits=limits or Limits(), seed=seed)
    rate = traces.steady(load)
    return simulation.run(traces.arrivals(rate, load, 30.0, Random(seed), adapters=100))


@pytest.mark.parametrize("router", ["ours", "Serve's"])
def test_every_request_is_answered_or_refused_once(router: str) -> None:
    outcome = run(router, 0, limits=Limits(max_pending=8), load=60.0)
    assert outcome.asked > 1500
    assert outcome.refused > 100
    assert outcome.answered > 100
    assert outcome.answered + outcome.refused == outcome.asked
    assert len(outcome.took) == outcome.answered


@pytest.mark.parametrize("router", ["ours", "Serve's"])
def test_the_same_seed_gives_the_same(router: str) -> None:
    once = run(router, 3)
    assert once == run(router, 3)
    assert once.took != run(router, 4).took


@pytest.mark.parametrize("load", [pytest.param(0.5, marks=pytest.mark.deep), 0.8])
def test_one_replica_waits_as_queueing_theory_says(load: float) -> None:
    """M/D/1 (Pollaczek and Khinchine): the mean wait is rho D / 2 (1 - rho)."""
    device = Device(least_s=0.1, image_s=0.0)
    chance, now, trace = Random(5), 0.0, []
    for number in range(12_000):
        now += chance.expovariate(load / 0.1)
        trace.append(Arrival(now, job(number, steps=1, guidance=2.0)))  # two rows: a call each
    limits = Limits(max_batch=2, max_pending=1000)
    simulation = Simulation(router="ours", replicas=1, limits=limits, device=device)
    outcome = simulation.run(iter(trace))
    assert outcome.calls == 12_000
    waited = mean(outcome.took) - 0.1
    assert waited == pytest.approx(load * 0.1 / (2 * (1 - load)), rel=0.07)
    assert outcome.busy_s / outcome.replica_s == pytest.approx(load, rel=0.03)


def test_the_device_takes_what_was_measured() -> None:
    for rows, ms in UNET_MS.items():
        assert H100.unet_s(rows, PIXELS, adapted=False) == pytest.approx(ms / 1e3, rel=0.02)
    for ms in VAE_MS.values():
        assert H100.vae_s(PIXELS) == pytest.approx(ms / 1e3, rel=0.12)


def test_sixteen_in_flight_do_what_was_measured() -> None:
    """docs/performance.md, "Whole images": 6.1 a second on a H100, which the fit has not seen."""
    clock = Clock()
    replica = Replica("one", clock, H100, Limits(max_batch=8, max_running=16))
    done: list[float] = []

    def again() -> None:
        done.append(clock.now)
        replica.submit(job(len(done) + 16), again)

    for number in range(16):
        replica.submit(job(number), again)
    while clock.now < 60:
        clock.step()
    assert len(done) / 60 == pytest.approx(6.1, rel=0.1)


def test_adapters_wait_for_each_other_and_the_oldest_goes() -> None:
    clock = Clock()
    device = replace(H100, load_s=1.0, adapter_mb=100)
    replica = Replica("one", clock, device, Limits(lora_budget_mb=200))
    for number, adapter in enumerate(["a", "b", "a", "c"]):
        replica.submit(job(number, adapter=adapter), lambda: None)
    while clock.step():
        pass
    assert replica.shelf.loads == 3
    assert len(replica.shelf.held) == 2
    assert clock.now > 2.0  # "c" found no room until one was done


def test_the_default_router_by_hand() -> None:
    clock = Clock()
    router = OfTwo(0, lambda: clock.now)
    replicas = {name: Replica(name, clock, H100, Limits()) for name in ("a", "b")}
    router.update(replicas)
    for number in range(3):  # it has them, and the router does not know
        replicas["a"].submit(job(number), lambda: None)
    chosen = []
    for number in range(3, 9):
        name = router.choose(Asked.of(job(number), "call"))
        assert name is not None
        replicas[name].submit(job(number), lambda: None)
        chosen.append(name)
    # b: 0, 1, 2 of its own beside a's 3; then both have 3, and take turns.
    assert chosen[:3] == ["b", "b", "b"]
    assert sorted(chosen[3:5]) == ["a", "b"]
    assert router.length("a") == replicas["a"].ongoing
    router.done("b", "call")
    assert router.length("b") == replicas["b"].ongoing - 1


def config(**values: float) -> AutoscalingConfig:
    return AutoscalingConfig.model_validate(
        {"min_replicas": 1, "max_replicas": 9, "upscale_delay_s": 5, "downscale_delay_s": 20}
        | values
    )


def test_scaling_by_requests_by_hand() -> None:
    """12 requests at 2 replicas, 3 wanted each: 4 replicas, after the delay."""
    clock = Clock()
    replicas = {name: Replica(name, clock, H100, Limits()) for name in ("a", "b")}
    for number in range(12):
        replicas["ab"[number % 2]].submit(job(number), lambda: None)
    settings = config(target_ongoing_requests=3)
    scaler = Autoscaler(replica_queue_length_autoscaling_policy, settings, 2)
    scaler.hear(replicas)
    assert [scaler.decide(now) for now in (0.0, 3.0, 5.0)] == [2, 2, 4]
    assert (scaler.ups, scaler.downs) == (1, 0)


def test_scaling_by_work_follows_a_wave() -> None:
    curve = traces.wave(10.0, 600.0)
    scaler = Autoscaler(ByPendingWork(3.0), config(), 1)
    simulation = Simulation(router="ours", replicas=1, limits=Limits(), autoscaler=scaler)
    outcome = simulation.run(traces.arrivals(curve, 20.0, 600.0, Random(0)))
    assert outcome.ups > 0
    assert outcome.downs > 0
    assert max(target for _, target in outcome.targets) >= 3
    assert outcome.answered + outcome.refused == outcome.asked
    assert outcome.busy_s < outcome.replica_s


@pytest.mark.parametrize(
    ("rate", "most"),
    [
        (traces.steady(5.0), 5.0),
        (traces.bursts(5.0), 20.0),
        (traces.wave(5.0, 1200.0), 10.0),
    ],
)
def test_traces_have_the_rate_that_is_asked_for(rate: traces.Rate, most: float) -> None:
    trace = list(traces.arrivals(rate, most, 1200.0, Random(0)))
    assert len(trace) == pytest.approx(6000, rel=0.04)
    assert max(rate(float(second)) for second in range(1200)) <= most
    adapted = sum(bool(arrival.job.loras) for arrival in trace)
    assert adapted / len(trace) == pytest.approx(traces.ADAPTED, rel=0.05)


def test_the_page_has_what_it_gives() -> None:
    """One row of docs/scale.md: where it differs, the page is to be made anew."""
    ours, theirs = (row.outcome for row in scenarios.routing({4: 2000}))
    took = [
        ", ".join(f"{percentile(one.took, share):.2f}" for share in (0.5, 0.95, 0.99))
        for one in (ours, theirs)
    ]
    row = f"| 4 replicas | {ours.asked} | {' | '.join(took)} | {ours.loads}, {theirs.loads} |"
    assert row in PAGE.read_text()
