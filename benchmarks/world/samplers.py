"""TCD against its teacher, the base with classifier-free guidance, at several numbers of steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from numpy.typing import NDArray

from benchmarks.world.drawing import Pixels, bodies, draw
from benchmarks.world.frechet import Features, frechet_distance, standard_error
from demo.client import Client
from demo.train.measure import Sampler, Setting, adherence, draw_all
from demo.world.caption import caption
from demo.world.renderer import render
from demo.world.scene import Scene

STEPS = (2, 4, 8, 16, 50)
GUIDANCES = (1.0, 1.5, 2.0, 3.0, 5.0)
ETAS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
TRUE_PICTURES = 2000

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """One setting's pictures, measured.

    Attributes:
        right: share that the checker finds right.
        distance: Fréchet distance to true pictures of such scenes.
        error: standard error of the distance.
    """

    setting: Setting
    right: float
    distance: float
    error: float


class Judge:
    """Measures pictures of `scenes` against true ones of `others`, scenes of the same kind.

    Args:
        side: of the pictures, in pixels.
    """

    def __init__(
        self, scenes: Sequence[Scene], others: Sequence[Scene], encoder: Path, side: int
    ) -> None:
        self.scenes, self._side = scenes, side
        self._features = Features(encoder)
        self._true = self._features(self._drawn(others, 50_000))

    def truth(self) -> float:
        """The distance of true pictures of `scenes`: what a perfect sampler has."""
        return frechet_distance(self._true, self._features(self._drawn(self.scenes, 90_000)))

    def _drawn(self, scenes: Sequence[Scene], first: int) -> Pixels:
        pictures = (render(s, first + i, side=self._side) for i, s in enumerate(scenes))
        return np.stack([picture.pixels for picture in pictures])

    def __call__(self, setting: Setting, drawn: Pixels) -> Point:
        """Right and distance."""
        right = np.mean([found.right for found in adherence(self.scenes, drawn)])
        features = self._features(drawn)
        distance = frechet_distance(self._true, features)
        error = standard_error(self._true, features)
        return Point(setting, float(right), distance, error)


def teacher_of(family: str) -> str:
    """The base as a model of the service, without its TCD-LoRA."""
    return f"{family}-teacher"


class Samplers:
    """Draws the scenes by a setting: through the service where it can, else by diffusers.

    At eta 0 the service's TCD step is DDIM's, so the base as a model without its TCD-LoRA is
    the teacher sampled by DDIM. DPM-Solver++(2S) is no sampler of the service.

    Args:
        models: folder of the bases.
    """

    def __init__(self, client: Client, scenes: Sequence[Scene], models: Path, family: str) -> None:
        self._client, self._scenes, self._family = client, scenes, family
        pipeline = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
        self._pipe = pipeline.from_pretrained(models / family, local_files_only=True)
        self._pipe.set_progress_bar_config(disable=True)

    def __call__(self, setting: Setting) -> Pixels:
        """(scenes, side, side, 3), of the family's own size."""
        if setting.sampler == "DPM-Solver++(2S)":
            texts = [caption(scene) for scene in self._scenes]
            return draw_all(self._pipe, texts, setting)
        teacher = setting.sampler == "DDIM"
        asked = bodies(
            self._scenes,
            model=teacher_of(self._family) if teacher else self._family,
            num_inference_steps=setting.steps,
            guidance_scale=setting.guidance if setting.guidance > 1 else 0.0,
            eta=0.0 if teacher else setting.eta,
        )
        return draw(self._client, asked)


def best_guidance(judge: Judge, samplers: Samplers) -> list[Point]:
    """The teacher by DDIM in 50 steps at several guidances, the one with most right first."""
    settings = [Setting("DDIM", 50, guidance) for guidance in GUIDANCES]
    points = [judge(setting, samplers(setting)) for setting in settings]
    return sorted(points, key=lambda point: (-point.right, point.distance))


def compare(
    judge: Judge,
    samplers: Samplers,
    steps_of: Sequence[int],
    guidance: float,
    known: Sequence[Point] = (),
) -> list[Point]:
    """All samplers at these numbers of steps, the teacher with a guidance. What is `known` is not
    drawn again."""
    by_setting = {point.setting: point for point in known}
    points = []
    kinds: tuple[Sampler, ...] = ("TCD", "DDIM", "DPM-Solver++(2S)")
    for sampler in kinds:
        for steps in steps_of:
            setting = Setting(sampler, steps, 0.0 if sampler == "TCD" else guidance)
            points.append(by_setting.get(setting) or judge(setting, samplers(setting)))
    return points


def detail(pixels: Pixels) -> float:
    """Mean energy of high frequencies in pictures (n, 64, 64, 3): their Laplacian's square."""
    grey = pixels.mean(-1) / 255
    across, down = np.diff(grey, 2, axis=2)[:, 1:-1], np.diff(grey, 2, axis=1)[:, :, 1:-1]
    return float(np.square(across + down).mean())


def detail_by_eta(samplers: Samplers, steps: int) -> list[float]:
    """`detail` of TCD at each of `ETAS`."""
    return [detail(samplers(Setting("TCD", steps, eta=eta))) for eta in ETAS]


def plot(points: Sequence[Point], truth: float, file: Path) -> None:
    """Distance (and that of true pictures, `truth`) and adherence over the number of steps."""
    mpl.use("agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for sampler in dict.fromkeys(point.setting.sampler for point in points):
        own = [point for point in points if point.setting.sampler == sampler]
        steps = [point.setting.steps for point in own]
        bars = [2 * point.error for point in own]
        left.errorbar(steps, [point.distance for point in own], bars, fmt="o-", label=sampler)
        right.plot(steps, [100 * point.right for point in own], "o-", label=sampler)
    for axes, title in ((left, "Fréchet distance (lower is better)"), (right, "% right")):
        axes.set(xscale="log", xlabel="steps", title=title)
        axes.set_xticks(STEPS, [str(step) for step in STEPS])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.axhline(truth, color="gray", linestyle=":", label="true pictures")
    left.legend()
    least = min(point.right for point in points)
    right.set_ylim(min(80, 100 * least - 2), 101)  # so that one picture does not look like much
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
