"""Jobs, and someone who listens to what becomes of them."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from threading import Condition
from time import monotonic, sleep

import pytest
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from deployments.contracts.jobs import (
    FailedImage,
    FinishedImage,
    ImageJob,
    JobEvent,
    LoraWeight,
    Progress,
)
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.steps.preparation import Forgotten, Order, Prepared

WAIT_S = 120.0


def image_job(job_id: str = "job", **fields: object) -> ImageJob:
    """A small job; `fields` replace what it says."""
    small = ImageJob(job_id, "a red fox in the snow", (1,), 128, 128)
    return replace(small, **fields)  # type: ignore[arg-type]


def styles(**weights: float) -> tuple[LoraWeight, ...]:
    """Adapters by name."""
    return tuple(LoraWeight(name, weight) for name, weight in weights.items())


class Listener:
    """Submits jobs to an engine, keeps their events, and acts when one of them progresses."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.events: defaultdict[str, list[JobEvent]] = defaultdict(list)
        self._news = Condition()
        self._unanswered = 0
        self._actions: defaultdict[tuple[str, int], list[Callable[[], None]]] = defaultdict(list)
        self._broken: list[Exception] = []

    def submit(self, *jobs: ImageJob) -> None:
        """Hands jobs to the engine."""
        for job in jobs:
            with self._news:
                self._unanswered += len(job.seeds)
            try:
                self.engine.submit(job, partial(self._hear, job.job_id))
            except Exception:
                with self._news:
                    self._unanswered -= len(job.seeds)
                raise

    def at(self, job_id: str, step: int, action: Callable[[], None]) -> None:
        """Does something on the engine's thread once the job's first image took `step` steps:
        what is submitted or cancelled then is seen by the engine before its next step."""
        self._actions[job_id, step].append(action)

    def wait(self) -> None:
        """Returns when every image has been answered."""
        self.wait_until(lambda: self._unanswered == 0)
        if self._broken:
            raise self._broken[0]

    def wait_until(self, met: Callable[[], bool]) -> None:
        """Returns when `met`, which is asked again at every event."""
        with self._news:
            assert self._news.wait_for(met, WAIT_S), f"still open: {dict(self.events)}"

    def wait_for_step(self, job_id: str, step: int) -> None:
        """Returns when the job's first image has taken `step` steps."""
        self.wait_until(lambda: self.steps(job_id) >= step)

    def steps(self, job_id: str) -> int:
        """Steps that the job's first image is known to have taken."""
        taken = [e.step for e in self.events[job_id] if isinstance(e, Progress)]
        return max(taken, default=0)

    def image(self, job_id: str, index: int = 0) -> FinishedImage:
        """A finished image; raises what it failed with."""
        answer = self._answer(job_id, index)
        if isinstance(answer, FailedImage):
            raise answer.error
        return answer

    def error(self, job_id: str, index: int = 0) -> Exception:
        """What an image failed with."""
        answer = self._answer(job_id, index)
        assert isinstance(answer, FailedImage), f"{job_id}/{index} did not fail"
        return answer.error

    def answered(self, job_id: str) -> bool:
        """Whether any image of the job has been answered."""
        return any(isinstance(e, FinishedImage | FailedImage) for e in self.events[job_id])

    def _answer(self, job_id: str, index: int) -> FinishedImage | FailedImage:
        answers = [
            event
            for event in self.events[job_id]
            if isinstance(event, FinishedImage | FailedImage) and event.image_index == index
        ]
        assert len(answers) == 1, f"{job_id}/{index} was answered {len(answers)} times"
        return answers[0]

    def _hear(self, job_id: str, event: JobEvent) -> None:
        with self._news:
            self.events[job_id].append(event)
        if isinstance(event, Progress) and event.image_index == 0:
            for action in self._actions.pop((job_id, event.step), ()):
                try:
                    action()
                except Exception as error:
                    self._broken.append(error)
        with self._news:
            self._unanswered -= isinstance(event, FinishedImage | FailedImage)
            self._news.notify_all()


def eventually(met: Callable[[], bool], within_s: float = 30.0) -> bool:
    """Whether something that no event tells of comes true."""
    end = monotonic() + within_s
    while not met():
        if monotonic() > end:
            return False
        sleep(0.005)
    return True


def tokenised(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Each text that a tokenizer is given from now on, in this order."""
    texts: list[str] = []
    call = CLIPTokenizer.__call__

    def noted(self: CLIPTokenizer, text: str, **more: object) -> object:
        texts.append(text)
        return call(self, text, **more)

    monkeypatch.setattr(CLIPTokenizer, "__call__", noted)
    return texts


@dataclass(frozen=True)
class UnetCall:
    """One call of the UNet on its way: `run` lets it happen."""

    sample: Tensor
    t: list[int]
    run: Callable[[], Tensor]

    def rows_of(self, *seeds: int) -> list[int]:
        """The rows that take their first step and began with the noise of these seeds."""
        _, *shape = self.sample.shape
        firsts = [first_noise(seed, *shape[1:]) for seed in seeds]
        return [i for i, x in enumerate(self.sample) if any(torch.equal(x, f) for f in firsts)]


def first_noise(seed: int, height: int = 16, width: int = 16) -> Tensor:
    """(4, height, width): the latents that a seed starts from."""
    return torch.randn((1, 4, height, width), generator=torch.Generator().manual_seed(seed))[0]


def tap_unet(engine: Engine, tap: Callable[[UnetCall], Tensor]) -> None:
    """Puts `tap` between an engine and its UNet: it sees, holds, changes or breaks calls."""
    unet = engine.components.unet
    forward = unet.forward

    def tapped(sample: Tensor, timestep: Tensor, **more: object) -> tuple[Tensor]:
        call = UnetCall(sample, timestep.tolist(), lambda: forward(sample, timestep, **more)[0])
        return (tap(call),)

    unet.forward = tapped


class Joins:
    """Knows which rows are being made ready, so that a UNet call can wait for them: then a row
    joins at the call after the one before which it came, however fast the calls are."""

    def __init__(self, engine: Engine) -> None:
        self._news = Condition()
        self._under_way: set[str] = set()
        preparer = engine._preparer
        put, deliver = preparer.put, preparer._deliver

        def asked(order: Order) -> None:
            with self._news:
                self._under_way.add(order.row_id)
            put(order)

        def delivered(news: Prepared | Forgotten) -> None:
            deliver(news)
            with self._news:
                if isinstance(news, Prepared):
                    self._under_way.discard(news.row_id)
                else:
                    gone = {r for r in self._under_way if r.startswith(f"{news.job_key}/")}
                    self._under_way -= gone
                self._news.notify_all()

        preparer.put, preparer._deliver = asked, delivered  # type: ignore[method-assign]

    def wait(self) -> None:
        """Returns when every row that was asked for is there."""
        with self._news:
            assert self._news.wait_for(lambda: not self._under_way, WAIT_S)


class Gate:
    """Holds every UNet call until it is let through and the rows that came before it are ready;
    opens for good at the end of a `with`."""

    def __init__(self, engine: Engine) -> None:
        self.calls: list[list[int]] = []  # timesteps of each call's rows
        self._joins = Joins(engine)
        self._news = Condition()
        self._let = 0.0
        tap_unet(engine, self._hold)

    def wait(self) -> None:
        """Returns when a call stands at the gate."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.calls) > self._let, WAIT_S)

    def let(self, calls: int = 1) -> None:
        """Lets this many calls through, and returns when the next one stands at the gate."""
        for _ in range(calls):
            self.wait()
            with self._news:
                self._let += 1
                self._news.notify_all()
        self.wait()

    def open(self) -> None:
        """Lets everything through from now on."""
        with self._news:
            self._let = float("inf")
            self._news.notify_all()

    def _hold(self, call: UnetCall) -> Tensor:
        with self._news:
            self.calls.append(call.t)
            self._news.notify_all()
            assert self._news.wait_for(lambda: self._let >= len(self.calls), WAIT_S)
        self._joins.wait()
        return call.run()

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *_: object) -> None:
        self.open()
