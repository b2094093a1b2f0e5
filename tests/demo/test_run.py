"""`make demo` as a newcomer runs it: from nothing to a picture, and nothing left running."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]


def test_demo_makes_a_picture_and_stops(demo_models: Path) -> None:
    picture = ROOT / "out" / "demo.png"
    picture.unlink(missing_ok=True)
    before = ray_processes()
    ran = subprocess.run(
        [sys.executable, "-m", "demo.run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "step 8 of 8" in ran.stdout
    assert "out/demo.png" in ran.stdout
    pixels = np.asarray(Image.open(picture))
    assert pixels.shape == (128, 128, 3)
    assert pixels.std() > 10
    assert ray_processes() == before


def ray_processes() -> set[int]:
    """Ray's own node processes of this host."""
    return {p.pid for p in psutil.process_iter(["name"]) if p.info["name"] in RAY_NODE}


RAY_NODE = ("raylet", "gcs_server")
