"""Requests that come at random, in virtual time: when, and what each asks for."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate
from math import cos, pi
from random import Random

from deployments.contracts.jobs import ImageJob, LoraWeight

Rate = Callable[[float], float]  # requests a second, by the time
STEPS = {4: 0.8, 8: 0.15, 16: 0.05}  # shares of requests
ADAPTED = 0.7  # of requests: those that name an adapter
SIDE = 1024


@dataclass(frozen=True)
class Arrival:
    """A request and when it comes."""

    at: float
    job: ImageJob


def steady(rate: float) -> Rate:
    """Poisson arrivals."""
    return lambda _: rate


def bursts(rate: float, period_s: float = 120.0, part: float = 0.1, times: float = 4.0) -> Rate:
    """Poisson arrivals that are `times` as many as on average for `part` of each period."""
    rest = rate * (1 - part * times) / (1 - part)
    return lambda now: times * rate if now % period_s < part * period_s else rest


def wave(rate: float, day_s: float, low: float = 0.2) -> Rate:
    """A day from night to night: from `low` times the average to `2 - low` times."""
    return lambda now: rate * (1 - (1 - low) * cos(2 * pi * now / day_s))


def zipf(number: int, exponent: float = 1.0) -> list[float]:
    """Cumulated shares by rank."""
    shares = [1 / rank**exponent for rank in range(1, number + 1)]
    total = sum(shares)
    return list(accumulate(share / total for share in shares))


def arrivals(
    rate: Rate, most: float, seconds: float, random: Random, adapters: int = 10_000
) -> Iterator[Arrival]:
    """Requests of the first so many seconds, by thinning.

    Args:
        most: that `rate` is never above.
        adapters: how many there are, asked for by Zipf's law.
    """
    ranks, cumulated = range(adapters), zipf(adapters)
    now, number = 0.0, 0
    while (now := now + random.expovariate(most)) < seconds:
        if random.random() * most >= rate(now):
            continue
        loras: tuple[LoraWeight, ...] = ()
        if adapters and random.random() < ADAPTED:
            (rank,) = random.choices(ranks, cum_weights=cumulated)
            loras = (LoraWeight(f"adapter-{rank}"),)
        (steps,) = random.choices(list(STEPS), list(STEPS.values()))
        name = f"job-{number}"
        yield Arrival(now, ImageJob(name, name, (number,), SIDE, SIDE, None, steps, loras=loras))
        number += 1
