"""The wall clock may jump: nothing is timed by it."""

import ast
import itertools
import time
from pathlib import Path

import numpy as np
import pytest

from demo.service import ROOT
from deployments.contracts.errors import DeadlineExceeded
from deployments.contracts.jobs import ImageJob
from tests.conftest import MakeEngine

FOLDERS = ("configs", "deployments", "graphs", "preprocessors")
WALL = {
    *("time.time", "time.time_ns"),
    *(f"{name}.{now}" for name in ("datetime", "date") for now in ("now", "utcnow", "today")),
}
# Who may read it: what answers say of when something was made, and until when it is kept.
STAMPS = {
    "configs/copies.py": 1,  # against the times of files
    "deployments/diffusion/call.py": 1,  # where a span begins
    "deployments/diffusion/deployment.py": 1,
    "deployments/diffusion/engine/policy/stages.py": 1,  # where its spans begin
    "deployments/ingress/answer/temporary.py": 2,  # against the times of files
    "deployments/ingress/http/images.py": 1,
    "deployments/ingress/http/streams.py": 2,
    "deployments/ingress/http/once.py": 1,
    "deployments/ingress/jobs/batches.py": 1,  # whether a day has passed
    "deployments/ingress/jobs/calling.py": 1,
    "deployments/ingress/jobs/desk.py": 3,
    "deployments/ingress/jobs/making.py": 1,
    "deployments/ingress/jobs/working.py": 1,  # how long jobs have waited, for people
    "deployments/jobs/folder.py": 1,  # against the times of files
    "deployments/jobs/queue.py": 1,
}


def readings(file: Path) -> int:
    """How often a source reads the wall clock."""
    tree = ast.parse(file.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "time":
            assert not {"time", "time_ns"} & {alias.name for alias in node.names}, file
    names = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return sum(name in WALL or name.removeprefix("datetime.") in WALL for name in names)


def test_the_wall_clock_is_for_stamps_alone() -> None:
    found = {
        str(file.relative_to(ROOT)): count
        for folder in FOLDERS
        for file in (ROOT / folder).rglob("*.py")
        if (count := readings(file))
    }
    assert found == STAMPS


def test_an_engine_works_while_the_clock_jumps(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("sd15")

    def job(name: str, timeout_s: float) -> ImageJob:
        return ImageJob(name, "a red ball", (1,), 64, 64, timeout_s=timeout_s)

    (before,) = engine.generate(job("before", 60))
    right, jumps = time.time, itertools.cycle((3600.0, -3600.0, 86400.0, -1e9))
    monkeypatch.setattr(time, "time", lambda: right() + next(jumps))
    (meanwhile,) = engine.generate(job("meanwhile", 60))
    assert np.array_equal(before.pixels, meanwhile.pixels)
    with pytest.raises(DeadlineExceeded):
        engine.generate(job("late", 1e-6))
