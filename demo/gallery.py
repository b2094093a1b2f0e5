"""Draws the README's picture: nine requests of three models, each model's in one batch.

python -m demo.gallery [FILE]
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from configs.app import Limits, ModelArgs, ModelUserConfig
from configs.families import FamilyName
from demo.standins import MODELS, write_all
from deployments.contracts.jobs import FinishedImage, ImageJob, LoraWeight, Pixels
from deployments.diffusion.engine.components import load
from deployments.diffusion.engine.engine import Engine

SIDE, LABEL = 192, 18
FAMILIES: tuple[FamilyName, ...] = ("sd15", "sd21", "sdxl")
STYLES = ("papercut", "ink", "neon")
PROMPT = "a red ball on a green table"


def main() -> None:
    """Writes the grid to the file named, or to `out/gallery.png`."""
    file = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("out/gallery.png")
    write_all(MODELS)
    grid = Image.new("RGB", (3 * SIDE, 3 * (SIDE + LABEL)), "white")
    for row, family in enumerate(FAMILIES):
        for column, (label, pixels) in enumerate(_pictures(family)):
            corner = (column * SIDE, row * (SIDE + LABEL))
            ImageDraw.Draw(grid).text((corner[0] + 4, corner[1] + 3), label, fill="black")
            grid.paste(Image.fromarray(pixels), (corner[0], corner[1] + LABEL))
    file.parent.mkdir(parents=True, exist_ok=True)
    grid.save(file)
    print(file)


def _pictures(family: FamilyName) -> list[tuple[str, Pixels]]:
    args = ModelArgs(
        name=family,
        family=family,
        checkpoint=str(MODELS / family),
        tcd_lora=str(MODELS / "tcd-lora" / family),
        dtype="float32",
        device="cpu",
    )
    styles = {name: str(MODELS / "loras" / family / f"{name}.safetensors") for name in STYLES}
    engine = Engine(load(args), ModelUserConfig(loras=styles, limits=Limits()))
    plain = ImageJob("plain", PROMPT, (7,), SIDE, SIDE)
    styled = ImageJob(
        "styled", PROMPT, (7,), SIDE, SIDE, num_inference_steps=8, loras=(LoraWeight("ink", 0.6),)
    )
    guided = ImageJob(
        "guided", PROMPT, (7,), SIDE, SIDE, num_inference_steps=13, guidance_scale=4.0
    )
    try:
        finished: list[tuple[str, Pixels]] = []
        labels = ("4 steps", "8 steps, ink 0.6", "13 steps, guidance 4")
        runs = [engine.events(job) for job in (plain, styled, guided)]
        for label, events in zip(labels, runs, strict=True):
            pixels = [e.pixels for e in events if isinstance(e, FinishedImage)]
            finished.append((f"{family}: {label}", np.asarray(pixels[0])))
        return finished
    finally:
        engine.stop()


if __name__ == "__main__":
    main()
