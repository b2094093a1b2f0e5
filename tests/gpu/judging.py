"""How far an image may be from what diffusers makes of the same request on the same device.

In single precision, as far as batches and other kernels round: `TOLERANCE`, or, where a random
network makes more of rounding, a few times what the same pipeline differs between device and CPU.

In half precision nobody is right to more than two or three digits, and two computations that
differ in one rounding end percents apart. So both are held against the truth, which is the same
pipeline in single precision with the same noise: on the whole, the engine's images are no further
from it than those of diffusers' own pipeline in half precision. What is drawn by lot of each
image's ratio is allowed for, the less the more images there are. That no part of a request is
dropped is shown in single precision.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log, sqrt
from statistics import mean

from deployments.contracts.jobs import Latents
from tests.deployments.diffusion.engine.oracle import (
    LATENT_TOLERANCE,
    PIXEL_TOLERANCE,
    Answer,
    distance,
    levels_apart,
)
from tests.deployments.diffusion.engine.pipelines import Pipelines, Tape
from tests.deployments.diffusion.engine.tasks import Made, Task

TOLERANCE = LATENT_TOLERANCE  # relative, of latents
DEVICES = 3.0  # times what one pipeline differs between two devices
CLEARLY_WRONG = 1e-2  # whatever devices do
ON_THE_WHOLE = 1.1  # times the error of diffusers in half precision
LOT = 0.4  # standard deviation of the logarithm of an image's ratio, as measured
EACH = 4.0  # of any one image


@dataclass(frozen=True)
class Errors:
    """What an image and diffusers' own are away from the truth, relative to it."""

    name: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        """1: as good as diffusers."""
        return self.ours / self.theirs


def errors(name: str, ours: Latents, theirs: Latents, truth: Latents) -> Errors:
    """Errors of latents; pixels are judged where VAEs are."""
    return Errors(name, distance(ours, truth), distance(theirs, truth))


def truths(task: Task, index: int, half: Pipelines, single: Pipelines) -> tuple[Answer, Answer]:
    """What diffusers makes of an image in half precision, and the truth."""
    tape = Tape()
    with tape.recording():
        theirs = half.image(task, index)
    with tape.playing():
        return theirs, single.image(task, index)


def assert_as_good(judged: Sequence[Errors]) -> None:
    """Half precision: no worse than diffusers' own."""
    for one in sorted(judged, key=lambda one: -one.ratio):
        print(f"{one.name:32} ours {one.ours:.1e}  theirs {one.theirs:.1e}  {one.ratio:.2f}")
    whole = exp(mean(log(one.ratio) for one in judged))
    allowed = ON_THE_WHOLE * exp(2 * LOT / sqrt(len(judged)))
    print(f"on the whole {whole:.2f} of {allowed:.2f} allowed")
    assert whole <= allowed, f"errors are {whole:.2f} times those of diffusers"
    assert [one for one in judged if one.ratio > EACH] == []


def assert_equal(made: Made, tasks: Sequence[Task], here: Pipelines, on_the_cpu: Pipelines) -> None:
    """Single precision: each image is the one that diffusers makes alone."""
    for one in tasks:
        for index in range(len(one.job.seeds)):
            name = f"{one.job.job_id}/{index}"
            ours, theirs = made[one.job.job_id, index], here.image(one, index)
            error = distance(ours.latents, theirs.latents)
            if error > TOLERANCE:
                rounding = distance(on_the_cpu.image(one, index).latents, theirs.latents)
                print(f"{name} is {error:.1e} off; diffusers on the CPU {rounding:.1e}")
                assert error <= min(DEVICES * rounding, CLEARLY_WRONG), name
            else:
                apart = levels_apart(ours.pixels, theirs.pixels)
                assert apart <= PIXEL_TOLERANCE, f"{name}: pixels are {apart} levels off"
