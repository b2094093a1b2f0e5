"""The training loop of every stage: seeded, resumable, with a moving average of the weights."""

import json
import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

CHECKPOINT = "checkpoint.pt"
HISTORY = "history.json"
LAST_RATE = 0.02  # of the learning rate, at the end


class Task(ABC):
    """What a stage trains.

    Attributes:
        trained: the modules whose parameters change; those without gradient stay.
    """

    trained: nn.ModuleDict

    @abstractmethod
    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """The losses of one batch, drawn with `generator` (on the CPU); "loss" is minimised."""

    def after_step(self, step: int) -> None:
        """Called once the weights have changed for the `step`-th time, from 1."""
        del step

    def resumed(self, step: int) -> None:
        """Called before the first batch, when `step` steps have been taken, perhaps 0."""
        del step


@dataclass(frozen=True)
class Settings:
    """How long and how fast to train.

    Attributes:
        steps: of the optimiser, in all.
        learning_rate: the highest; after `warmup` steps it falls along a cosine.
        ema_decay: of the weights' moving average, at most; it is less in the beginning.
        seed: of the batches. Its number and the seed fix a batch, so a resumed run sees the same.
        first_batch: the number of the first.
        save_every_s: seconds between checkpoints.
        bfloat16: whether layers compute in it.
    """

    steps: int
    learning_rate: float
    warmup: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    seed: int = 0
    first_batch: int = 0
    save_every_s: float = 60.0
    log_every_s: float = 15.0
    bfloat16: bool = False


@dataclass(frozen=True)
class Record:
    """One line of the history: means since the line before."""

    step: int
    seconds: float
    losses: dict[str, float]


def train(task: Task, settings: Settings, folder: Path, batch_size: int) -> list[Record]:
    """Train to the last step, from the checkpoint in `folder` if there is one.

    In the end `task.trained` holds the averaged weights, and `folder` a history of the losses
    and the checkpoint of the last step, with which another call is done at once.
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Run(task, settings, folder)
    run.load()
    task.resumed(run.step)
    device = next(task.trained.parameters()).device.type
    started, saved = time.perf_counter() - run.seconds, time.perf_counter()
    logged, logged_step = time.perf_counter(), run.step
    sums: dict[str, Tensor] = {}
    while run.step < settings.steps:
        number = settings.first_batch + run.step
        generator = torch.Generator().manual_seed(settings.seed * 10_000_019 + number)
        with torch.autocast(device, torch.bfloat16, enabled=settings.bfloat16):
            losses = task.losses(generator)
        run.update(losses["loss"])
        for name, loss in losses.items():
            sums[name] = sums.get(name, torch.zeros(())) + loss.detach().float().cpu()
        now = time.perf_counter()
        run.seconds = now - started
        last = run.step == settings.steps
        if last or now - logged >= settings.log_every_s:
            count = run.step - logged_step
            record = Record(
                run.step, round(run.seconds, 1), {k: float(v) / count for k, v in sums.items()}
            )
            run.history.append(record)
            pace = count / (now - logged)
            print(_line(folder.name, record, settings.steps, pace, batch_size), flush=True)
            logged, logged_step, sums = now, run.step, {}
        if last or now - saved >= settings.save_every_s:
            run.save()
            saved = now
    run.finish()
    return run.history


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """Those that are trained."""
    return [parameter for parameter in module.parameters() if parameter.requires_grad]


class _Run:
    def __init__(self, task: Task, settings: Settings, folder: Path) -> None:
        self.task, self.settings, self.folder = task, settings, folder
        self.step = 0
        self.seconds = 0.0
        self.history: list[Record] = []
        self.parameters = parameters(task.trained)
        self.average = [parameter.detach().clone() for parameter in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def update(self, loss: Tensor) -> None:
        """One step of the optimiser and of the average."""
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.optimizer.step()
        self.step += 1
        decay = min(self.settings.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, [*self.parameters], 1 - decay)
        self.task.after_step(self.step)

    def _rate(self) -> float:
        warmup = min(1.0, (self.step + 1) / max(1, self.settings.warmup))
        fall = 0.5 * (1 + math.cos(math.pi * self.step / self.settings.steps))
        return self.settings.learning_rate * warmup * (LAST_RATE + (1 - LAST_RATE) * fall)

    def save(self) -> None:
        state = {
            "step": self.step,
            "seconds": self.seconds,
            "modules": self.task.trained.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        temporary = self.folder / f"{CHECKPOINT}.part"
        torch.save(state, temporary)
        temporary.replace(self.folder / CHECKPOINT)
        lines = [{"step": r.step, "seconds": r.seconds, "losses": r.losses} for r in self.history]
        (self.folder / HISTORY).write_text(json.dumps(lines, indent=1) + "\n")

    def load(self) -> None:
        file = self.folder / CHECKPOINT
        if not file.exists():
            return
        device = self.parameters[0].device
        state = torch.load(file, map_location=device, weights_only=True)
        self.step, self.seconds = state["step"], state["seconds"]
        self.task.trained.load_state_dict(state["modules"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        lines = json.loads((self.folder / HISTORY).read_text())
        self.history = [Record(r["step"], r["seconds"], r["losses"]) for r in lines]

    @torch.no_grad()
    def finish(self) -> None:
        """Put the averaged weights in place."""
        for parameter, average in zip(self.parameters, self.average, strict=True):
            parameter.copy_(average)


def _line(name: str, record: Record, steps: int, pace: float, batch_size: int) -> str:
    losses = " ".join(f"{key} {value:.4f}" for key, value in record.losses.items())
    left = (steps - record.step) / pace / 60
    return (
        f"{name}: step {record.step}/{steps}, {pace * batch_size:.0f} samples/s, "
        f"{left:.1f} min left, {losses}"
    )
