"""How long a job was where in its engine comes with its images."""

import time

from torch import Tensor

from deployments.contracts.errors import DeadlineExceeded
from deployments.contracts.jobs import FailedImage, FinishedImage, JobEvent, LoraWeight
from tests.conftest import MakeEngine
from tests.deployments.diffusion.engine.harness import (
    Gate,
    Listener,
    UnetCall,
    image_job,
    tap_unet,
)


def test_stages_add_up_to_the_time_that_it_took(make_engine: MakeEngine) -> None:
    engine = make_engine()

    def slowly(call: UnetCall) -> Tensor:
        time.sleep(0.5)  # beside which it is little, how late anybody hears of it
        return call.run()

    tap_unet(engine, slowly)
    job = image_job("styled", num_inference_steps=4, loras=(LoraWeight("ink"),))
    began, at = time.perf_counter(), time.time()
    (image,) = engine.generate(job)
    took = time.perf_counter() - began
    stages = image.stages
    assert stages is not None
    assert stages.engine == "engine"
    assert list(stages.seconds) == ["adapters", "queue", "condition", "steps", "decode"]
    assert all(seconds >= 0 for seconds in stages.seconds.values())
    assert stages.seconds["steps"] > 0
    assert sum(stages.seconds.values()) <= took
    assert sum(stages.seconds.values()) > took / 2, "the rest is admission"
    assert at <= stages.began_at <= at + took


def test_steps_last_until_the_last_image_has_taken_its_last(make_engine: MakeEngine) -> None:
    images = make_engine().generate(image_job("two", seeds=(1, 2), num_inference_steps=4))
    read = [image.stages for image in images if image.stages is not None]
    assert len(read) == 2
    assert all(list(one.seconds) == ["queue", "condition", "steps", "decode"] for one in read)
    assert read[0].began_at == read[1].began_at


def test_one_that_came_too_late_says_where_it_was(make_engine: MakeEngine) -> None:
    engine = make_engine()
    came: list[JobEvent] = []
    engine.submit(image_job("late", num_inference_steps=50, timeout_s=0.05), came.append)
    end = time.monotonic() + 30
    while not any(isinstance(event, FailedImage | FinishedImage) for event in came):
        assert time.monotonic() < end
        time.sleep(0.01)
    failed = came[-1]
    assert isinstance(failed, FailedImage)
    assert isinstance(failed.error, DeadlineExceeded)
    assert failed.stages is not None
    assert "decode" not in failed.stages.seconds
    assert sum(failed.stages.seconds.values()) >= 0.04


def test_a_job_can_be_asked_how_far_it_is(make_engine: MakeEngine) -> None:
    engine = make_engine()
    listener = Listener(engine)
    with Gate(engine) as gate:
        listener.submit(image_job("long", num_inference_steps=50))
        gate.let(1)
        stages = engine.stages("long")
        assert stages is not None
        assert list(stages.seconds) == ["queue", "condition", "steps"]
        engine.cancel("long")
    listener.wait()
    assert engine.stages("long") is None
