"""A handle call never keeps the replica's event loop from answering others."""

import asyncio
import logging
from threading import Event
from time import monotonic

import pytest
from opentelemetry import trace

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import FinishedImage, ImageJob, PromptSyntax
from deployments.diffusion.call import THREADS, AdmissionThreads, Call
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.policy.spec import PromptIds
from tests.conftest import MakeEngine
from tests.deployments.diffusion.engine.harness import (
    Gate,
    eventually,
    image_job,
    styles,
    tokenised,
)
from tests.recorder import recorder

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
        assert monotonic() - began < 30  # not the 60 that they are held for
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


def test_a_call_that_is_cancelled_before_its_turn_asks_for_nothing(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    read: list[str] = []
    came, go_on = held_admission(engine, "slow")
    held = engine._admission._tokenize

    def noted(text: str, param: str, syntax: PromptSyntax) -> PromptIds:
        read.append(text)
        return held(text, param, syntax)

    engine._admission._tokenize = noted
    threads = AdmissionThreads()

    def called(name: str, prompt: str) -> asyncio.Task[list[FinishedImage]]:
        job = image_job(name, prompt=prompt, num_inference_steps=1)
        return asyncio.create_task(made(Call(engine, job, threads)))

    async def scenario() -> None:
        slow = [called(f"slow {n}", "slow") for n in range(THREADS)]
        while len(read) < THREADS:
            await asyncio.sleep(0.01)
        queued = [called(f"queued {n}", "queued") for n in range(8)]
        last = called("last", "last")
        await asyncio.sleep(0.05)
        for task in queued:
            task.cancel()
        assert all(
            isinstance(answer, asyncio.CancelledError)
            for answer in await asyncio.gather(*queued, return_exceptions=True)
        )
        go_on.set()
        await asyncio.gather(*slow, last)

    asyncio.run(scenario())
    assert came.is_set()
    assert sorted(read) == ["last", *["slow"] * THREADS]
    assert engine.figures().cancelled_total == 0


def test_a_job_that_is_refused_leaves_the_one_of_the_same_id_alone(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    threads = AdmissionThreads()

    async def scenario() -> None:
        with Gate(engine):
            first = asyncio.create_task(made(Call(engine, image_job("same"), threads)))
            while not engine.figures().pending_images:
                await asyncio.sleep(0.001)
            with pytest.raises(InvalidRequest, match="already in the engine"):
                await made(Call(engine, image_job("same"), threads))
        assert len(await first) == 1

    asyncio.run(scenario())


def test_what_is_logged_of_a_refusal_repeats_no_prompt(make_engine: MakeEngine) -> None:
    heard: list[str] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(record.getMessage())

    logger, handler = logging.getLogger("ray.serve"), Listening()
    logger.addHandler(handler)
    try:
        job = image_job("one", prompt="a <lora:hidden words:1>")
        with pytest.raises(InvalidRequest, match="hidden words"):
            asyncio.run(made(Call(make_engine(), job, AdmissionThreads())))
    finally:
        logger.removeHandler(handler)
    assert heard == ["job one: InvalidRequest: in prompt"]


@pytest.mark.parametrize("param", ["prompt", "negative_prompt"])
def test_an_endless_text_is_refused_before_it_is_tokenised(
    param: str, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    job = image_job("long", guidance_scale=5.0, **{param: LONG})
    read = tokenised(monkeypatch)
    with pytest.raises(
        InvalidRequest, match=f"{len(LONG)} characters long; at most 20000"
    ) as caught:
        engine.check(job)
    assert sum(map(len, read)) < len(LONG) / 2
    assert caught.value.param == param
    engine.check(image_job("short"))
    assert read, "nobody would be seen to read"


def test_a_traced_call_has_spans_of_its_stages(make_engine: MakeEngine) -> None:
    engine, threads, recorded = make_engine(), AdmissionThreads(), recorder()
    given_up = image_job("given up", num_inference_steps=50)

    async def scenario() -> None:
        with trace.get_tracer("serve").start_as_current_span("done"):
            job = image_job("done", loras=styles(neon=1.0), num_inference_steps=2)
            await made(Call(engine, job, threads))
        with Gate(engine), trace.get_tracer("serve").start_as_current_span("given up"):
            task = asyncio.create_task(made(Call(engine, given_up, threads)))
            while (stages := engine.stages("given up")) is None or "steps" not in stages.seconds:
                await asyncio.sleep(0.001)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        await made(Call(engine, image_job("of nobody", num_inference_steps=1), threads))

    asyncio.run(scenario())
    spans = recorded.get_finished_spans()
    tops = {span.context.span_id: span.name for span in spans if span.parent is None}
    assert sorted(tops.values()) == ["done", "given up"]
    stages: dict[str, list[str]] = {"done": [], "given up": []}
    for span in spans:
        if span.parent is not None:
            stages[tops[span.parent.span_id]].append(span.name.removeprefix("tcd."))
    whole = ["admit", "adapters", "queue", "condition", "steps", "decode"]
    assert stages["done"] == whole
    assert stages["given up"] == ["admit", "queue", "condition", "steps"], "as far as it came"
