"""A thread of the engine that hangs is a fault like any other."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from time import monotonic

import pytest
import torch

from configs.app import Limits, ModelUserConfig
from deployments.contracts.errors import EngineFault, InvalidRequest, NotReady
from deployments.diffusion.engine import pulse
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.policy.spec import PromptIds, RowSpec
from deployments.diffusion.engine.pulse import Hang
from deployments.diffusion.engine.steps.preparation import Order
from tests.conftest import MakeEngine
from tests.deployments.diffusion.engine.harness import (
    Listener,
    UnetCall,
    eventually,
    image_job,
    tap_unet,
)

HANG_S = 1.0
SOON_S = 30.0  # what waits for nobody; what hangs does so twice as long


@contextmanager
def hanging(engine: Engine, part: str, held: Event) -> Iterator[Event]:
    """Has a part of an engine wait for `held`; yields an event of its having begun to."""
    began = Event()
    parts = engine.components

    def wait() -> None:
        began.set()
        assert held.wait(60)

    def tap(call: UnetCall) -> object:
        wait()
        return call.run()

    if part == "loop":
        tap_unet(engine, tap)  # type: ignore[arg-type]
    else:
        owner, name = (
            (parts.vae.model, "decode")
            if part == "decoder"
            else (parts.text_encoders[0], "forward")
        )
        made = getattr(owner, name)

        def slow(*given: object, **named: object) -> object:
            wait()
            return made(*given, **named)

        setattr(owner, name, slow)
    try:
        yield began
    finally:
        held.set()


@pytest.mark.parametrize("part", ["loop", "preparer", "decoder"])
def test_a_thread_that_hangs_is_a_fault(
    part: str, make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    engine.generate(image_job("before", num_inference_steps=1))
    engine.reconfigure(ModelUserConfig(limits=Limits(hang_s=HANG_S)))  # first calls take long
    with hanging(engine, part, Event()) as began:
        listener = Listener(engine)
        listener.submit(image_job("job", prompt="never seen", seeds=(1, 2)))
        assert began.wait(60)
        since = monotonic()
        listener.wait()
        assert monotonic() - since < SOON_S
        for index in (0, 1):
            assert isinstance(listener.error("job", index), EngineFault)
        assert isinstance(engine.fault, Hang)
        assert part in str(engine.fault)
        assert "held.wait" in caplog.text, "the log says where it hangs"
        with pytest.raises(EngineFault):
            engine.submit(image_job("later"), lambda _: None)
    assert eventually(lambda: not engine._thread.is_alive() or part != "loop"), "it woke up"
    caplog.clear()


def test_an_engine_without_work_does_not_hang(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.generate(image_job())
    engine.reconfigure(ModelUserConfig(limits=Limits(hang_s=HANG_S)))
    assert not Event().wait(2.5 * HANG_S)
    assert engine.fault is None
    assert len(engine.generate(image_job("later"))) == 1


def test_an_engine_that_hangs_can_be_stopped(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("deployments.diffusion.engine.engine.LAST_PATIENCE_S", 0.2)
    engine = make_engine(limits=Limits(hang_s=HANG_S))
    with hanging(engine, "loop", Event()) as began:
        listener = Listener(engine)
        listener.submit(image_job("job"))
        assert began.wait(60)
        listener.wait()
        since = monotonic()
        engine.stop()
        assert monotonic() - since < SOON_S
    caplog.clear()


def test_whoever_started_an_engine_hears_of_its_fault_before_its_callers(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    heard: list[tuple[Exception, int]] = []
    listener = Listener(engine)
    told = engine.figures
    engine._on_fault = lambda fault: heard.append((fault, told().pending_images))

    def refuse(call: UnetCall) -> object:
        raise RuntimeError("the device is gone")

    tap_unet(engine, refuse)  # type: ignore[arg-type]
    listener.submit(image_job("job", seeds=(1, 2)))
    listener.wait()
    assert heard == [(engine.fault, 2)]
    caplog.clear()


def test_an_engine_can_be_stopped_while_nobody_knows_yet_that_it_hangs(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("deployments.diffusion.engine.engine.LAST_PATIENCE_S", 0.2)
    engine = make_engine()
    with hanging(engine, "loop", Event()) as began:
        Listener(engine).submit(image_job("job"))
        assert began.wait(60)
        stopping = Thread(target=engine.stop)
        stopping.start()
        assert eventually(lambda: stops(engine))
        assert engine.fault is None
        engine.reconfigure(ModelUserConfig(limits=Limits(hang_s=HANG_S)))
        stopping.join(SOON_S)
        assert not stopping.is_alive()
    caplog.clear()


def stops(engine: Engine) -> bool:
    """Whether an engine refuses what comes, because it is being stopped."""
    try:
        engine.submit(image_job("another"), lambda _: None)
    except NotReady:
        return True
    except InvalidRequest:  # the one before is still there
        return False
    return False


def test_each_try_of_a_failed_step_is_a_piece_of_work_of_its_own(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    beats: list[int] = []
    tries: list[int] = []
    beat = engine._pulse.beat

    def counted() -> None:
        beats.append(1)
        beat()

    engine._runner._beat = counted

    def refuse(call: UnetCall) -> object:
        tries.append(len(beats))
        if call.sample.shape[-1] == 16:
            raise ValueError("this row cannot be")
        return call.run()

    tap_unet(engine, refuse)  # type: ignore[arg-type]
    listener = Listener(engine)
    listener.submit(image_job("job", seeds=(1, 2, 3)))
    listener.wait()
    assert len(tries) > 2
    assert tries == [n + 1 for n in range(len(tries))]
    assert engine.fault is None
    caplog.clear()


def test_each_row_is_delivered_before_the_pictures_of_the_next_are_encoded(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that `hang_s` is what the preparation of one image may take."""
    preparation = make_engine()._preparation
    made: list[str] = []
    shared = preparation._shared

    def seen(*given: object) -> object:
        made.append("shared")
        return shared(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(preparation, "_shared", seen)
    spec = RowSpec(PromptIds((((0,) * 77,),), 0), 0, 64, 64, 1)
    with torch.inference_mode():
        for _ in preparation.rows([Order(f"{n}/0", str(n), spec) for n in range(3)]):
            made.append("row")
    assert made == ["shared", "row"] * 3


def test_the_time_for_which_a_process_is_stopped_is_no_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asleep, woke, hung = 0.0, list[float](), list[float]()
    monkeypatch.setattr(pulse, "monotonic", lambda: monotonic() + asleep)
    working = pulse.Pulse()
    working.beat()

    def sleeping() -> float:
        nonlocal asleep  # before the watch's first look
        if not woke:
            woke.append(monotonic())
            asleep = 1000.0
        return HANG_S

    watch = pulse.Watch({"loop": working}, sleeping, lambda _: hung.append(monotonic()))
    try:
        assert eventually(lambda: bool(hung)), "from then on it counts"
        assert hung[0] - woke[0] > HANG_S
    finally:
        watch.close()
