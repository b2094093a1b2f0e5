"""What is simulated."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from ray.serve.autoscaling_policy import replica_queue_length_autoscaling_policy
from ray.serve.config import AutoscalingConfig

from benchmarks.fleet import traces
from benchmarks.fleet.clock import Clock
from benchmarks.fleet.device import H100, PIXELS
from benchmarks.fleet.scaling import Autoscaler, Scale
from benchmarks.fleet.simulation import Outcome, Simulation
from benchmarks.fleet.traces import STEPS, Rate
from configs.app import Limits
from deployments.diffusion.autoscaling import ByPendingWork, ByWork, SharedGpus

SEED = 1
BUDGET_MB = 8192
MODELS = 50
SCALES: dict[str, tuple[Scale, float]] = {  # and `target_ongoing_requests`
    "by work, 0.5 (the default)": (ByWork(), 2),
    "by work, 0.7": (ByWork(0.7), 2),
    "by pending work, 10 s": (ByPendingWork(10), 2),
    "by pending work, 3 s": (ByPendingWork(3), 2),
    "Serve's, 2 (its default)": (replica_queue_length_autoscaling_policy, 2),
    "Serve's, 8": (replica_queue_length_autoscaling_policy, 8),
}

SERVES = "Serve's, 2 (its default)"


@dataclass(frozen=True)
class Row:
    """A line of the report."""

    scenario: str
    setting: str
    way: str
    outcome: Outcome


def image_s() -> float:
    """Seconds of the device for one image of the mix, in full calls with adapters."""
    steps = sum(number * share for number, share in STEPS.items())
    row_s = H100.unet_s(8, PIXELS, adapted=True) / 8
    return steps * row_s + H100.image_s


def rate_of(replicas: float, load: float) -> float:
    """Requests a second that are so much of what replicas can do."""
    return load * replicas / image_s()


def routed(
    router: str, replicas: int, rate: Rate, most: float, seconds: float, mb: int = BUDGET_MB
) -> Outcome:
    """A fixed number of replicas while requests come. `most`: that `rate` is never above."""
    simulation = Simulation(
        router=router, replicas=replicas, limits=Limits(lora_budget_mb=mb), seed=SEED
    )
    return simulation.run(traces.arrivals(rate, most, seconds, Random(SEED)))


def scaled(
    router: str, scale: str, rate: Rate, most: float, seconds: float, replicas: int = 2
) -> Outcome:
    """An autoscaler while requests come."""
    policy, target = SCALES[scale]
    config = AutoscalingConfig(
        min_replicas=1,
        max_replicas=64,
        initial_replicas=replicas,
        target_ongoing_requests=target,
        upscale_delay_s=10,
        downscale_delay_s=120,
    )
    simulation = Simulation(
        router=router,
        replicas=replicas,
        limits=Limits(lora_budget_mb=BUDGET_MB),
        autoscaler=Autoscaler(policy, config, replicas),
        seed=SEED,
    )
    return simulation.run(traces.arrivals(rate, most, seconds, Random(SEED)))


def routing(sizes: dict[int, int]) -> Iterator[Row]:
    """Poisson arrivals. `sizes`: requests by replicas."""
    for replicas, requests in sizes.items():
        rate = rate_of(replicas, 0.7)
        for router in ("ours", "Serve's"):
            outcome = routed(router, replicas, traces.steady(rate), rate, requests / rate)
            yield Row("Poisson, load 0.7", f"{replicas} replicas", router, outcome)


def loads(replicas: int, requests: int) -> Iterator[Row]:
    """How full replicas can be."""
    for load in (0.5, 0.9):
        rate = rate_of(replicas, load)
        for router in ("ours", "Serve's"):
            outcome = routed(router, replicas, traces.steady(rate), rate, requests / rate)
            yield Row(f"Poisson, {replicas} replicas", f"load {load}", router, outcome)


def budgets(replicas: int, requests: int) -> Iterator[Row]:
    """Adapters on the device."""
    rate = rate_of(replicas, 0.7)
    for mb in (2048, 8192, 32768):
        for router in ("ours", "Serve's"):
            outcome = routed(router, replicas, traces.steady(rate), rate, requests / rate, mb)
            yield Row(f"Poisson, load 0.7, {replicas} replicas", f"{mb} MiB", router, outcome)


def bursts(replicas: int, requests: int) -> Iterator[Row]:
    """Four times as many as on average, for 12 s of every 120."""
    rate = rate_of(replicas, 0.5)
    for router in ("ours", "Serve's"):
        outcome = routed(router, replicas, traces.bursts(rate), 4 * rate, requests / rate)
        yield Row("bursts, mean load 0.5", f"{replicas} replicas", router, outcome)


def day(mean_replicas: float, day_s: float) -> Iterator[Row]:
    """A day's wave, compressed."""
    rate = rate_of(mean_replicas, 0.7)
    curve = traces.wave(rate, day_s)
    for router, scale in [("ours", name) for name in SCALES] + [("Serve's", SERVES)]:
        outcome = scaled(router, scale, curve, 2 * rate, day_s)
        yield Row(f"a day in {day_s:g} s", f"router {router}", f"scaling {scale}", outcome)


def models(mean_replicas: float, seconds: float) -> Iterator[Row]:
    """50 models, each with its share of all requests by Zipf's law."""
    rate = rate_of(mean_replicas, 0.7)
    cumulated = traces.zipf(MODELS)
    shares = [b - a for a, b in zip([0.0, *cumulated], cumulated, strict=False)]
    for router, scale in (("ours", "by work, 0.5 (the default)"), ("Serve's", SERVES)):
        total = Outcome()
        for share in shares:
            steady, most = traces.steady(rate * share), rate * share
            total.add(scaled(router, scale, steady, most, seconds, replicas=1))
        yield Row(f"{MODELS} models", f"router {router}", f"scaling {scale}", total)


def sharing(gpus: int, busy_s: float) -> Iterator[Row]:
    """Half as many models as GPUs, each busy in turn for so long, with what half of the GPUs can
    do: two each, all shared with a floor of one, and as many as they want."""
    number_of = gpus // 2
    low, high = rate_of(1, 0.2), rate_of(gpus / 2, 0.7)

    def curve(number: int) -> Rate:
        return lambda now: high if now // busy_s == number else low

    def run(way: str) -> Outcome:
        clock, total, running = Clock(), Outcome(), []
        for number in range(number_of):
            config = AutoscalingConfig(
                min_replicas=2 if way == "two each" else 1,
                max_replicas=2 if way == "two each" else gpus,
                upscale_delay_s=10,
                downscale_delay_s=60,
            )
            policy: Scale = SharedGpus("fleet", gpus) if way == "shared" else ByWork()
            simulation = Simulation(
                router="ours",
                replicas=config.min_replicas,
                limits=Limits(lora_budget_mb=BUDGET_MB),
                autoscaler=Autoscaler(policy, config, config.min_replicas, f"model-{number}"),
                seed=SEED + number,
                clock=clock,
            )
            chance = Random(SEED + number)
            simulation.begin(traces.arrivals(curve(number), high, number_of * busy_s, chance))
            running.append(simulation)
        while not all(one.done for one in running) and clock.step():
            pass
        for one in running:
            total.add(one.end())
        return total

    for way in ("two each", "shared", "without limit"):
        yield Row(f"{number_of} models", f"{gpus} GPUs", way, run(way))


Scenario = Callable[[], Iterator[Row]]
QUICK: dict[str, Scenario] = {
    "routing": lambda: routing({1: 300, 4: 1000, 32: 3000}),
    "budgets": lambda: budgets(4, 500),
    "bursts": lambda: bursts(4, 1500),
    "day": lambda: day(0.5, 600),
    "sharing": lambda: sharing(3, 300),
}
FULL: dict[str, Scenario] = {
    "routing": lambda: routing({1: 1000, 4: 2000, 32: 4000, 200: 4000, 2000: 6000}),
    "budgets": lambda: budgets(8, 1500),
    "bursts": lambda: bursts(8, 4000),
    "day": lambda: day(1, 900),
    "models": lambda: models(10, 120),
    "sharing": lambda: sharing(6, 600),
}
LONG: dict[str, Scenario] = {
    "routing": lambda: routing({1: 10_000, 4: 40_000, 32: 200_000, 200: 400_000, 2000: 1_000_000}),
    "loads": lambda: loads(32, 200_000),
    "budgets": lambda: budgets(32, 200_000),
    "bursts": lambda: bursts(32, 200_000),
    "day": lambda: day(20, 7200),
    "models": lambda: models(200, 3600),
    "sharing": lambda: sharing(6, 3600),
}
