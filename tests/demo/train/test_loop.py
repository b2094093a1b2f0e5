"""The training loop: what it minimises, and that a broken run ends like an unbroken one."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from demo.train.loop import Settings, Task, train

SETTINGS = Settings(60, 0.05, warmup=5, ema_decay=0.9, save_every_s=0)


class Line(Task):
    """Finds the line y = 3 x + 1."""

    def __init__(self, stop_at: int | None = None) -> None:
        torch.manual_seed(0)
        self.layer = nn.Linear(1, 1)
        self.trained = nn.ModuleDict({"line": self.layer})
        self.stop_at = stop_at
        self.steps: list[int] = []

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        if self.stop_at is not None and len(self.steps) == self.stop_at:
            raise KeyboardInterrupt
        x = torch.rand(16, 1, generator=generator)
        return {"loss": (self.layer(x) - 3 * x - 1).square().mean()}

    def after_step(self, step: int) -> None:
        self.steps.append(step)

    def values(self) -> list[float]:
        return [float(p.detach()) for p in self.layer.parameters()]


def test_it_minimises_and_writes_a_history(tmp_path: Path) -> None:
    task = Line()
    history = train(task, replace(SETTINGS, steps=400), tmp_path, 16)
    assert task.values() == pytest.approx([3, 1], abs=0.1)
    assert task.steps == list(range(1, 401))
    assert history[-1].step == 400
    assert {file.name for file in tmp_path.iterdir()} == {"checkpoint.pt", "history.json"}


def test_a_broken_run_ends_like_an_unbroken_one(tmp_path: Path) -> None:
    whole, broken, resumed = Line(), Line(stop_at=25), Line()
    train(whole, SETTINGS, tmp_path / "whole", 16)
    with pytest.raises(KeyboardInterrupt):
        train(broken, SETTINGS, tmp_path / "broken", 16)
    train(resumed, SETTINGS, tmp_path / "broken", 16)
    assert resumed.steps == list(range(26, 61))
    assert resumed.values() == whole.values()


def test_a_finished_run_is_not_repeated(tmp_path: Path) -> None:
    first, second = Line(), Line()
    history = train(first, SETTINGS, tmp_path, 16)
    assert train(second, SETTINGS, tmp_path, 16) == history
    assert second.steps == []
    assert second.values() == first.values()
