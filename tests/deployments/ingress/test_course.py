"""What the log says of requests that are work: the whole service over a model that paints."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.testclient import TestClient

from configs.app import ServiceArgs
from deployments.contracts.errors import GenerationFailed, InvalidRequest, NotReady, TcdError
from deployments.contracts.jobs import (
    Caller,
    FailedImage,
    ImageJob,
    ImageRequest,
    ImageResult,
    LoraWeight,
    VideoRequest,
)
from deployments.contracts.refusal import Refusal
from deployments.contracts.stages import Stages
from deployments.diffusion.engine.prompts.tokens import Tokenizers
from deployments.ingress.http.app import make_app
from deployments.ingress.jobs.courses import called
from deployments.ingress.keys.quota import Quota
from deployments.ingress.request.course import Course, begin, current, stage
from deployments.ingress.request.service import Service
from tests.deployments.ingress.jobs.test_called_off import LINES, begun, ended
from tests.deployments.ingress.jobs.test_working import ALICE, ARGS, BALL, House, run
from tests.deployments.ingress.keyed import Keys, Replica, entry
from tests.deployments.ingress.keyed import service as keyed_service
from tests.deployments.ingress.local_jobs import NO_JOBS, local_desk
from tests.deployments.ingress.painter import Painter, painting
from tests.recorder import recorder

GENERATIONS = "/v1/images/generations"
STAGES = Stages("replica-1", 1.0, {"queue": 0.25, "condition": 0.5, "steps": 1.0, "decode": 2.0})
SCOPE = {
    "type": "http",
    "method": "POST",
    "path": GENERATIONS,
    "raw_path": GENERATIONS.encode(),
    "root_path": "",
    "scheme": "http",
    "query_string": b"",
    "headers": [(b"content-type", b"application/json")],
}


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """The lines of requests."""
    heard: list[dict[str, Any]] = []

    class Listening(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            heard.append(json.loads(record.getMessage()))

    logger, handler = logging.getLogger("ray.serve.tcd.requests"), Listening()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield heard
    logger.removeHandler(handler)
    logger.setLevel(level)


def page(service: Service, args: ServiceArgs) -> TestClient:
    return TestClient(make_app(service, local_desk(service, args, NO_JOBS), args))


def told(painter: Painter, *failed: FailedImage) -> None:
    """Has the model say how long it took, and which images failed."""
    submit = painter._submit

    async def timed(job: ImageJob) -> ImageResult | Refusal:
        result = await submit(job)
        assert isinstance(result, ImageResult)
        kept = len(job.seeds) - len(failed)
        images, seeds = result.images[:kept], result.seeds[:kept]
        return replace(result, images=images, seeds=seeds, failed=failed, stages=STAGES)

    painter._submit = timed  # type: ignore[method-assign]


def test_a_request_is_one_line(lines: list[dict[str, Any]]) -> None:
    args = ServiceArgs(aliases={"gpt-image-1": "sd15"})
    service, painter, _ = painting(args)
    told(painter)
    body = {"model": "gpt-image-1", "prompt": "red green", "n": 2, "num_inference_steps": 9}
    answer = page(service, args).post(GENERATIONS, json=body, headers={"x-request-id": "abc"})
    assert answer.status_code == 200, answer.text
    (line,) = lines
    seconds = line.pop("seconds")
    assert line == {
        "id": "abc",
        "route": f"POST {GENERATIONS}",
        "outcome": "completed",
        "status": 200,
        "asked": "gpt-image-1",
        "model": "sd15",
        "width": 64,
        "height": 64,
        "n": 2,
        "steps": 9,
        "loras": 0,
        "controls": 0,
        "ip_adapters": 0,
        "replica": "replica-1",
    }
    order = ["prepare", "queue", "condition", "steps", "decode", "encode", "total"]
    assert list(seconds) == order
    assert {name: seconds[name] for name in STAGES.seconds} == STAGES.seconds
    assert 0 < seconds["prepare"] < seconds["total"]
    assert 0 < seconds["encode"] < seconds["total"]


def test_images_that_failed_are_counted(lines: list[dict[str, Any]]) -> None:
    args = ServiceArgs(default_model="sd15")
    service, painter, _ = painting(args)
    told(painter, FailedImage(1, GenerationFailed("not a number")))
    page(service, args).post(GENERATIONS, json={"prompt": "red", "n": 2, "seed": 1})
    assert (lines[0]["outcome"], lines[0]["failed"]) == ("completed", 1)


@pytest.mark.parametrize("log_prompts", [False, True])
def test_prompts_are_left_out_unless_they_are_wanted(
    lines: list[dict[str, Any]], log_prompts: bool
) -> None:
    args = ServiceArgs(default_model="sd15", log_prompts=log_prompts, max_prompt_chars=10_000)
    service, _, _ = painting(args)
    prompt = "red " + "\u00e9\n" * 2000
    body = {"prompt": prompt, "negative_prompt": "blue"}
    assert page(service, args).post(GENERATIONS, json=body).status_code == 200
    (line,) = lines
    if log_prompts:
        assert line["prompt"] == prompt[:2000] + "..."
        assert line["negative_prompt"] == "blue"
    else:
        assert "red" not in str(line)
        assert "blue" not in str(line)


def of_a_prompt(text: str) -> Refusal:
    """What a replica says of a prompt that it cannot read."""
    with pytest.raises(InvalidRequest) as caught:
        Tokenizers(()).tokenize(text, "prompt", "weighted")
    return Refusal(caught.value)


QUOTING: list[tuple[str, dict[str, Any], Refusal | None, str | None]] = [
    (GENERATIONS, {"prompt": "red"}, of_a_prompt("a <lora:hidden words:1>"), "prompt"),
    (GENERATIONS, {"prompt": "red"}, of_a_prompt("a (hidden words:99)"), "prompt"),
    (GENERATIONS, {"prompt": "red", "hidden words": 1}, None, None),
    (GENERATIONS, {"prompt": "red", "loras": [{"name": "ink", "hidden words": 1}]}, None, None),
    (GENERATIONS, {"prompt": "red", "96a085cf hidden": 1}, None, None),
    ("/sdapi/v1/txt2img", {"prompt": "a <hidden:words>"}, None, "prompt"),
    ("/sdapi/v1/txt2img", {"prompt": "a <lora:ink:hidden>"}, None, "prompt"),
    ("/sdapi/v1/txt2img", {"prompt": f"a <lora:{'hidden' * 99}:1>"}, None, "prompt"),
    (
        "/sdapi/v1/txt2img",
        {"prompt": "red", "alwayson_scripts": {"hidden words": {"args": [True]}}},
        None,
        None,
    ),
]


@pytest.mark.parametrize("log_prompts", [False, True])
@pytest.mark.parametrize(("route", "body", "refusal", "param"), QUOTING)
def test_a_refusal_repeats_no_prompt_unless_it_may(
    lines: list[dict[str, Any]],
    route: str,
    body: dict[str, Any],
    refusal: Refusal | None,
    param: str | None,
    log_prompts: bool,
) -> None:
    replica, args = Replica(), ServiceArgs(default_model="sd15", log_prompts=log_prompts)
    if refusal is not None:
        replica.answers.append(refusal)
    replica.go.set()
    answer = page(keyed_service(replica, Quota(Keys()), args), args).post(route, json=body)
    assert answer.status_code == 400, answer.text
    assert "hidden" in answer.json()["error"]["message"]
    (line,) = lines
    assert line["code"] == "invalid_value"
    if log_prompts:
        message = answer.json()["error"]["message"]
        assert message.startswith(line["reason"].removesuffix("..."))
    else:
        assert "hidden" not in str(line)
        assert line.get("param") == param


def test_a_refusal_says_how_far_it_came(lines: list[dict[str, Any]]) -> None:
    replica, args = Replica(), ServiceArgs(default_model="sd15")
    replica.answers.append(Refusal(NotReady("an adapter does not answer")))
    replica.go.set()
    service = keyed_service(replica, Quota(Keys()), args)
    answer = page(service, args).post(GENERATIONS, json={"prompt": "red"})
    assert answer.status_code == 503
    (line,) = lines
    assert (line["outcome"], line["status"], line["code"]) == ("refused", 503, "not_ready")
    assert line["reason"] == "an adapter does not answer"
    assert (line["model"], line["steps"]) == ("sd15", 4)
    assert list(line["seconds"]) == ["prepare", "total"]


def test_a_stream_has_encoded_each_of_its_images(lines: list[dict[str, Any]]) -> None:
    args = ServiceArgs(default_model="sd15")
    service, _, _ = painting(args)
    body = {"prompt": "red>green", "stream": True, "partial_images": 1, "n": 2}
    assert page(service, args).post(GENERATIONS, json=body).status_code == 200
    (line,) = lines
    assert (line["outcome"], line["n"]) == ("completed", 2)
    assert line["seconds"]["encode"] > 0


def test_who_goes_while_it_is_made(lines: list[dict[str, Any]]) -> None:
    replica, args = Replica(), ServiceArgs(default_model="sd15")
    app = make_app(keyed_service(replica, Quota(Keys()), args), None, args)  # type: ignore[arg-type]
    body = json.dumps({"prompt": "red"}).encode()

    async def live() -> None:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(_: Any) -> None:
            raise AssertionError("nobody is there")

        task = asyncio.create_task(app(dict(SCOPE), receive, send))
        while not replica.jobs:
            await asyncio.sleep(0.01)
        task.cancel()  # as Serve does
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(live())
    (line,) = lines
    assert (line["outcome"], line["status"], line["model"]) == ("cancelled", 499, "sd15")


def test_who_goes_while_it_is_sent(lines: list[dict[str, Any]]) -> None:
    args = ServiceArgs(default_model="sd15")
    service, _, _ = painting(args)
    app = make_app(service, local_desk(service, args, NO_JOBS), args)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps({"prompt": "red"}).encode()}

    async def send(_: Any) -> None:
        raise ConnectionResetError  # as ASGI has it

    with pytest.raises(ConnectionResetError):
        asyncio.run(app(dict(SCOPE), receive, send))
    (line,) = lines
    assert (line["outcome"], line["status"], line["model"]) == ("cancelled", 200, "sd15")
    assert "code" not in line


def test_an_answer_that_fails_midway_is_not_its_clients_doing(lines: list[dict[str, Any]]) -> None:
    args = ServiceArgs(default_model="sd15")
    service, _, _ = painting(args)
    app = make_app(service, local_desk(service, args, NO_JOBS), args)

    async def torn() -> AsyncIterator[bytes]:
        yield b"half of it"
        raise RuntimeError("no more")

    async def answer(_: Request) -> StreamingResponse:
        current().does("tearing")
        return StreamingResponse(torn())

    app.add_route("/torn", answer)
    with pytest.raises(TcdError, match="failed unexpectedly") as raised:  # which Serve's proxy logs
        TestClient(app).get("/torn")
    assert raised.value.__suppress_context__
    (line,) = lines
    assert (line["outcome"], line["status"], line["code"]) == ("broken_off", 500, "internal_error")


def test_what_comes_by_handle_has_a_line_too(lines: list[dict[str, Any]]) -> None:
    args = ServiceArgs(default_model="sd15", max_images=2)
    service, _, _ = painting(args, Quota(Keys(entry("alice"))))
    alice = Caller("alice")

    async def call(n: int) -> None:
        with called("generate", alice, args):
            await service.generate(ImageRequest("red", n=n), alice)

    asyncio.run(call(1))
    with pytest.raises(Exception, match="n is 3"):
        asyncio.run(call(3))
    done, refused = lines
    assert (done["route"], done["key"], done["outcome"]) == ("generate", "alice", "completed")
    assert (refused["outcome"], refused["status"], refused["param"]) == ("refused", 400, "n")


def test_what_nobody_does_has_no_course() -> None:
    async def live() -> None:
        assert not current().work
        current().asks(ImageRequest("red"))
        assert not current().work, "it is forgotten"
        course = Course("abc")
        begin(course)
        with stage("encode"):
            current().asks(ImageRequest("red"))
        assert course.work

    asyncio.run(live())


def test_a_video_and_its_adapters(lines: list[dict[str, Any]]) -> None:
    args = ServiceArgs(default_model="sd15")
    service, _, _ = painting(args)

    async def call() -> None:
        with called("animate", Caller(), args):
            request = VideoRequest("red", num_frames=2, loras=(LoraWeight("ink"),))
            await service.animate(request, lambda _: None)

    asyncio.run(call())
    (line,) = lines
    assert (line["frames"], line["loras"], line["route"]) == (2, 1, "animate")
    assert "key" not in line


def test_a_job_has_a_line_when_it_ends(lines: list[dict[str, Any]], tmp_path: Path) -> None:
    async def live(house: House) -> None:
        house.replica.go.set()
        done = await house.desk.submit(BALL, None, ALICE)
        house.replica.answers.append(Refusal(GenerationFailed("not a number")))
        house.hire()
        await house.until(done, "failed")
        again = await house.desk.submit(BALL, None, ALICE)
        await house.until(again, "completed")
        first, second = (line for line in lines if line["route"] == "job image")
        assert (first["id"], first["key"], first["outcome"]) == (done.id, "alice", "refused")
        assert (first["status"], first["code"]) == (500, "generation_failed")
        assert (second["id"], second["outcome"], second["model"]) == (again.id, "completed", "sd15")
        assert list(second["seconds"]) == ["prepare", "encode", "total"]

    run(House(tmp_path, ARGS), live)


def test_lines_of_a_batch_are_no_part_of_its_course(
    lines: list[dict[str, Any]], tmp_path: Path
) -> None:
    async def live(house: House) -> None:
        house.replica.go.set()
        batch = await begun(house)
        house.hire()
        await ended(house, batch)
        (own,) = (line for line in lines if line["route"] == "job batch")
        assert (own["id"], own["outcome"]) == (batch.id, "completed")
        assert "model" not in own
        assert sum(line["route"] == "job image" for line in lines) == LINES

    run(House(tmp_path, ARGS), live)


def test_the_web_framework_makes_no_spans_beside_serves(lines: list[dict[str, Any]]) -> None:
    recorded, args = recorder(), ServiceArgs(default_model="sd15")
    service, _, _ = painting(args)
    header = f"00-{'1' * 32}-{'2' * 16}-01"
    body = {"prompt": "red"}
    answer = page(service, args).post(GENERATIONS, json=body, headers={"traceparent": header})
    assert answer.status_code == 200
    assert recorded.get_finished_spans() == ()
