"""Measures by the checker how well the trained base and its TCD-LoRA follow held-out captions.

python -m demo.train.measure [--family sd15] [--pictures 200] [--sheet FILE]

Plain diffusers pipelines draw; nothing of the service is used.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverSinglestepScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
)
from numpy.typing import NDArray
from PIL import Image

from demo.standins import WEIGHTS
from demo.world.caption import caption, parse
from demo.world.checker import Adherence, check, see
from demo.world.scene import Scene, draw_scene

BATCH = 25
COLUMNS = 10
HEADER = ("sampler", "pictures", "right", *(field.name for field in fields(Adherence)))


Sampler = Literal["DDIM", "DPM-Solver++(2S)", "TCD"]
SCHEDULERS = {
    "DDIM": DDIMScheduler,
    "DPM-Solver++(2S)": DPMSolverSinglestepScheduler,
    "TCD": TCDScheduler,
}


@dataclass(frozen=True)
class Setting:
    """How pictures are sampled: by the base, or with the TCD-LoRA."""

    sampler: Sampler
    steps: int
    guidance: float = 0.0
    eta: float = 0.3  # of TCD

    def __str__(self) -> str:
        """For tables."""
        text = f"{self.sampler}, {self.steps} steps, guidance {self.guidance:g}"
        return f"{text}, eta {self.eta:g}" if self.sampler == "TCD" else text


SETTINGS = (
    *(Setting("DDIM", 50, guidance) for guidance in (1.0, 2.0, 3.0, 5.0)),
    Setting("DDIM", 4, 3.0),
    *(Setting("TCD", steps) for steps in (2, 4, 8)),
)


def held_out_scenes(count: int, *, pairs: float) -> list[Scene]:
    """The scenes that are measured, always the same."""
    rng = np.random.default_rng(2024)
    return [draw_scene(rng, pairs=pairs, held=True) for _ in range(count)]


def draw_all(
    pipe: StableDiffusionPipeline | StableDiffusionXLPipeline,
    texts: Sequence[str],
    setting: Setting,
) -> NDArray[np.uint8]:
    """(texts, side, side, 3), of the family's own size: picture i has seed i."""
    pipe.scheduler = SCHEDULERS[setting.sampler].from_config(pipe.scheduler.config)
    pictures = []
    for start in range(0, len(texts), BATCH):
        part = list(texts[start : start + BATCH])
        seeds = range(start, start + len(part))
        result = pipe(
            part,
            num_inference_steps=setting.steps,
            guidance_scale=setting.guidance,
            eta=setting.eta if setting.sampler == "TCD" else 0.0,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="np",
        ).images
        pictures.append((np.asarray(result) * 255).round().astype(np.uint8))
    return np.concatenate(pictures)


def adherence(scenes: Sequence[Scene], pictures: NDArray[np.uint8]) -> list[Adherence]:
    """What the checker says of each picture."""
    return [
        check(parse(caption(scene)), see(picture))
        for scene, picture in zip(scenes, pictures, strict=True)
    ]


def row(label: str, found: Sequence[Adherence]) -> list[str]:
    """A row below `HEADER`, in percent."""
    names = [field.name for field in fields(Adherence)]
    values = [[float(getattr(a, name)) for a in found] for name in names]
    right = [float(a.right) for a in found]
    cells = [f"{100 * np.mean(value):.1f}" for value in (right, *values)]
    return [label, str(len(found)), *cells]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.train.measure", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--family", choices=["sd15", "sd21", "sdxl"], default="sd15")
    parser.add_argument("--models", type=Path, default=WEIGHTS)
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--pairs", type=float, default=0.0, help="share with two solids")
    parser.add_argument("--lora", type=Path, help="another TCD-LoRA folder")
    parser.add_argument("--only", choices=["base", "tcd"])
    parser.add_argument("--sheet", type=Path, help="where to save some pictures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    pipeline = StableDiffusionXLPipeline if arguments.family == "sdxl" else StableDiffusionPipeline
    pipe = pipeline.from_pretrained(arguments.models / arguments.family, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    scenes = held_out_scenes(arguments.pictures, pairs=arguments.pairs)
    texts = [caption(scene) for scene in scenes]
    print(f"| {' | '.join(HEADER)} |\n{'|---' * len(HEADER)}|")
    rows = []
    loaded = False
    for setting in SETTINGS:
        if arguments.only and (setting.sampler == "TCD") != (arguments.only == "tcd"):
            continue
        if setting.sampler == "TCD" and not loaded:
            folder = arguments.lora or arguments.models / "tcd-lora" / arguments.family
            if not folder.exists():
                break
            pipe.load_lora_weights(folder)
            loaded = True
        pictures = draw_all(pipe, texts, setting)
        cells = row(str(setting), adherence(scenes, pictures))
        print(f"| {' | '.join(cells)} |", flush=True)
        rows.append(np.concatenate([*pictures[:COLUMNS]], axis=1))
    if arguments.sheet:
        sheet = np.concatenate(rows).repeat(2, 0).repeat(2, 1)
        arguments.sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sheet).save(arguments.sheet)


if __name__ == "__main__":
    main()
