"""The soak's own judgement: what it must not overlook, and what is no fault."""

import asyncio
import base64
import io
import json

import httpx
import numpy as np
import pytest
from PIL import Image

from tests.fake_hub import fake_hub
from tests.soak.asking import Ask, judged
from tests.soak.disk import small_disk
from tests.soak.faults import LOST, Happened, unexplained
from tests.soak.figures import MB, Sample, busy, growths
from tests.soak.gate import Gate, Mode
from tests.soak.judging import Answer, Pictures, Probes
from tests.soak.ledger import Ending, Entry, Ledger
from tests.soak.processes import Process, Use

REQUEST = httpx.Request("POST", "http://service.test/v1/images/generations")
GREY = np.full((8, 8, 3), 128, np.uint8)


def error(code: str) -> bytes:
    return json.dumps({"error": {"message": "why", "type": "t", "code": code}}).encode()


def pictures(probes: Probes | None = None) -> Pictures:
    return Pictures(probes or Probes(), "a cat", 1, (8, 8), "png", 7)


def image(pixels: np.ndarray = GREY, seed: int = 7) -> dict[str, object]:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return {"b64_json": base64.b64encode(file.getvalue()).decode(), "seed": seed}


def body(*images: dict[str, object]) -> bytes:
    return json.dumps({"data": images, "usage": {}, "output_format": "png"}).encode()


def streamed(*named: tuple[str, dict[str, object]]) -> bytes:
    return "".join(f"event: {name}\ndata: {json.dumps(data)}\n\n" for name, data in named).encode()


@pytest.mark.parametrize(
    ("status", "said", "outcome", "shape"),
    [
        (200, body(image()), "answered", ""),
        (200, body(image(seed=8)), "failed", "wrong answer"),
        (200, body(image(GREY[:4])), "failed", "wrong answer"),
        (200, body(image(), image(seed=8)), "failed", "wrong answer"),
        (200, body(), "failed", "wrong answer"),
        (200, b"{}", "failed", "wrong answer"),
        (200, b"no json", "failed", "wrong answer"),
        (503, error("not_ready"), "refused", "503 not_ready"),
        (429, error("queue_full"), "refused", "429 queue_full"),
        (400, error("invalid_value"), "failed", "400 invalid_value"),
        (500, error("internal_error"), "failed", "500 internal_error"),
        (500, b"Internal Server Error", "failed", "plain-text 500"),
        (503, b"", "failed", "plain-text 503"),
    ],
)
def test_what_an_answer_is(status: int, said: bytes, outcome: str, shape: str) -> None:
    ending = judged(Ask("text", REQUEST, pictures().body), Answer(status, {}, said))
    assert (ending.outcome, ending.shape) == (outcome, shape)


@pytest.mark.parametrize(
    ("events", "outcome", "shape"),
    [
        ([("x.completed", image() | {"image_index": 0})], "answered", ""),
        ([("x.partial_image", {})], "failed", "cut stream"),
        ([], "failed", "cut stream"),
        ([("x.completed", image() | {"image_index": 1})], "failed", "wrong answer"),
        ([("error", {"error": {"code": "queue_full"}})], "refused", "event queue_full"),
        ([("error", {"error": {"code": "internal"}})], "failed", "event internal"),
    ],
)
def test_what_a_stream_is(
    events: list[tuple[str, dict[str, object]]], outcome: str, shape: str
) -> None:
    answer = Answer(200, {"content-type": "text/event-stream"}, streamed(*events))
    ending = judged(Ask("stream", REQUEST, pictures().stream), answer)
    assert (ending.outcome, ending.shape) == (outcome, shape)


def test_a_bad_request_must_be_refused_in_its_own_way() -> None:
    bad = Ask("bad", REQUEST, refusals=frozenset({400}), wants_refusal=True)
    assert judged(bad, Answer(400, {}, error("invalid_value"))).outcome == "refused"
    assert judged(bad, Answer(404, {}, error("not_found"))).outcome == "failed"
    assert judged(bad, Answer(200, {}, b"{}")).outcome == "failed"


@pytest.mark.parametrize(("levels", "right"), [(0, True), (1, True), (2, False)])
def test_the_same_request_gives_the_same_picture(levels: int, right: bool) -> None:
    expected = pictures(Probes())
    assert expected.body(Answer(200, {}, body(image()))) is None
    again = expected.body(Answer(200, {}, body(image(GREY + np.uint8(levels)))))
    assert (again is None) == right


def test_a_ledger_is_balanced_once_everything_has_ended_once() -> None:
    ledger = Ledger()
    entry = ledger.asked("text")
    assert not ledger.accounts()["text"].balanced
    ledger.ended(entry, Ending("answered"))
    assert ledger.accounts()["text"].balanced
    with pytest.raises(ValueError, match="twice"):
        ledger.ended(entry, Ending("failed"))


@pytest.mark.parametrize(
    ("asked_at", "ended_at", "shape", "found"),
    [
        (8.0, 11.0, "plain-text 500", 0),
        (26.0, 27.0, "plain-text 500", 1),  # long after
        (8.0, 9.0, "plain-text 500", 1),  # before
        (8.0, 11.0, "wrong answer", 1),  # not by this
    ],
)
def test_a_fault_explains_what_it_may_cost(
    asked_at: float, ended_at: float, shape: str, found: int
) -> None:
    fault = Happened("kill -9 tcd/Ingress", "", LOST, 10.0, 10.1, 20.0)
    entry = Entry("text", asked_at, ended_at, Ending("failed", shape))
    assert len(unexplained([entry], [fault])) == found


@pytest.mark.parametrize(("leak_mb", "flat"), [(0.0, True), (1.0, True), (5.0, False)])
def test_what_grows_is_told(leak_mb: float, flat: bool) -> None:
    """Sampled every five seconds for six minutes."""
    process = Process("tcd/Ingress", 1)
    samples = [
        Sample(5.0 * i, {process: Use(int((100 + leak_mb * i) * MB), 50, 20)}, 0, {})
        for i in range(72)
    ]
    found = {growth.quantity: growth.flat for growth in growths(samples) if "Ingress" in growth.of}
    assert found == {"memory, MB": flat, "handles": True, "threads": True}


def test_what_is_left_is_told() -> None:
    figures = {"tcd_engine_pending_images": 1.0, "tcd_engine_running_rows": 0.0}
    assert busy(Sample(0, {}, 0, figures)) == {"tcd_engine_pending_images": 1.0}
    assert busy(Sample(0, {}, 0, {}))  # no figures are no good news


@pytest.mark.parametrize(
    ("mode", "comes"),
    [
        ("open", "all"),
        ("down", "RemoteProtocolError"),
        ("hangs", "TimeoutError"),
        ("slow", "TimeoutError"),
        ("cuts", "RemoteProtocolError"),
        ("lies", "RemoteProtocolError"),
    ],
)
def test_a_gate(mode: Mode, comes: str) -> None:
    async def fetched(url: str, patience_s: float) -> str:
        try:
            async with httpx.AsyncClient(timeout=None) as client, asyncio.timeout(patience_s):
                answer = await client.get(f"{url}/a/b/resolve/main/c.json")
        except (httpx.HTTPError, TimeoutError) as error:
            return type(error).__name__
        return "all" if answer.content == bytes(5000) else "something else"

    async def run() -> None:
        with fake_hub({"a/b": {"c.json": bytes(5000)}}) as hub:
            async with Gate(int(hub.url.rpartition(":")[2])).listening() as gate:
                gate.change(mode)
                assert await fetched(gate.url, 1.0 if comes == "TimeoutError" else 20.0) == comes
                gate.change("open")
                assert await fetched(gate.url, 20.0) == "all"

    asyncio.run(run())


def test_a_full_disk(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("disk") / "files"
    with small_disk(folder, 1) as disk:
        with disk.full(), pytest.raises(OSError, match=r"No space|Not a directory"):
            (folder / "a").write_bytes(bytes(5000))
        (folder / "a").write_bytes(bytes(5000))
        assert (folder / "a").stat().st_size == 5000
