"""Pictures that the safety checker blocks, by every way that they could take out of the service."""

import asyncio
import base64
import json
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import openai
import pytest
import uvicorn
from ray import serve
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError
from starlette.testclient import TestClient

from configs.app import KeysArgs, SafetyArgs, ServiceArgs
from configs.jobs import JobsArgs
from demo.service import free_port
from deployments.contracts.errors import (
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    Moderated,
    TcdError,
    Unchecked,
)
from deployments.contracts.jobs import (
    Caller,
    FinishedImage,
    ImageRequest,
    PartialImage,
    Pixels,
    VideoRequest,
    VideoResult,
)
from deployments.contracts.moderations import CATEGORIES
from deployments.contracts.refusal import Refusal
from deployments.ingress.answer.failures import error_of, failure, passing
from deployments.ingress.http.app import make_app
from deployments.ingress.jobs.making import persevering
from deployments.ingress.keys.quota import Quota
from deployments.ingress.request.service import Service
from tests.deployments.ingress.images import data_url, moderated, png, shown
from tests.deployments.ingress.keyed import Keys, entry
from tests.deployments.ingress.local_jobs import local_desk
from tests.deployments.ingress.painter import Checker, Painter, never, painting, safety
from tests.http_server import running
from tests.safety_models import CONCEPT, GREEN_PICTURE, RED_PICTURE, plain, write_safety_checker

GENERATIONS, MODERATIONS = "/v1/images/generations", "/v1/moderations"
RED, GREEN = data_url(png(RED_PICTURE)), data_url(png(GREEN_PICTURE))
JOBS = JobsArgs(poll_s=0.05)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_safety_checker(tmp_path_factory.mktemp("safety"))


@pytest.fixture(autouse=True)
def _as_in_a_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `serve.batch` asks of the replica that it runs in."""
    config = SimpleNamespace(max_ongoing_requests=64)
    context = SimpleNamespace(_deployment_config=config)
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)


def args_of(folder: Path | None, **more: Any) -> ServiceArgs:
    configured = None if folder is None else safety(folder, **more)
    return ServiceArgs(default_model="sd15", jobs=JOBS, safety=configured)


@contextmanager
def client(args: ServiceArgs, jobs: Path, *keys: str) -> Iterator[TestClient]:
    if keys:
        args = args.model_copy(update={"keys": KeysArgs(env="TCD_TEST_KEYS")})
    quota = Quota(Keys(*map(entry, keys)))
    service, *_ = painting(args, quota)
    app = make_app(service, local_desk(service, args, jobs, quota.keys), args, quota)
    with TestClient(app, base_url="http://service.test") as opened:
        yield opened


def run(
    args: ServiceArgs,
    use: Callable[[Service], Awaitable[Any]],
    instead: Callable[[Pixels], Awaitable[object]] | None = None,
) -> tuple[Any, Painter, Checker]:
    """What `use` makes of a service, whose model and checker come with it."""

    async def lived() -> tuple[Any, Painter, Checker]:
        service, painter, checker = painting(args, None, instead)
        return await asyncio.wait_for(use(service), 20), painter, checker

    return asyncio.run(lived())


def blocked(answer: Any) -> dict[str, Any]:
    """The error of an answer that says that a picture was blocked."""
    assert answer.status_code == 400, answer.text
    assert answer.headers["x-should-retry"] == "false"
    error: dict[str, Any] = answer.json()["error"]
    assert error["code"] == "moderation_blocked"
    assert error["type"] == "image_generation_user_error"
    return error


def events_of(text: str) -> list[tuple[str, dict[str, Any]]]:
    parts = [part.split("\n") for part in text.strip().split("\n\n")]
    return [(p[0].removeprefix("event: "), json.loads(p[1].removeprefix("data: "))) for p in parts]


def test_a_blocked_image(folder: Path, tmp_path: Path) -> None:
    with client(args_of(folder), tmp_path) as at:
        assert at.post(GENERATIONS, json={"prompt": "green"}).status_code == 200
        error = blocked(at.post(GENERATIONS, json={"prompt": "red", "seed": 5}))
        assert error["message"] == (
            f"blocked by the safety checker, which found concept {CONCEPT} in the image of seed 5 "
            "(moderation: auto)"
        )
        several = at.post(GENERATIONS, json={"prompt": "green red", "n": 3, "seed": 5})
        assert "in the image of seed 6" in blocked(several)["message"]
        text = at.get("/metrics").text
    assert 'tcd_moderated_total{outcome="blocked",picture="image"} 3.0' in text
    assert 'tcd_moderated_total{outcome="passed",picture="image"} 2.0' in text


def test_nothing_is_checked_where_nothing_is_configured(tmp_path: Path) -> None:
    with client(args_of(None), tmp_path) as at:
        answer = at.post(GENERATIONS, json={"prompt": "red", "moderation": "auto"})
        assert answer.status_code == 200
        assert answer.json()["ignored"] == ["moderation"]
        assert "tcd_moderated" not in at.get("/metrics").text
        nowhere = at.post(MODERATIONS, json={"input": [picture(RED)]})
        assert nowhere.status_code == 404
        assert "has no safety checker" in nowhere.json()["error"]["message"]
    _, _, checker = run(args_of(None), lambda s: s.generate(ImageRequest("red")))
    assert checker.seen == 0


def test_how_strictly(tmp_path: Path, folder: Path) -> None:
    near = write_safety_checker(tmp_path / "near", red=threshold(folder) + 0.5 - 0.01)
    with client(args_of(near), tmp_path / "jobs") as at:
        blocked(at.post(GENERATIONS, json={"prompt": "red"}))
        blocked(at.post(GENERATIONS, json={"prompt": "red", "moderation": "auto"}))
        low = at.post(GENERATIONS, json={"prompt": "red", "moderation": "low"})
        assert low.status_code == 200
        assert low.json()["ignored"] == []
    with client(args_of(near, moderation="low"), tmp_path / "low") as at:
        assert at.post(GENERATIONS, json={"prompt": "red"}).status_code == 200
        blocked(at.post(GENERATIONS, json={"prompt": "red", "moderation": "auto"}))
    with client(args_of(near, moderation="off"), tmp_path / "off") as at:
        assert at.post(GENERATIONS, json={"prompt": "red"}).status_code == 200
        blocked(at.post(GENERATIONS, json={"prompt": "red", "moderation": "auto"}))
    with client(args_of(near, allow_low=False), tmp_path / "strict") as at:
        for later in ({}, {"async": True}):
            refused = at.post(GENERATIONS, json={"prompt": "a", "moderation": "low", **later})
            assert refused.status_code == 400
            assert refused.json()["error"]["param"] == "moderation"


def threshold(folder: Path) -> float:
    """How far red pictures are beyond the usual threshold."""
    from preprocessors.safety import SafetyChecker

    (seen,) = SafetyChecker(folder, "cpu", "float32").margins([RED_PICTURE])
    return float(seen.concepts[CONCEPT])


def test_a_stream_ends_with_the_error(folder: Path, tmp_path: Path) -> None:
    body = {"prompt": "green red green", "n": 3, "stream": True, "partial_images": 1}
    with client(args_of(folder), tmp_path) as at:
        answer = at.post(GENERATIONS, json=body)
    assert answer.status_code == 200
    events = events_of(answer.text)
    kinds = [kind for kind, _ in events]
    assert kinds == ["image_generation.partial_image", "image_generation.completed", "error"]
    assert events[-1][1]["error"]["code"] == "moderation_blocked"
    for _, data in events[:-1]:
        np.testing.assert_array_equal(shown(base64.b64decode(data["b64_json"])), GREEN_PICTURE)


def test_a_partial_image_that_is_blocked_is_left_out(folder: Path) -> None:
    async def streamed(service: Service) -> list[object]:
        request = ImageRequest("red>green green>green", n=2, partial_images=2)
        return [event async for event in service.stream(request)]

    events, _, _ = run(args_of(folder), streamed)
    seen = [e for e in events if isinstance(e, PartialImage | FinishedImage)]
    assert [type(e) for e in seen] == [FinishedImage, PartialImage, PartialImage, FinishedImage]
    assert all((e.pixels == GREEN_PICTURE).all() for e in seen)


def test_every_frame_of_a_video_is_checked(folder: Path) -> None:
    def animated(prompt: str) -> Callable[[Service], Awaitable[Any]]:
        return lambda s: s.animate(VideoRequest(prompt, num_frames=20), lambda _: None)

    video, _, checker = run(args_of(folder), animated("green"))
    assert video.frames.shape[0] == checker.seen == 20
    last = " ".join(["green"] * 19 + ["red"])
    with pytest.raises(Moderated, match=r"found concept 7 in frame 20 \(moderation: auto\)"):
        run(args_of(folder), animated(last))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_picture_to_start_from_is_checked_before_any_work(folder: Path, kind: str) -> None:
    red, green = png(RED_PICTURE), png(GREEN_PICTURE)

    def asked(image: bytes) -> Callable[[Service], Awaitable[Any]]:
        if kind == "image":
            return lambda s: s.generate(ImageRequest("green", image=image))
        return lambda s: s.animate(VideoRequest("green", image=image), lambda _: None)

    _, painter, _ = run(args_of(folder), asked(green))
    assert len(painter.jobs) == 1

    async def refused(service: Service) -> None:
        with pytest.raises(Moderated, match="in the picture to start from") as caught:
            await asked(red)(service)
        assert caught.value.param == "image"

    _, painter, _ = run(args_of(folder), refused)
    assert not painter.jobs


@pytest.mark.parametrize(
    ("path", "body"),
    [(GENERATIONS, {"async": True, "partial_images": 2}), ("/v1/videos", {"num_frames": 3})],
)
def test_a_job_fails(folder: Path, tmp_path: Path, path: str, body: dict[str, Any]) -> None:
    with client(args_of(folder), tmp_path) as at:
        job = at.post(path, json={"prompt": "red", **body}).json()
        where = f"{path if 'videos' in path else '/v1/jobs'}/{job['id']}"
        deadline = time.monotonic() + 20
        while (job := at.get(where).json())["status"] != "failed":
            assert time.monotonic() < deadline, job
            time.sleep(0.05)
        assert job["error"]["code"] == "moderation_blocked"
    assert not list(tmp_path.rglob("*.png")), "nothing of it is kept"


def test_a_request_with_a_key_to_repeat_it(folder: Path, tmp_path: Path) -> None:
    with client(args_of(folder), tmp_path) as at:
        for _ in range(2):
            answer = at.post(
                GENERATIONS, json={"prompt": "red"}, headers={"idempotency-key": "once"}
            )
            blocked(answer)


def test_a_line_of_a_batch_fails(folder: Path, tmp_path: Path) -> None:
    lines = [
        {"custom_id": word, "method": "POST", "url": GENERATIONS, "body": {"prompt": word}}
        for word in ("red", "green")
    ]
    with client(args_of(folder), tmp_path) as at:
        text = "\n".join(map(json.dumps, lines))
        files = {"file": ("lines.jsonl", text.encode())}
        sent = at.post("/v1/files", data={"purpose": "batch"}, files=files).json()
        body = {
            "input_file_id": sent["id"],
            "endpoint": GENERATIONS,
            "completion_window": "24h",
        }
        batch = at.post("/v1/batches", json=body).json()
        deadline = time.monotonic() + 30
        while (batch := at.get(f"/v1/batches/{batch['id']}").json())["status"] != "completed":
            assert time.monotonic() < deadline, batch
            time.sleep(0.1)
        failed = at.get(f"/v1/files/{batch['error_file_id']}/content").text
    assert json.loads(failed)["custom_id"] == "red"
    assert '"moderation_blocked"' in failed


def test_a1111s_clients(folder: Path, tmp_path: Path) -> None:
    with client(args_of(folder), tmp_path) as at:
        body = {"prompt": "red", "width": 64, "height": 64, "steps": 4}
        blocked(at.post("/sdapi/v1/txt2img", json=body))


def test_the_error_crosses_handles() -> None:
    import pickle

    error = Moderated("blocked", "image")
    again = pickle.loads(pickle.dumps(error))
    assert (again.args, str(again), again.param) == (error.args, "blocked", "image")
    said = failure(again).body.error
    assert said.code is not None
    rebuilt = error_of(said.code, said.message, said.param)
    assert (type(rebuilt), rebuilt.args) == (Moderated, error.args)
    assert not passing(said.code)  # a job does not try again


async def _dead(_: Pixels) -> None:
    raise ActorDiedError()


async def _full(_: Pixels) -> None:
    raise BackPressureError(1, 1)


async def _unable(_: Pixels) -> Refusal:
    return Refusal(GenerationFailed("the picture could not be preprocessed"))


async def _broken(_: Pixels) -> None:
    raise RuntimeError("no checker of this world")


@pytest.mark.parametrize("way", ["generate", "stream", "animate"])
@pytest.mark.parametrize(
    ("instead", "error"),
    [
        (never, Unchecked),
        (_dead, Unchecked),
        (_full, DeadlineExceeded),  # for room it waits, as long as the request has
        (_unable, GenerationFailed),
        (_broken, RuntimeError),
    ],
)
def test_no_picture_is_shown_unchecked(
    folder: Path,
    way: str,
    instead: Callable[[Pixels], Awaitable[object]],
    error: type[Exception],
) -> None:
    shown: list[object] = []
    timeout_s = 1 if error is DeadlineExceeded else 20

    async def asked(service: Service) -> None:
        if way == "generate":
            shown.append(await service.generate(ImageRequest("green", timeout_s=timeout_s)))
        elif way == "animate":
            request = VideoRequest("green", num_frames=2, timeout_s=timeout_s)
            shown.append(await service.animate(request, lambda _: None))
        else:
            async for event in service.stream(
                ImageRequest("green", partial_images=1, timeout_s=timeout_s)
            ):
                if isinstance(event, PartialImage | FinishedImage):
                    shown.append(event)

    with pytest.raises(error):
        run(args_of(folder, timeout_s=0.05), asked, instead)
    assert not shown


@pytest.mark.parametrize("instead", [never, _dead, _full])
def test_what_is_drawn_is_not_drawn_anew(
    folder: Path, instead: Callable[[Pixels], Awaitable[object]]
) -> None:
    """A job is asked again for what passes; what has cost its work does not."""

    drawn: list[VideoRequest] = []

    async def made(service: Service) -> None:
        async def attempt() -> VideoResult:
            drawn.append(VideoRequest("green", num_frames=2, timeout_s=1))
            return await service.animate(drawn[-1], lambda _: None)

        await persevering(15, attempt)

    with pytest.raises((Unchecked, DeadlineExceeded)) as seen:
        run(args_of(folder, timeout_s=0.05), made, instead)
    assert len(drawn) == 1
    assert failure(seen.value).status == (408 if instead is _full else 503)


def test_the_requests_own_time_counts(folder: Path) -> None:
    request = ImageRequest("green", timeout_s=0.1)
    with pytest.raises(DeadlineExceeded, match=r"within 0\.1 s"):
        run(args_of(folder), lambda s: s.generate(request), never)


def test_keys_see_what_was_blocked(folder: Path, tmp_path: Path) -> None:
    alice = {"authorization": "Bearer alice"}
    with client(args_of(folder), tmp_path, "alice") as at:
        assert at.post(MODERATIONS, json={"input": [picture(RED)]}).status_code == 401
        for prompt in ("red", "green"):
            at.post(GENERATIONS, json={"prompt": prompt}, headers=alice)
        (usage,) = at.get("/v1/usage", headers=alice).json()["data"]
    assert usage["requests"] == {
        "answered": 1,
        "refused": 0,
        "failed": 0,
        "cancelled": 0,
        "moderated": 1,
    }
    assert usage["images"] == 1
    assert usage["work"] == 2 * 4 * 64  # what was blocked cost as much


def picture(url: str) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": url}}


def test_moderations_by_the_official_client(folder: Path, tmp_path: Path) -> None:
    args = args_of(folder)
    service, _, _ = painting(args)
    app = make_app(service, local_desk(service, args, tmp_path), args)
    config = uvicorn.Config(app, port=free_port(), log_level="error")
    with running(config) as url:
        official = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
        answer = official.moderations.create(
            model="omni-moderation-latest",
            input=[moderated(RED), moderated(GREEN)],
        )
        with pytest.raises(openai.BadRequestError, match="no model of texts is here"):
            official.moderations.create(input="a text")
        bad = data_url(b"nothing of the kind")
        with pytest.raises(openai.BadRequestError, match="of an unknown format") as refused:
            official.moderations.create(input=[moderated(bad)])
        assert refused.value.param == "input.0.image_url.url"
    assert answer.id.startswith("modr-")
    assert answer.model == str(folder)
    red, green = answer.results
    assert (red.flagged, green.flagged) == (True, False)
    assert (red.categories.sexual, green.categories.sexual) == (True, False)
    assert not red.categories.violence_graphic
    assert red.category_scores.sexual > 0.5 >= green.category_scores.sexual >= 0
    assert red.category_applied_input_types.sexual == ["image"]
    assert red.category_applied_input_types.hate == []


@pytest.mark.parametrize(
    ("given", "param", "says"),
    [
        ("a text", "input", "no model of texts"),
        (["a text"], "input.0", "no model of texts"),
        ([{"type": "text", "text": "a"}], "input.0", "no model of texts"),
        ([], "input", "at least 1"),
        ([{"type": "image_url"}], "input.0.image_url", "required"),
        (
            [{"type": "image_url", "image_url": {"url": "ftp://a/b"}}],
            "input.0.image_url.url",
            "dat",
        ),
        ([picture(GREEN)] * 17, "input", "16 at most"),
    ],
)
def test_moderations_that_are_refused(
    folder: Path, tmp_path: Path, given: object, param: str, says: str
) -> None:
    with client(args_of(folder), tmp_path) as at:
        answer = at.post(MODERATIONS, json={"input": given})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param
    assert says in error["message"]


def test_every_category_of_the_client_is_said() -> None:
    from openai.types.moderation import Categories

    aliases = [field.alias or name for name, field in Categories.model_fields.items()]
    assert set(aliases) == set(CATEGORIES)


def test_concurrent_pictures_share_a_batch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from preprocessors.safety import SafetyChecker

    sizes: list[int] = []
    real = SafetyChecker.margins

    def counted(self: SafetyChecker, images: Any) -> Any:
        sizes.append(len(images))
        return real(self, images)

    monkeypatch.setattr(SafetyChecker, "margins", counted)
    colors = [plain(20, 200, level) for level in range(0, 160, 10)]

    async def all_at_once(service: Service) -> Any:
        return await service.moderator.judged(colors)

    verdicts, _, _ = run(args_of(folder), all_at_once)
    assert len(verdicts) == len(colors) == sum(sizes)
    assert max(sizes) > 1


def test_a_caller_in_python_may_say_it_too(folder: Path) -> None:
    with pytest.raises(Moderated):
        run(args_of(folder), lambda s: s.generate(ImageRequest("red"), Caller("someone")))
    assert issubclass(Moderated, TcdError)
    assert not issubclass(Moderated, InvalidRequest)  # whose work would be given back
    with pytest.raises(ValueError, match="moderation"):
        ImageRequest("a", moderation="off")  # type: ignore[arg-type]
    assert SafetyArgs(checkpoint="a/b").moderation == "auto"
