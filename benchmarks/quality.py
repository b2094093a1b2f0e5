"""How well the demo's models draw, measured through the service. Results in markdown.

    python -m benchmarks.quality [--pictures N] [--part NAME ...] [--plot FILE]

With 200 pictures all parts take long: `--part` chooses.

The service runs as `make demo` starts it, with two more models: the bases of sd15 and sdxl without
their TCD-LoRAs, the teachers. Scenes are held out of training; the checker of `demo/world` judges.
`docs/quality.md` has the results and says what they mean.
"""

import argparse
import copy
import os
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import machine, print_table
from benchmarks.service import LOGICAL_CPUS, silent
from benchmarks.world import holes, motion, references, samplers, styles
from benchmarks.world.drawing import bodies, draw
from benchmarks.world.samplers import Judge, Samplers
from benchmarks.world.sharpness import sharpness
from demo.client import Client
from demo.service import ROOT, Config, demo_config, running
from demo.standins import WEIGHTS
from demo.train.data import blown_up
from demo.train.measure import HEADER, adherence, held_out_scenes, row
from demo.world.camera import CAMERA_MOTIONS
from demo.world.renderer import SIDE
from demo.world.scene import draw_scene
from demo.world.style import STYLES, Style

MODELS = ("sd15", "sd15-inpainting", "sd21", "sdxl", "sdxl-inpainting")
FAMILIES = ("sd15", "sd21", "sdxl")
CONTROLLED = ("sd15", "sdxl")  # that have ControlNets, an IP-Adapter and an inpainting UNet
SIDES = {"sd15": SIDE, "sdxl": 2 * SIDE}  # of pictures that requests bring along
TAUGHT = ("sd15", "sdxl")  # whose teachers are served, too
FEW_STEPS, FEW_STEPS_GUIDANCE = (2, 4, 8), 2.0
WEIGHTS_OF_STYLES = (0.0, 0.25, 0.5, 0.75, 1.0)
WEIGHTS_OF_MOTION = (0.5, 1.0, 1.5)
SCALES = (0.0, 0.5, 1.0)


class Quality:
    """The parts of the measurement, each printing its tables.

    Attributes:
        pictures: in each row of a table.
        videos: a quarter as many, and four at least.
    """

    def __init__(self, client: Client, pictures: int, plot: Path) -> None:
        self.client, self.pictures, self.plot = client, pictures, plot
        self.videos = max(4, pictures // 4)

    def adherence(self) -> None:
        """Held-out captions at four steps, by all families; one solid and two."""
        print("### Held-out captions, TCD, 4 steps\n")
        rows = []
        for family in FAMILIES:
            for pairs, what in ((0.0, "one solid"), (1.0, "two solids")):
                scenes = held_out_scenes(self.pictures, pairs=pairs)
                drawn = draw(self.client, bodies(scenes, model=family))
                rows.append(row(f"{family}, {what}", adherence(scenes, drawn)))
        print_table(HEADER, rows)

    def sizes(self) -> None:
        """sdxl at the sizes that it learned, and told that the larger was blown up."""
        scenes = held_out_scenes(self.pictures, pairs=0.35)
        large = np.stack([given.pixels for given in references.references(scenes, SIDES["sdxl"])])
        small = np.stack([given.pixels for given in references.references(scenes)])
        print("### sdxl by size, TCD, 4 steps; true pictures\n")
        rows = []
        for size, original in (("64x64", "64x64"), ("128x128", "128x128"), ("128x128", "64x64")):
            asked = bodies(scenes, model="sdxl", size=size, original_size=original)
            drawn = draw(self.client, asked)
            right = percent(float(np.mean([one.right for one in adherence(scenes, drawn)])))
            rows.append((size, original, right, f"{sharpness(drawn):.1f}"))
        rows.append(("true 128x128", "", "", f"{sharpness(large):.1f}"))
        rows.append(("true 64x64, blown up", "", "", f"{sharpness(blown_up(small)):.1f}"))
        print_table(("size", "original_size", "right", "sharpness"), rows)

    def samplers(self) -> None:
        """TCD against the teacher, and what eta does."""
        judge, sampler = self._judge_and_samplers("sd15")
        print("### The teacher's guidance, DDIM, 50 steps\n")
        guided = samplers.best_guidance(judge, sampler)
        print_table(
            ("guidance", "right", "Fréchet distance"),
            [
                (f"{p.setting.guidance:g}", percent(p.right), distance(p))
                for p in sorted(guided, key=lambda point: point.setting.guidance)
            ],
        )
        print("### TCD against its teacher\n")
        guidance = guided[0].setting.guidance
        points = samplers.compare(judge, sampler, samplers.STEPS, guidance, guided)
        truth = judge.truth()
        print_points(points, truth)
        samplers.plot(points, truth, self.plot)
        print("### Detail by eta (energy of high frequencies, in thousandths)\n")
        print_table(
            ("steps", *(f"eta {eta:g}" for eta in samplers.ETAS)),
            [
                (str(steps), *(f"{1000 * d:.2f}" for d in samplers.detail_by_eta(sampler, steps)))
                for steps in (4, 16)
            ],
        )

    def few_steps(self) -> None:
        """The same at few steps on sdxl, whose pictures are larger."""
        judge, sampler = self._judge_and_samplers("sdxl")
        print(f"### TCD against its teacher, sdxl, guidance {FEW_STEPS_GUIDANCE:g}\n")
        points = samplers.compare(judge, sampler, FEW_STEPS, FEW_STEPS_GUIDANCE)
        print_points(points, judge.truth())

    def _judge_and_samplers(self, family: str) -> tuple[Judge, Samplers]:
        scenes = held_out_scenes(self.pictures, pairs=0.35)
        rng = np.random.default_rng(77)
        others = [draw_scene(rng, pairs=0.35, held=True) for _ in range(samplers.TRUE_PICTURES)]
        encoder = WEIGHTS / "ip-adapter" / "models" / "image_encoder"
        judge = Judge(scenes, others, encoder, SIDES[family])
        return judge, Samplers(self.client, scenes, WEIGHTS, family)

    def controls(self) -> None:
        """Edges and depth of references, by ControlNets."""
        scenes = held_out_scenes(self.pictures, pairs=0.35)
        print("### ControlNets: agreement with the reference, by conditioning scale\n")
        rows = []
        given_to = {model: references.references(scenes, SIDES[model]) for model in CONTROLLED}
        for model, kind in product(CONTROLLED, ("canny", "depth")):
            given, cells = given_to[model], []
            for scale in SCALES:
                drawn = references.controlled(self.client, model, given, kind, scale)
                if kind == "canny":
                    cells.append(references.edge_agreement(given, drawn))
                else:
                    cells.append(references.depth_agreement(self.client, given, drawn))
            rows.append((f"{model}, {kind}", *(f"{cell:.2f}" for cell in cells)))
        print_table(("control", *(f"scale {scale:g}" for scale in SCALES)), rows)

    def ip_adapter(self) -> None:
        """What an IP-Adapter carries over."""
        scenes = held_out_scenes(self.pictures, pairs=0.0)
        print("### IP-Adapter without a prompt: share that has what the reference has\n")
        rows = []
        given_to = {model: references.references(scenes, SIDES[model]) for model in CONTROLLED}
        for model, scale in product(CONTROLLED, SCALES):
            drawn = references.varied(self.client, model, given_to[model], scale)
            found = references.carried(given_to[model], drawn)
            shares = (found.colour, found.shape, found.place, found.background)
            rows.append((model, f"{scale:g}", *map(percent, shares)))
        print_table(("model", "scale", "colour", "shape", "place", "background"), rows)

    def styles(self) -> None:
        """Style LoRAs, alone and mixed."""
        scenes = held_out_scenes(self.pictures, pairs=0.35)
        score = styles.StyleScores(scenes)
        print("### Style LoRAs: style score (plain scenes 0, styled ones 1) by weight\n")
        rows = []
        for model, style in product(FAMILIES, STYLES):
            drawn = [
                styles.styled(self.client, model, scenes, {style: weight})
                for weight in WEIGHTS_OF_STYLES
            ]
            rows.append((f"{model}, {style}", *(f"{score(pixels, style):.2f}" for pixels in drawn)))
        print_table(("style", *(f"{weight:g}" for weight in WEIGHTS_OF_STYLES)), rows)
        mixes: tuple[dict[Style, float], ...] = (
            {"ink": 0.5},
            {"papercut": 0.5},
            {"ink": 0.5, "papercut": 0.5},
        )
        rows = []
        for model, mix in product(FAMILIES, mixes):
            drawn_mix = styles.styled(self.client, model, scenes, mix)
            name = f"{model}, " + " + ".join(f"{style} {weight:g}" for style, weight in mix.items())
            rows.append((name, *(f"{score(drawn_mix, s):.2f}" for s in STYLES)))
        print_table(("mix", *(f"{style} score" for style in STYLES)), rows)

    def inpainting(self) -> None:
        """Holes filled by both kinds of inpainting."""
        scenes = held_out_scenes(self.pictures, pairs=1.0)
        print("### Inpainting: the right solid made anew\n")
        rows = []
        for family in CONTROLLED:
            for model, preserve in product((f"{family}-inpainting", family), (True, False)):
                found = holes.filled(self.client, model, scenes, SIDES[family], preserve=preserve)
                rows.append(
                    (
                        model,
                        str(preserve).lower(),
                        percent(found.right),
                        f"{found.changed:.1f} ({found.changed_most})",
                        f"{found.seam:.1f} ({found.true_seam:.1f})",
                    )
                )
        print_table(
            (
                "model",
                "preserve_unmasked",
                "right",
                "change outside: mean (largest), of 255",
                "step across the border (before), of 255",
            ),
            rows,
        )

    def motion(self) -> None:
        """Whether AnimateDiff's videos move as their captions say."""
        print("### AnimateDiff: share of videos that move as the caption says\n")
        found = motion.obeyed(self.client, held_out_scenes(self.videos, pairs=0.0))
        print_table(
            [kind or "at rest" for kind in found], [[percent(share) for share in found.values()]]
        )

    def cameras(self) -> None:
        """Motion LoRAs, by weight, beside true videos of a moving camera."""
        scenes = [motion.centred(scene) for scene in held_out_scenes(self.videos, pairs=0.0)]
        print("### Motion LoRAs on resting scenes; in brackets, true videos of a moving camera\n")
        still = motion.camera_motion(scenes, motion.videos(self.client, scenes, None))
        rows = [("none", "", *(f"{one:.2f}" for one in still))]
        for name, weight in product(CAMERA_MOTIONS, WEIGHTS_OF_MOTION):
            loras = [{"name": name, "weight": weight}]
            made = motion.videos(self.client, scenes, None, motion_loras=loras)
            found = motion.camera_motion(scenes, made)
            true = motion.camera_motion(scenes, motion.truly_filmed(scenes, name, weight))
            pairs = zip(found, true, strict=True)
            rows.append((name, f"{weight}", *(f"{one:.2f} ({other:.2f})" for one, other in pairs)))
        print_table(
            (
                "motion LoRA",
                "weight",
                "size of the solid, last over first",
                "drift to the right, pixels",
                "dirt in the last sky, of 255",
            ),
            rows,
        )


PARTS: dict[str, Callable[[Quality], None]] = {
    "adherence": Quality.adherence,
    "sizes": Quality.sizes,
    "samplers": Quality.samplers,
    "few-steps": Quality.few_steps,
    "controls": Quality.controls,
    "ip-adapter": Quality.ip_adapter,
    "styles": Quality.styles,
    "inpainting": Quality.inpainting,
    "motion": Quality.motion,
    "cameras": Quality.cameras,
}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--pictures", type=int, default=200, help="in each row (200)")
    names = f"of {', '.join(PARTS)} (all)"
    parser.add_argument(
        "--part", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=names
    )
    plot = ROOT / "docs" / "images" / "quality.png"
    parser.add_argument("--plot", type=Path, default=plot, help="where the samplers' plot goes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    os.environ.update(LOGICAL_CPUS)
    print(f"{machine()}; {arguments.pictures} pictures a row\n")
    with (
        running(with_teachers(MODELS), "quality", tell=silent) as service,
        Client(service.url) as client,
    ):
        quality = Quality(client, arguments.pictures, arguments.plot)
        for part in arguments.part:
            PARTS[part](quality)


def with_teachers(models: Sequence[str]) -> Config:
    """The demo's config with these models and bases without their TCD-LoRAs."""
    config = demo_config(models)
    applications = config["applications"]
    assert isinstance(applications, list)
    by_name = {application["name"]: application for application in applications}
    teachers = [_teacher(family, by_name[f"model-{family}"]) for family in TAUGHT]
    return config | {"applications": [*applications, *teachers]}


def _teacher(family: str, application: dict[str, Any]) -> dict[str, Any]:
    teacher, name = copy.deepcopy(application), samplers.teacher_of(family)
    teacher["name"] = f"model-{name}"
    teacher["args"] |= {
        "name": name,
        "tcd_lora": None,
        "controls": {},
        "ip_adapter": None,
        "motion_adapter": None,
    }
    for deployment in teacher["deployments"]:
        deployment["user_config"]["loras"] = {}
        deployment["user_config"].pop("motion_loras", None)
    return teacher


def print_points(points: Sequence[samplers.Point], truth: float) -> None:
    """Tables of what is right and of distances, and what true pictures have."""
    kinds = dict.fromkeys(point.setting.sampler for point in points)
    steps = dict.fromkeys(str(point.setting.steps) for point in points)
    for what, value in (("right", right), ("Fréchet distance", distance)):
        print_table(
            (f"{what}, at steps", *steps),
            [(kind, *(value(p) for p in points if p.setting.sampler == kind)) for kind in kinds],
        )
    print(f"True pictures of these scenes: distance {truth:.2f}\n")


def right(point: samplers.Point) -> str:
    """For tables."""
    return percent(point.right)


def distance(point: samplers.Point) -> str:
    """For tables: with two standard errors."""
    return f"{point.distance:.2f} ± {2 * point.error:.2f}"


def percent(share: float) -> str:
    """Of 0 to 1."""
    return f"{100 * share:.0f}"


if __name__ == "__main__":
    main()
