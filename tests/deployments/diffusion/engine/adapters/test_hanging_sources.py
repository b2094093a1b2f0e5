"""A source that hangs costs only those who ask for it, and them not for ever."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from time import monotonic

import pytest

from configs.sources import state
from deployments.contracts.errors import NotReady
from deployments.diffusion.engine.adapters import shelf, sources
from deployments.diffusion.engine.adapters.errands import Errands, Silent
from tests.conftest import MakeEngine, demo_loras
from tests.deployments.diffusion.engine.harness import Listener, eventually, image_job, styles

PATIENCE_S = 3.0
NORMAL_S = 10.0  # far more than it takes on busy cores; far less than eight patiences


@pytest.fixture
def hanging(
    black_hole: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[dict[str, str]]:
    """Eight adapters that never come: of an S3 that does not answer, and of a disk."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", black_hole)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    loras = {f"far{n}": f"s3://nowhere/style{n}.safetensors" for n in range(4)}
    pipes = [tmp_path / f"near{n}" / "pytorch_lora_weights.safetensors" for n in range(4)]
    for pipe in pipes:
        pipe.parent.mkdir()
        os.mkfifo(pipe)  # opening it blocks, as NFS may
        loras[pipe.parent.name] = str(pipe.parent)
    yield loras
    for pipe in pipes:
        with suppress(OSError):  # nobody reads it
            os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))


def test_eight_sources_that_hang_keep_no_other_from_being_read(
    hanging: dict[str, str],
    make_engine: MakeEngine,
    demo_models: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sources, "BRING_PATIENCE_S", PATIENCE_S)
    monkeypatch.setattr(shelf, "REMEMBER_FAILURE_S", 0.0)
    engine = make_engine(loras=demo_loras(demo_models, "sd15") | hanging)
    engine.generate(image_job("warm", num_inference_steps=1))
    listener = Listener(engine)
    began = monotonic()
    listener.submit(*(image_job(name, loras=styles(**{name: 1.0})) for name in hanging))
    assert len(engine.generate(image_job("plain", num_inference_steps=1))) == 1
    for name in ("neon", "ink", "papercut"):
        job = image_job(name, loras=styles(**{name: 1.0}), num_inference_steps=1)
        assert len(engine.generate(job)) == 1
    assert monotonic() - began < NORMAL_S
    listener.wait()
    assert monotonic() - began < PATIENCE_S + NORMAL_S
    for name, source in hanging.items():
        error = listener.error(name)
        assert isinstance(error, NotReady)
        assert str(error) == f"lora {name!r}: its source has not answered for 3 s"
        assert source not in str(error)

    began = monotonic()
    listener.events.clear()
    listener.submit(*(image_job(name, loras=styles(**{name: 1.0})) for name in hanging))
    listener.wait()
    assert monotonic() - began < PATIENCE_S, "a source that still hangs is not waited for again"
    assert "still does not answer" in str(listener.error("near0"))
    assert len(engine.generate(image_job("after", num_inference_steps=1))) == 1
    assert engine.fault is None
    began = monotonic()
    engine.stop()
    assert monotonic() - began < NORMAL_S


def looks_hang(monkeypatch: pytest.MonkeyPatch, hangs: Callable[[str], bool]) -> Event:
    """Looks at such sources wait for this event; whoever asked waits for 0.3 s."""
    go_on = Event()

    def looked(source: str) -> str:
        if hangs(source):
            assert go_on.wait(60)
        return state(source)

    monkeypatch.setattr(sources, "LOOK_PATIENCE_S", 0.3)
    monkeypatch.setattr(sources, "state", looked)
    return go_on


def test_a_disk_that_hangs_when_it_is_looked_at_costs_a_refusal(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = looks_hang(monkeypatch, lambda source: source.endswith("ink.safetensors"))
    engine = make_engine()
    ink = image_job("ink", loras=styles(ink=1.0))
    with pytest.raises(NotReady, match=r"lora 'ink': its source has not answered for 0\.3 s"):
        engine.submit(ink, lambda _: None)
    monkeypatch.setattr(sources, "LOOK_PATIENCE_S", 60.0)
    began = monotonic()
    with pytest.raises(NotReady, match="lora 'ink': its source still does not answer"):
        engine.submit(ink, lambda _: None)
    assert monotonic() - began < 30, "it is not waited for again"
    assert len(engine.generate(image_job("neon", loras=styles(neon=1.0)))) == 1
    go_on.set()

    def answers_again() -> bool:
        try:
            return len(engine.generate(ink)) == 1
        except NotReady:
            return False

    assert eventually(answers_again)


def test_many_names_on_a_disk_that_hangs_are_looked_at_no_longer_than_a_few(
    make_engine: MakeEngine, demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on = looks_hang(monkeypatch, lambda source: source.startswith("/away/"))
    away = {f"away{n}": f"/away/{n}.safetensors" for n in range(200)}
    engine = make_engine(loras=demo_loras(demo_models, "sd15") | away)
    began = monotonic()
    for name in away:
        with pytest.raises(NotReady, match=f"lora '{name}': its source"):
            engine.check(image_job(loras=styles(**{name: 1.0})))
    assert monotonic() - began < 100 * 0.3
    monkeypatch.setattr(sources, "LOOK_PATIENCE_S", 60.0)
    engine.check(image_job(loras=styles(neon=1.0)))  # another disk answers
    go_on.set()


def test_a_missing_file_is_told_without_its_path(make_engine: MakeEngine, tmp_path: Path) -> None:
    folder = tmp_path / "secret"
    folder.mkdir()
    (folder / "locked.safetensors").mkdir()
    loras = {"missing": str(folder / "nowhere.safetensors"), "empty": str(folder)}
    loras["folder"] = str(folder / "locked.safetensors")
    engine = make_engine(loras=loras)
    for name in loras:
        with pytest.raises(Exception, match=f"lora '{name}'") as caught:
            engine.generate(image_job(loras=styles(**{name: 1.0})))
        assert str(tmp_path) not in str(caught.value)
        assert "/" not in str(caught.value)


def test_errands_are_bounded_and_shared() -> None:
    go_on = Event()
    errands: Errands[bool] = Errands(most=2)
    first = errands.send("a", go_on.wait, 60)
    assert errands.send("a", go_on.wait, 60) is first
    errands.send("b", go_on.wait, 2.0)
    with pytest.raises(Silent, match="2 others have not answered"):
        errands.send("c", go_on.wait, 60)
    with pytest.raises(Silent, match="has not answered for"):
        errands.run("b", go_on.wait, 60)  # it joins the one under way
    assert eventually(lambda: _still_silent(errands, "b"))
    go_on.set()
    assert first.result(10)
    assert eventually(lambda: not _still_silent(errands, "b"))


def _still_silent(errands: Errands[bool], name: str) -> bool:
    try:
        return not errands.run(name, lambda: True, 10)
    except Silent as error:
        return "still does not answer" in str(error)


def test_a_process_ends_though_an_errand_hangs(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    script = (
        (
            "from deployments.diffusion.engine.adapters.errands import Errands\n"
            f"Errands(4).send('fifo', open({str(tmp_path / 'fifo')!r}).read, 60)\n"
        )
        .replace("open(", "lambda: open(")
        .replace(".read, 60", ".read(), 60")
    )
    subprocess.run([sys.executable, "-c", script], timeout=60, check=True)


def test_a_source_can_be_asked_again_after_there_was_no_thread_to_ask_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class NoThread(Thread):
        def start(self) -> None:
            raise RuntimeError("can't start new thread")

    errands = Errands[int](1)
    with monkeypatch.context() as patch:
        patch.setattr("deployments.diffusion.engine.adapters.errands.Thread", NoThread)
        with pytest.raises(Silent, match="can't start new thread"):
            errands.run("far", lambda: 1, PATIENCE_S)
    assert errands.run("far", lambda: 1, PATIENCE_S) == 1
