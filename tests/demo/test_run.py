"""`make demo` as a newcomer runs it: a picture of every task, and nothing left running."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from demo.gallery import CELL, COLUMNS, LABEL, MARGIN
from demo.tasks import FRAMES

ROOT = Path(__file__).resolve().parents[2]


TASKS = (
    "sdxl: text to image",
    "image to image",
    "inpainting",
    "community fine-tune",
    "styles: papercut 0.8, neon 0.5",
    "depth ControlNet",
    "canny ControlNet",
    "IP-Adapter",
    "AnimateDiff",
    "four requests in one batch",
)


def test_demo_draws_every_task_and_stops(demo_models: Path) -> None:
    out = ROOT / "out"
    first, picture, video = out / "first.png", out / "demo.png", out / "demo.webp"
    for file in (first, picture, video):
        file.unlink(missing_ok=True)
    before = ray_processes()
    ran = subprocess.run(
        [sys.executable, "-m", "demo.run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "out/demo.png" in ran.stdout
    before_others, others = ran.stdout.split("out/first.png: the first picture, after ")
    assert "sdxl is ready" in before_others
    assert "sd15 is ready" in others, "nobody waits for the other models to see something"
    with Image.open(first) as shown:
        assert shown.size == (128, 128)
    for task in TASKS:
        assert f"  {task}: " in ran.stdout
    sheet = Image.open(picture)
    rows, columns = -(-len(TASKS) // COLUMNS), COLUMNS
    assert sheet.size == (
        columns * (CELL + MARGIN) + MARGIN,
        rows * (CELL + LABEL + MARGIN) + MARGIN,
    )
    for number in range(len(TASKS)):
        row, column = divmod(number, columns)
        left, top = MARGIN + column * (CELL + MARGIN), MARGIN + row * (CELL + LABEL + MARGIN)
        cell = sheet.crop((left, top, left + CELL, top + CELL))
        assert np.asarray(cell).std() > 10
    with Image.open(video) as frames:
        assert getattr(frames, "n_frames", 1) == FRAMES
    assert ray_processes() <= before, "what it started has stopped; others may have meanwhile"


def ray_processes() -> set[int]:
    """Ray's own node processes of this host."""
    return {p.pid for p in psutil.process_iter(["name"]) if p.info["name"] in RAY_NODE}


RAY_NODE = ("raylet", "gcs_server")
