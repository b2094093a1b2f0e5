"""A handle call never keeps the replica's event loop from answering others."""

import asyncio
from threading import Event
from time import monotonic

import pytest

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import FinishedImage, ImageJob, PromptSyntax
from deployments.diffusion.call import AdmissionThreads, Call
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.policy.spec import PromptIds
from tests.conftest import MakeEngine
from tests.deployments.diffusion.engine.harness import eventually, image_job, styles

LONG = "word " * 19_999  # as long as a job may carry it


async def made(call: Call) -> list[FinishedImage]:
    events = call.events((), progress=False)
    return [event async for event in events if isinstance(event, FinishedImage)]


def held_admission(engine: Engine, text: str) -> tuple[Event, Event]:
    """Has the tokenizer wait at this text: an event of its having come, and what it waits for."""
    came, go_on = Event(), Event()
    tokenize = engine._admission._tokenize

    def held(given: str, param: str, syntax: PromptSyntax) -> PromptIds:
        if given == text:
            came.set()
            assert go_on.wait(60)
        return tokenize(given, param, syntax)

    engine._admission._tokenize = held
    return came, go_on


def test_others_are_answered_while_jobs_are_admitted(make_engine: MakeEngine) -> None:
    engine = make_engine()
    _, go_on = held_admission(engine, "slow")
    threads = AdmissionThreads()

    def call(job: ImageJob) -> Call:
        return Call(engine, job, threads)

    async def scenario() -> None:
        slow = [
            image_job(f"slow {n}", prompt="slow", loras=styles(neon=1.0), num_inference_steps=1)
            for n in range(8)
        ]
        waiting = [asyncio.create_task(made(call(job))) for job in slow]
        began = monotonic()
        await asyncio.sleep(0.05)
        assert monotonic() - began < 1
        assert len(await made(call(image_job("plain", num_inference_steps=1)))) == 1
        assert not any(task.done() for task in waiting)
        go_on.set()
        assert [len(images) for images in await asyncio.gather(*waiting)] == [1] * 8

    asyncio.run(scenario())


def test_a_call_that_is_cancelled_while_it_is_admitted_leaves_nothing_behind(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    came, go_on = held_admission(engine, "slow")
    threads = AdmissionThreads()

    async def scenario() -> None:
        job = image_job("slow", prompt="slow", num_inference_steps=50)
        task = asyncio.create_task(made(Call(engine, job, threads)))
        while not came.is_set():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await asyncio.to_thread(eventually, lambda: engine.figures().cancelled_total == 1, 30.0)

    asyncio.run(scenario())
    assert engine.figures().cancelled_total == 1
    assert engine.figures().pending_images == 0


def test_a_job_that_is_refused_leaves_the_one_of_the_same_id_alone(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    threads = AdmissionThreads()

    async def scenario() -> None:
        first = asyncio.create_task(made(Call(engine, image_job("same"), threads)))
        while not engine.figures().pending_images:
            await asyncio.sleep(0.001)
        with pytest.raises(InvalidRequest, match="already in the engine"):
            await made(Call(engine, image_job("same"), threads))
        assert len(await first) == 1

    asyncio.run(scenario())


@pytest.mark.parametrize("param", ["prompt", "negative_prompt"])
def test_an_endless_text_is_refused_before_it_is_tokenised(
    param: str, make_engine: MakeEngine
) -> None:
    engine = make_engine()
    job = image_job("long", guidance_scale=5.0, **{param: LONG})
    began = monotonic()
    with pytest.raises(
        InvalidRequest, match=f"{len(LONG)} characters long; at most 20000"
    ) as caught:
        engine.check(job)
    assert monotonic() - began < 0.2
    assert caught.value.param == param
