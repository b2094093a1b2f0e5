"""The course of a request: what is known of it, and how long its stages took. In the end it is one
line of the log, as JSON.

A request has a task of its own, and so has its course: whatever is done for it finds it there.
"""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from time import perf_counter
from typing import Literal

from deployments.contracts.api import ErrorBody
from deployments.contracts.jobs import ImageJob, ImageRequest, VideoRequest
from deployments.contracts.stages import STAGES, Stages
from deployments.tracing.spans import note, span

Outcome = Literal["completed", "accepted", "refused", "broken_off", "cancelled"]
Stage = Literal["prepare", "encode"]
Shown = str | int | None
MAX_LOGGED = 300  # characters of what the client said
MAX_PROMPT = 2000  # the same of a prompt
DIGITS = 4  # of seconds: tenths of a millisecond
FIELD = re.compile(r"[\w.\[\]-]*", re.ASCII)  # that has a name, or none
TRACED = (
    "route",
    "key",
    "outcome",
    "status",
    "code",
    "job",
    "model",
    "replica",
)  # by the span, too
# Below Serve's own logger: its handlers write to the replica's log, with the request's id.
log = logging.getLogger("ray.serve.tcd.requests")


class Course:
    """What becomes of one request.

    Args:
        request_id: as the answer has it.
        log_prompts: its prompts may be logged.

    Attributes:
        key: name of the key that it came with; `None`: it came with none.
        work: something is to be made, or was to be.
    """

    def __init__(self, request_id: str = "", *, log_prompts: bool = False) -> None:
        self._log_prompts = log_prompts
        self._id = request_id
        self._began = perf_counter()
        self._said: dict[str, Shown] = {}
        self._seconds: dict[str, float] = {}
        self._error: tuple[int, ErrorBody | None] | None = None
        self._job: str | None = None
        self._awaited = False
        self._failed = 0
        self.key: str | None = None
        self.work = False

    def asks(self, request: ImageRequest | VideoRequest) -> None:
        """For what it is, as the caller says it."""
        self.work = True
        self._said["asked"] = request.model
        if self._log_prompts:
            self._said["prompt"] = _cut(request.prompt, MAX_PROMPT)
            self._said["negative_prompt"] = _cut(request.negative_prompt, MAX_PROMPT)

    def does(self, what: str) -> None:
        """Work that no model does."""
        self.work = True
        self._said["does"] = what

    def means(self, model: str) -> None:
        """The model that answers."""
        self._said["model"] = model

    def becomes(self, job: ImageJob) -> None:
        """The job that it means for its model."""
        self._said |= {
            "width": job.width,
            "height": job.height,
            "frames": job.num_frames,
            "n": len(job.seeds),
            "steps": job.num_inference_steps,
            "loras": len(job.loras) + len(job.motion_loras),
            "controls": len(job.controls),
            "ip_adapters": len(job.ip_adapters),
        }

    def made(self, stages: Stages | None, failed: int = 0) -> None:
        """Its model has answered, or one more of its images; so many of them failed."""
        if failed:
            self._failed += failed
            self._said["failed"] = self._failed
        if stages is not None:
            self._said["replica"] = stages.engine
            for name, seconds in stages.seconds.items():
                self._seconds[name] = seconds

    def accepted(self, job_id: str, *, awaited: bool) -> None:
        """It is a job, for which somebody waits at an open connection, or nobody does."""
        self.work = True
        self._job, self._awaited = job_id, awaited

    def fails(self, status: int, error: ErrorBody | None) -> None:
        """It has ended with an error, and the status that this is."""
        self._error = (status, error)

    def took(self, stage: Stage, seconds: float) -> None:
        """So long in a stage, beside what it has had there."""
        self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds

    def tell(self, route: str, outcome: Outcome, status: int | None = None) -> None:
        """Writes the line, and says the same of the current span.

        Args:
            route: as the application declares it; of a call by handle the method, of a job its
                kind.
            status: of the answer over HTTP.
        """
        if outcome == "completed" and self._job is not None and not self._awaited:
            outcome = "accepted"
        failed_with, error = self._error or (status, None)
        said: dict[str, Shown] = {
            "id": _cut(self._id),
            "route": _cut(route),
            "key": self.key,
            "outcome": outcome,
            "status": failed_with,
            "job": self._job,
            **self._said,
        }
        if error is not None:
            said |= self._told(error)
        known = {name: value for name, value in said.items() if value is not None}
        traced = {name: known[name] for name in TRACED if name in known}
        note(**{name: value for name, value in traced.items() if isinstance(value, str | int)})
        seconds = {name: round(took, DIGITS) for name, took in self._in_order()}
        broken = failed_with is not None and failed_with >= 500
        log.log(
            logging.WARNING if broken else logging.INFO,
            "%s",
            json.dumps({**known, "seconds": seconds}),
            extra={"request_id": known["id"]},
        )

    def _told(self, error: ErrorBody) -> dict[str, Shown]:
        """What the answer says went wrong. What is wrong with a prompt is said with its words, and
        what a field is called may be a client's own: without leave for prompts neither is told."""
        param = error.param or ""
        named = self._log_prompts or FIELD.fullmatch(param) is not None
        told: dict[str, Shown] = {"code": error.code}
        if named:
            told["param"] = _cut(error.param)
        if named and (self._log_prompts or "prompt" not in param):
            told["reason"] = _cut(error.message)
        return told

    def _in_order(self) -> Iterator[tuple[str, float]]:
        engine = {name: took for name, took in self._seconds.items() if name in STAGES}
        for name in ("prepare", *engine, "encode"):
            if name in self._seconds:
                yield name, self._seconds[name]
        yield "total", perf_counter() - self._began


_CURRENT: ContextVar[Course] = ContextVar("tcd_course")


def begin(course: Course) -> None:
    """What this task does from now on is this request's."""
    _CURRENT.set(course)


def current() -> Course:
    """That of the request which this task works on; of none, one that nobody will read."""
    return _CURRENT.get(None) or Course()


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """The block as a stage of the current request: in its line, and as a span."""
    began = perf_counter()
    try:
        with span(name):
            yield
    finally:
        current().took(name, perf_counter() - began)


def _cut(text: str | None, most: int = MAX_LOGGED) -> str | None:
    """What a client made up may be as long as it likes; a line may not."""
    return text if text is None or len(text) <= most else text[:most] + "..."
