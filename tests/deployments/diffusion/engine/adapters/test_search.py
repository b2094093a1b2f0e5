"""Adapters of `loras_from`: the same pictures as listed ones, and what a crowd, an outage, a wrong
file or an unknown name costs."""

import asyncio
import gc
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Event, Lock
from time import monotonic
from typing import Any
from weakref import ref

import numpy as np
import pytest

from configs import s3_collection
from configs.app import Limits, ModelUserConfig
from configs.collection import Held
from configs.s3_collection import S3Collection
from configs.sources import SourceUnavailable
from deployments.contracts.errors import InvalidRequest, NotFound, NotReady
from deployments.contracts.jobs import FinishedImage, Pixels
from deployments.diffusion.call import SEEKING_THREADS, AdmissionThreads, Call
from deployments.diffusion.engine.adapters import errands, search, sources
from deployments.diffusion.engine.adapters.errands import Silent
from deployments.diffusion.engine.adapters.search import LoraSearch
from deployments.diffusion.engine.engine import Engine
from tests.conftest import MakeEngine, demo_loras
from tests.deployments.diffusion.engine.harness import eventually, image_job, styles
from tests.http_server import serving
from tests.object_store import BUCKET, CREDENTIALS, ObjectStore

ROOT = f"s3://{BUCKET}/loras/"


@pytest.fixture(autouse=True)
def errands_end() -> Iterator[None]:
    """What is still asked of a bucket that gives no answer ends before the next test begins."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if thread.name == "tcd-errand":
            thread.join(30)


@pytest.fixture
def store(
    object_store: ObjectStore, demo_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ObjectStore:
    """The demo's styles in S3, and an empty cache here."""
    monkeypatch.setenv("TCD_CACHE", str(tmp_path / "cache"))
    for name, path in demo_loras(demo_models, "sd15").items():
        put(object_store, name, Path(path))
    return object_store


def put(store: ObjectStore, name: str, path: Path) -> None:
    key = f"loras/{name}.safetensors"
    store.client.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())


def looking_in(engine: Engine, root: str, limits: Limits | None = None) -> Engine:
    """The engine, with no adapter listed."""
    engine.reconfigure(ModelUserConfig(loras_from=root, limits=limits or Limits()))
    return engine


def pixels(engine: Engine, name: str, **fields: object) -> Pixels:
    job = image_job("job", loras=styles(**{name: 0.7}), num_inference_steps=2, **fields)
    return engine.generate(job)[0].pixels


@pytest.fixture
def threads() -> AdmissionThreads:
    """A replica's."""
    return AdmissionThreads()


async def crowd(
    engine: Engine, threads: AdmissionThreads, names: list[str]
) -> list[list[FinishedImage] | BaseException]:
    """What comes of requests that come all at once, for an adapter each."""

    async def one(number: int, name: str) -> list[FinishedImage]:
        job = image_job(str(number), loras=styles(**{name: 1.0}), num_inference_steps=1)
        events = Call(engine, job, threads).events((), progress=False)
        return [event async for event in events if isinstance(event, FinishedImage)]

    answers = (one(number, name) for number, name in enumerate(names))
    return await asyncio.gather(*answers, return_exceptions=True)


def test_pictures_are_those_of_listed_adapters(
    store: ObjectStore, make_engine: MakeEngine, demo_models: Path
) -> None:
    engine = make_engine()
    listed = {name: pixels(engine, name) for name in ("ink", "neon")}
    for root in (ROOT, str(demo_models / "loras" / "sd15")):
        looking_in(engine, root)
        for name, expected in listed.items():
            assert np.array_equal(pixels(engine, name), expected)


def test_what_is_listed_wins(make_engine: MakeEngine, demo_models: Path) -> None:
    engine = make_engine()
    neon = pixels(engine, "neon")
    both = ModelUserConfig(
        loras={"ink": demo_loras(demo_models, "sd15")["neon"]},
        loras_from=str(demo_models / "loras" / "sd15"),
    )
    engine.reconfigure(both)
    assert np.array_equal(pixels(engine, "ink"), neon)
    assert np.array_equal(pixels(engine, "neon"), neon)


def test_a_name_that_is_nowhere_is_refused_by_its_field(
    store: ObjectStore, make_engine: MakeEngine, demo_models: Path, threads: AdmissionThreads
) -> None:
    engine = make_engine()
    folder = str(demo_models / "loras" / "sd15")
    for root in (folder, ROOT):
        engine.reconfigure(ModelUserConfig(loras={"one": "x"}, loras_from=root))
        for name in ("nowhere", "../sd21/ink", "/etc/passwd", "ink/", "ink\n", "", ".."):
            with pytest.raises(NotFound, match="this model has: one, and others that") as caught:
                pixels(engine, name)
            assert caught.value.param == "loras"
            assert repr(name) in str(caught.value)
            assert folder not in str(caught.value)
    engine.reconfigure(ModelUserConfig())
    with pytest.raises(NotFound, match=r"'ink' does not exist; this model has: none$"):
        pixels(engine, "ink")
    assert engine.figures().pending_images == 0


def test_a_file_that_was_replaced_is_seen(
    store: ObjectStore,
    make_engine: MakeEngine,
    demo_models: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(s3_collection.S3Collection, "fresh_s", 0.3)
    listed = {n: Path(path) for n, path in demo_loras(demo_models, "sd15").items()}
    engine = make_engine()
    ink, neon = pixels(engine, "ink"), pixels(engine, "neon")
    (tmp_path / "one").mkdir()
    shutil.copy(listed["ink"], tmp_path / "one" / "mine.safetensors")
    put(store, "mine", listed["ink"])
    for root in (ROOT, str(tmp_path / "one")):
        looking_in(engine, root)
        assert np.array_equal(pixels(engine, "mine"), ink)
    shutil.copy(listed["neon"], tmp_path / "one" / "mine.safetensors")
    assert np.array_equal(pixels(engine, "mine"), neon)  # at once
    looking_in(engine, ROOT)
    assert np.array_equal(pixels(engine, "mine"), ink)
    put(store, "mine", listed["neon"])
    assert eventually(lambda: np.array_equal(pixels(engine, "mine"), neon))


def test_a_file_that_was_replaced_after_it_was_found_is_never_taken_for_it(
    store: ObjectStore, make_engine: MakeEngine, demo_models: Path
) -> None:
    listed = {n: Path(path) for n, path in demo_loras(demo_models, "sd15").items()}
    engine = make_engine()
    ink, neon = pixels(engine, "ink"), pixels(engine, "neon")
    looking_in(engine, ROOT)
    engine.check(image_job(loras=styles(ink=0.7)))  # which finds it
    put(store, "ink", listed["neon"])
    with pytest.raises(NotReady, match="lora 'ink': its source has just changed"):
        pixels(engine, "ink")
    assert np.array_equal(pixels(engine, "ink"), neon)  # it is looked for at once
    put(store, "ink", listed["ink"])
    looking_in(engine, f"s3://{BUCKET}/loras")  # another place, of which nothing is known
    assert np.array_equal(pixels(engine, "ink"), ink)


def test_a_file_that_is_back_after_a_change_was_met_is_brought_at_once(
    store: ObjectStore, make_engine: MakeEngine, demo_models: Path
) -> None:
    """It is the same adapter as the one that could not be brought; nor is its replica avoided."""
    listed = {n: Path(path) for n, path in demo_loras(demo_models, "sd15").items()}
    engine = make_engine()
    ink = pixels(engine, "ink")
    looking_in(engine, ROOT)
    engine.check(image_job(loras=styles(ink=0.7)))
    put(store, "ink", listed["neon"])
    with pytest.raises(NotReady, match="lora 'ink': its source has just changed"):
        pixels(engine, "ink")
    assert engine.report().failed == frozenset()
    put(store, "ink", listed["ink"])
    assert np.array_equal(pixels(engine, "ink"), ink)


def test_wrong_files_fail_their_own_requests(
    store: ObjectStore, make_engine: MakeEngine, demo_models: Path, tmp_path: Path
) -> None:
    ink = Path(demo_loras(demo_models, "sd15")["ink"])
    for name, content in {
        "short": ink.read_bytes()[:-100],
        "text": b"no weights",
        "empty": b"",
        "huge": bytes(3 * 2**20),
        "other": (demo_models / "loras" / "sd21" / "ink.safetensors").read_bytes(),
    }.items():
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        put(store, name, tmp_path / f"{name}.safetensors")
    says = {
        "short": "not a readable safetensors file",
        "text": "not a readable safetensors file",
        "empty": "not a readable safetensors file",
        "huge": "is a file of 3.0 MiB; of at most 2 MiB this model reads one",
        "other": "another family",
    }
    engine = make_engine()
    for root in (ROOT, str(tmp_path)):
        looking_in(engine, root, Limits(lora_budget_mb=1))
        for name, text in says.items():
            with pytest.raises(InvalidRequest, match=f"lora '{name}'") as caught:
                pixels(engine, name)
            assert text in str(caught.value)
            assert caught.value.param == "loras"
            assert not isinstance(caught.value, NotFound)
        assert len(engine.generate(image_job("plain", num_inference_steps=1))) == 1
    assert pixels(looking_in(engine, ROOT), "ink").any()


def test_a_disk_that_fails_is_no_fault_of_the_file(make_engine: MakeEngine, tmp_path: Path) -> None:
    (tmp_path / "ink.safetensors").symlink_to("/proc/self/mem")  # which cannot be read at 0
    engine = looking_in(make_engine(), str(tmp_path))
    with pytest.raises(NotReady, match=r"its source cannot be read \(Input/output error\)"):
        pixels(engine, "ink")


def test_a_crowd_of_unknown_names_asks_little_and_keeps_nobody(
    store: ObjectStore,
    make_engine: MakeEngine,
    threads: AdmissionThreads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(s3_collection.S3Collection, "missing_s", 60.0)
    engine = looking_in(make_engine(), ROOT)
    listings = Listings(monkeypatch)
    names = [f"unknown{n % 40}" for n in range(1000)]

    async def scenario() -> float:
        unknown = asyncio.create_task(crowd(engine, threads, names))
        await asyncio.sleep(0.01)
        plain = Call(engine, image_job("plain", num_inference_steps=1), threads)
        assert [event async for event in plain.events((), progress=False)]
        assert all(isinstance(answer, NotFound) for answer in await unknown)
        began = monotonic()
        assert all(isinstance(a, NotFound) for a in await crowd(engine, threads, names))
        return monotonic() - began

    assert asyncio.run(scenario()) < 30
    assert len(listings.asked) == 80  # a file and a folder each, and none a second time
    assert listings.most_at_once <= SEEKING_THREADS


class Listings:
    """Counts what a bucket is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.most_at_once = 0
        self._now = 0
        self._lock = Lock()
        self._listed = s3_collection.S3Collection._listed
        here = self

        def counted(own: S3Collection, path: str, most: int) -> dict[str, Any]:
            with here._lock:
                here.asked.append(path)
                here._now += 1
                here.most_at_once = max(here.most_at_once, here._now)
            try:
                return here._listed(own, path, most)
            finally:
                with here._lock:
                    here._now -= 1

        monkeypatch.setattr(s3_collection.S3Collection, "_listed", counted)


def test_a_bucket_that_hangs_costs_only_those_who_look_there_and_them_not_for_ever(
    black_hole: str,
    make_engine: MakeEngine,
    demo_models: Path,
    threads: AdmissionThreads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": black_hole}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(search, "PATIENCE_S", 4.0)
    engine = make_engine()
    engine.reconfigure(ModelUserConfig(loras=demo_loras(demo_models, "sd15"), loras_from=ROOT))

    async def scenario() -> None:
        began = monotonic()
        hanging = asyncio.create_task(crowd(engine, threads, [f"far{n}" for n in range(300)]))
        await asyncio.sleep(0.05)
        near = await crowd(engine, threads, ["ink", "neon"])
        assert monotonic() - began < 4
        assert all(isinstance(answer, list) for answer in near), near
        answers = await hanging
        assert monotonic() - began < 15  # not 300 / 16 times a patience
        assert all(isinstance(answer, NotReady) for answer in answers)
        said = {str(answer).partition("'")[2].partition("'")[2] for answer in answers}
        assert ": its source has not answered for 4 s" in said
        assert all("far" not in words and "s3:" not in words for words in said)

    asyncio.run(scenario())
    assert engine.figures().pending_images == 0
    assert engine.fault is None


def test_a_bucket_that_denies_says_nothing_of_a_name(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Denies(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.end_headers()
            self.wfile.write(b"<Error><Code>AccessDenied</Code><Message>no</Message></Error>")

        def log_message(self, *_: object) -> None:
            pass

    engine = make_engine()
    with serving(Denies) as url:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url}.items():
            monkeypatch.setenv(name, value)
        looking_in(engine, ROOT)
        with pytest.raises(NotReady, match="lora 'ink': its source cannot be reached now"):
            pixels(engine, "ink")


def test_what_was_found_is_served_through_an_outage(
    store: ObjectStore, make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3_collection.S3Collection, "fresh_s", 0.0)
    engine = looking_in(make_engine(), ROOT)
    before = pixels(engine, "ink")
    store.stop()
    try:
        assert np.array_equal(pixels(engine, "ink"), before)
        with pytest.raises(NotReady, match="lora 'neon': its source cannot be reached now"):
            pixels(engine, "neon")
    finally:
        store.start()


class Slow:
    """A collection that answers when it may."""

    fresh_s = missing_s = 60.0

    def __init__(self) -> None:
        self.go_on = Event()
        self.asked: list[str] = []

    def find(self, name: str) -> Held | None:
        self.asked.append(name)
        assert self.go_on.wait(60)
        if name == "broken":
            raise SourceUnavailable("broken")
        return None

    def count(self) -> int:
        return 0


def test_one_answer_is_for_all_who_wait_and_what_is_remembered_is_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "REMEMBERED", 3)
    slow = Slow()
    found = LoraSearch(slow)
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(found.find, "one") for _ in range(8)]
        assert eventually(lambda: bool(slow.asked))
        slow.go_on.set()
        assert [answer.result(10) for answer in answers] == [None] * 8
    assert slow.asked == ["one"]
    for name in ("two", "three", "four"):
        assert found.find(name) is None
    assert [name for name in ("one", "two", "three", "four") if found.knows(name)] == [
        "two",
        "three",
        "four",
    ]


def test_after_an_outage_was_said_nobody_asks_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(search, "monotonic", lambda: now)
    slow = Slow()
    slow.go_on.set()
    found = LoraSearch(slow)
    for _ in range(3):
        with pytest.raises(SourceUnavailable):
            found.find("broken")
    with pytest.raises(SourceUnavailable):
        found.find("other")
    assert slow.asked == ["broken"]
    now += search.OUTAGE_S + 0.1
    assert found.find("other") is None


def test_all_names_of_a_job_have_one_time_together(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0

    class Late(Slow):
        def find(self, name: str) -> Held | None:
            nonlocal now
            self.asked.append(name)
            if name in ("far0", "far1"):
                now += 0.6 * sources.SEEK_PATIENCE_S
            if name == "far2":
                self.go_on.wait(3)  # less than it would have, had it all the time to itself
            return None

    late = Late()
    monkeypatch.setattr(sources, "SEEK_PATIENCE_S", 20.0)
    for module in (sources, errands):
        monkeypatch.setattr(module, "monotonic", lambda: now)
    monkeypatch.setattr(sources, "collection_at", lambda *_: late)
    engine = looking_in(make_engine(), ROOT)
    job = image_job(loras=styles(**{f"far{n}": 0.1 for n in range(5)}))
    with pytest.raises(NotReady, match="lora 'far2': its source has not answered in time"):
        engine.check(job)
    with pytest.raises(NotFound, match="'near'"):  # nobody else takes it for silent
        engine.check(image_job(loras=styles(near=0.1)))
    assert late.asked == ["far0", "far1", "far2", "near"]
    late.go_on.set()
    with pytest.raises(NotFound, match="'far0'"):  # what came late is remembered, too
        engine.check(job)
    assert late.asked == ["far0", "far1", "far2", "near", "far3", "far4"]


def test_while_one_is_not_answered_others_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "PATIENCE_S", 0.2)
    slow = Slow()
    found = LoraSearch(slow)
    with pytest.raises(Silent, match=r"has not answered for 0\.2 s"):
        found.find("one")
    for name in ("one", "two", "three"):
        with pytest.raises(Silent, match="still does not answer"):
            found.find(name)
    assert slow.asked == ["one"]
    slow.go_on.set()
    assert eventually(lambda: found.knows("one"))  # what came late is remembered

    def answers_again() -> bool:
        try:
            return found.find("two") is None
        except Silent:
            return False

    assert eventually(answers_again)


def test_who_comes_just_behind_an_answer_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow()
    slow.go_on.set()
    found = LoraSearch(slow)
    run = found._errands.run

    def behind(
        source: str, work: Callable[[], Held | None], patience_s: float, until: float | None
    ) -> Held | None:
        monkeypatch.setattr(found._errands, "run", run)
        assert found.find("one") is None  # between the look at what is known and the errand
        return run(source, work, patience_s, until)

    monkeypatch.setattr(found._errands, "run", behind)
    assert found.find("one") is None
    assert slow.asked == ["one"]


def test_what_is_remembered_of_an_outage_holds_nobodys_request(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(search, "OUTAGE_S", 60.0)

    class Request:
        """Whatever stands on the stack of who is refused."""

    slow = Slow()
    slow.go_on.set()
    found = LoraSearch(slow)

    def refused(name: str, request: Request) -> None:
        with suppress(SourceUnavailable):
            found.find(name)
            raise AssertionError(f"{request} was answered")

    requests = [Request() for _ in range(3)]
    held = [ref(request) for request in requests]
    for name, request in zip(("broken", "one", "two"), requests, strict=True):
        refused(name, request)
    del requests, request

    def forgotten() -> bool:  # once the errand's thread has ended
        gc.collect()
        return all(one() is None for one in held)

    assert eventually(forgotten)
    assert slow.asked == ["broken"]
