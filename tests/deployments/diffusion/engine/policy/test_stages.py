"""A job's stages follow one another without a gap."""

import time
from types import SimpleNamespace

import pytest

from deployments.diffusion.engine.policy import stages
from deployments.diffusion.engine.policy.stages import StageClock


class Time:
    """Two clocks that are moved together."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(stages, "monotonic", lambda: self.now)
        wall = SimpleNamespace(time=lambda: 1_700_000_000 + self.now)
        monkeypatch.setattr(stages, "time", wall)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Time:
    return Time(monkeypatch)


def test_one_image(clock: Time) -> None:
    job = StageClock(styled=True)
    for stage, seconds in (("queue", 1), ("condition", 2), ("steps", 4)):
        clock.now += seconds
        job.begun(stage)  # type: ignore[arg-type]
    clock.now += 8
    job.ended("steps")
    clock.now += 16
    read = job.read("engine")
    assert read.engine == "engine"
    assert read.seconds == {"adapters": 1, "queue": 2, "condition": 4, "steps": 8, "decode": 16}
    assert list(read.seconds) == ["adapters", "queue", "condition", "steps", "decode"]
    began = 1_700_000_100
    assert [(span.start - began, span.end - began) for span in read.spans()] == [
        (0, 1),
        (1, 3),
        (3, 7),
        (7, 15),
        (15, 31),
    ]


def test_of_several_images_the_first_begins_and_the_last_ends(clock: Time) -> None:
    job = StageClock(styled=False)
    clock.now += 1
    job.begun("condition")
    clock.now += 1
    job.begun("steps")
    job.begun("condition")  # the second image has a place only now
    clock.now += 1
    job.ended("steps")
    job.begun("steps")
    clock.now += 5
    job.ended("steps")
    clock.now += 1
    assert job.read("").seconds == {"queue": 1, "condition": 1, "steps": 6, "decode": 1}


def test_what_a_job_did_not_come_to_is_not_there(clock: Time) -> None:
    job = StageClock(styled=False)
    clock.now += 3
    assert job.read("").seconds == {"queue": 3}
    job.begun("condition")
    assert job.read("").seconds == {"queue": 3, "condition": 0}


def test_the_clocks_are_those_of_the_machine() -> None:
    before = time.time()
    assert before <= StageClock(styled=False).read("").began_at <= time.time()
