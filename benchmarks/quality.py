"""How well the demo's models draw, measured through the service. Results in markdown.

    python -m benchmarks.quality [--pictures N] [--part NAME ...] [--plot FILE]

With 200 pictures all parts take half an hour on two idle cores.

The service runs as `make demo` starts it, with one more model: the sd15 base without its
TCD-LoRA, the teacher. Scenes are held out of training; the checker of `demo/world` judges.
`docs/quality.md` has the results and says what they mean.
"""

import argparse
import copy
import os
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import numpy as np
import torch

from benchmarks.report import machine, print_table
from benchmarks.service import LOGICAL_CPUS, silent
from benchmarks.world import holes, motion, references, samplers, styles
from benchmarks.world.drawing import bodies, draw
from demo.client import Client, Picture
from demo.service import ROOT, Config, demo_config, running
from demo.standins import WEIGHTS
from demo.train.measure import HEADER, adherence, held_out_scenes, row
from demo.world.camera import CAMERA_MOTIONS
from demo.world.scene import Scene, draw_scene
from demo.world.style import STYLES, Style

MODELS = ("sd15", "sd15-inpainting", "sd21", "sdxl", "sdxl-inpainting")
FAMILIES = ("sd15", "sd21", "sdxl")
CONTROLLED = ("sd15", "sdxl")  # that have ControlNets, an IP-Adapter and an inpainting UNet
WEIGHTS_OF_STYLES = (0.0, 0.25, 0.5, 0.75, 1.0)
SCALES = (0.0, 0.5, 1.0)


class Quality:
    """The parts of the measurement, each printing its tables.

    Attributes:
        pictures: in each row of a table; a quarter as many videos.
    """

    def __init__(self, client: Client, pictures: int, plot: Path) -> None:
        self.client, self.pictures, self.plot = client, pictures, plot

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

    def samplers(self) -> None:
        """TCD against the teacher, and what eta does."""
        scenes = held_out_scenes(self.pictures, pairs=0.35)
        rng = np.random.default_rng(77)
        others = [draw_scene(rng, pairs=0.35, held=True) for _ in range(samplers.TRUE_PICTURES)]
        encoder = WEIGHTS / "ip-adapter" / "models" / "image_encoder"
        judge = samplers.Judge(scenes, others, encoder)
        sampler = samplers.Samplers(self.client, scenes, WEIGHTS / "sd15")
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
        points = samplers.compare(judge, sampler, guided)
        kinds = dict.fromkeys(point.setting.sampler for point in points)
        for what, value in (("right", right), ("Fréchet distance", distance)):
            print_table(
                (f"{what}, at steps", *map(str, samplers.STEPS)),
                [
                    (kind, *(value(p) for p in points if p.setting.sampler == kind))
                    for kind in kinds
                ],
            )
        truth = judge.truth()
        print(f"True pictures of these scenes: distance {truth:.2f}\n")
        samplers.plot(points, truth, self.plot)
        print("### Detail by eta (energy of high frequencies, in thousandths)\n")
        print_table(
            ("steps", *(f"eta {eta:g}" for eta in samplers.ETAS)),
            [
                (str(steps), *(f"{1000 * d:.2f}" for d in samplers.detail_by_eta(sampler, steps)))
                for steps in (4, 16)
            ],
        )

    def controls(self) -> None:
        """Edges and depth of references, by ControlNets."""
        given = references.references(held_out_scenes(self.pictures, pairs=0.35))
        print("### ControlNets: agreement with the reference, by conditioning scale\n")
        rows = []
        for model, kind in product(CONTROLLED, ("canny", "depth")):
            cells = []
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
        given = references.references(held_out_scenes(self.pictures, pairs=0.0))
        print("### IP-Adapter without a prompt: share that has what the reference has\n")
        rows = []
        for model, scale in product(CONTROLLED, SCALES):
            drawn = references.varied(self.client, model, given, scale)
            found = references.carried(given, drawn)
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
                found = holes.filled(self.client, model, scenes, preserve=preserve)
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
        """AnimateDiff and motion LoRAs."""
        count = max(4, self.pictures // 4)
        print("### AnimateDiff: share of videos that move as the caption says\n")
        found = motion.obeyed(self.client, held_out_scenes(count, pairs=0.0))
        print_table(
            [kind or "at rest" for kind in found], [[percent(share) for share in found.values()]]
        )
        scenes = [motion.centred(scene) for scene in held_out_scenes(count, pairs=0.0)]
        print("### Motion LoRAs on resting scenes, weight 1, and true videos of a moving camera\n")
        rows = []
        for name in (None, *CAMERA_MOTIONS):
            loras = [] if name is None else [{"name": name, "weight": 1.0}]
            made = motion.videos(self.client, scenes, None, motion_loras=loras)
            rows.append(camera_row(name or "none", scenes, made))
        for name in CAMERA_MOTIONS:
            rows.append(camera_row(f"true {name}", scenes, motion.truly_filmed(scenes, name)))
        print_table(
            ("motion LoRA", "size of the solid, last over first", "drift to the right, pixels"),
            rows,
        )


PARTS: dict[str, Callable[[Quality], None]] = {
    "adherence": Quality.adherence,
    "samplers": Quality.samplers,
    "controls": Quality.controls,
    "ip-adapter": Quality.ip_adapter,
    "styles": Quality.styles,
    "inpainting": Quality.inpainting,
    "motion": Quality.motion,
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
        running(with_teacher(MODELS), "quality", tell=silent) as service,
        Client(service.url) as client,
    ):
        quality = Quality(client, arguments.pictures, arguments.plot)
        for part in arguments.part:
            PARTS[part](quality)


def with_teacher(models: Sequence[str]) -> Config:
    """The demo's config with these models and the sd15 base without its TCD-LoRA."""
    config = demo_config(models)
    applications = config["applications"]
    assert isinstance(applications, list)
    teacher = copy.deepcopy(next(a for a in applications if a["name"] == "model-sd15"))
    teacher["name"] = f"model-{samplers.TEACHER}"
    teacher["args"] |= {
        "name": samplers.TEACHER,
        "tcd_lora": None,
        "controls": {},
        "ip_adapter": None,
        "motion_adapter": None,
    }
    for deployment in teacher["deployments"]:
        deployment["user_config"]["loras"] = {}
        deployment["user_config"]["motion_loras"] = {}
    return config | {"applications": [*applications, teacher]}


def right(point: samplers.Point) -> str:
    """For tables."""
    return percent(point.right)


def distance(point: samplers.Point) -> str:
    """For tables: with two standard errors."""
    return f"{point.distance:.2f} ± {2 * point.error:.2f}"


def camera_row(
    name: str, scenes: Sequence[Scene], made: Sequence[Sequence[Picture]]
) -> tuple[str, str, str]:
    """For tables."""
    grown, gone = motion.camera_motion(scenes, made)
    return name, f"{grown:.2f}", f"{gone:+.1f}"


def percent(share: float) -> str:
    """Of 0 to 1."""
    return f"{100 * share:.0f}"


if __name__ == "__main__":
    main()
