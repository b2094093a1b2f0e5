"""What the engine promises each job: places, turns, events, and an answer to every image."""

from collections.abc import Sequence
from functools import partial
from threading import Event, Thread
from time import monotonic, sleep

import pytest
import torch
from torch import Tensor

from configs.app import Limits, ModelUserConfig
from deployments.contracts.errors import (
    Cancelled,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    NotReady,
    QueueFull,
)
from deployments.contracts.jobs import FinishedImage, PartialImage, Progress
from deployments.diffusion.engine.adapters.files import LoraFile
from deployments.diffusion.engine.adapters.reader import LoraWeights
from deployments.diffusion.engine.pixels.decoder import IMAGES_A_CALL
from deployments.diffusion.engine.policy.registry import Entry
from deployments.diffusion.engine.policy.report import Report, fingerprint
from tests.conftest import MakeEngine
from tests.deployments.diffusion.engine.conftest import Oracles
from tests.deployments.diffusion.engine.harness import (
    Gate,
    Listener,
    UnetCall,
    eventually,
    image_job,
    styles,
    tap_unet,
    tokenised,
)
from tests.deployments.diffusion.engine.oracle import assert_same
from tests.deployments.diffusion.engine.tasks import HEIGHT, WIDTH, box_mask, make_all, task

ONE_AT_A_TIME = Limits(max_running=1)


def test_a_cancelled_job_frees_its_slot_at_the_next_step(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine(limits=ONE_AT_A_TIME)
    listener = Listener(engine)
    with Gate(engine) as gate:
        listener.submit(image_job("gone", num_inference_steps=50))
        gate.let(2)
        listener.submit(image_job("next", num_inference_steps=2))
        engine.cancel("gone")
        gate.let(1)
        assert isinstance(listener.error("gone"), Cancelled)
        assert listener.steps("gone") == 3, "the step under way was its last"
        assert gate.calls[3] == [999], "its place was taken for the very next call"
        figures = engine.figures()
        assert (figures.cancelled_total, figures.failed_total) == (1, 0)
    listener.wait()
    assert_same(listener.image("next"), oracle_of("sd15").image(image_job(num_inference_steps=2)))
    assert eventually(lambda: engine.figures().running_rows == 0)
    assert engine.figures().pending_steps == 0


def test_a_waiting_job_is_cancelled_before_it_costs_a_step(make_engine: MakeEngine) -> None:
    engine = make_engine(limits=ONE_AT_A_TIME)
    listener = Listener(engine)
    with Gate(engine) as gate:
        listener.submit(image_job("first", num_inference_steps=2), image_job("waits"))
        gate.wait()
        engine.cancel("waits")
        gate.let(1)
        assert isinstance(listener.error("waits"), Cancelled)
    listener.wait()
    assert len(gate.calls) == 2


def test_cancelling_stops_the_unanswered_images_of_a_job_only(make_engine: MakeEngine) -> None:
    engine = make_engine(limits=ONE_AT_A_TIME)
    listener = Listener(engine)
    with Gate(engine) as gate:
        listener.submit(image_job("job", seeds=(1, 2, 3), num_inference_steps=3))
        gate.let(3)
        listener.wait_until(lambda: listener.answered("job"))
        engine.cancel("job")
    listener.wait()
    assert listener.image("job", 0).seed == 1
    assert isinstance(listener.error("job", 1), Cancelled)
    assert isinstance(listener.error("job", 2), Cancelled)


def test_cancelling_what_is_not_there_does_nothing(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.cancel("never came")
    assert len(engine.generate(image_job("job"))) == 1
    engine.cancel("job")
    assert len(engine.generate(image_job("other"))) == 1
    assert len(engine.generate(image_job("job"))) == 1, "its id is free again"
    assert engine.figures().cancelled_total == 0


def test_a_job_can_be_cancelled_before_the_loop_has_seen_it(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may cancel while `submit` has not returned yet."""
    engine = make_engine()
    registry = engine._registry
    open_ = registry.open

    def opened_and_cancelled(entry: Entry, limits: Limits) -> None:
        open_(entry, limits)
        engine.cancel("gone")

    listener = Listener(engine)
    monkeypatch.setattr(registry, "open", opened_and_cancelled)
    listener.submit(image_job("gone", loras=styles(neon=1.0)))
    listener.wait()
    assert isinstance(listener.error("gone"), Cancelled)
    monkeypatch.undo()
    assert len(engine.generate(image_job("next", loras=styles(ink=1.0)))) == 1
    assert engine.figures().loras_resident == 1, "nothing was loaded for it"


def test_a_running_job_past_its_deadline_ends_at_a_step(
    make_engine: MakeEngine, oracle_of: Oracles, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr("deployments.diffusion.engine.engine.monotonic", lambda: now)
    monkeypatch.setattr("deployments.diffusion.engine.policy.registry.monotonic", lambda: now)
    engine = make_engine()
    listener = Listener(engine)
    neighbour = image_job("neighbour", num_inference_steps=8, seeds=(3,))
    with Gate(engine) as gate:
        listener.submit(neighbour, image_job("late", num_inference_steps=8, timeout_s=9))
        gate.let(2)
        now += 8.9
        gate.let(1)
        assert not listener.answered("late")
        now += 0.2
        gate.let(1)
        assert isinstance(listener.error("late"), DeadlineExceeded)
        assert len(gate.calls[-1]) == 1
    listener.wait()
    assert_same(listener.image("neighbour"), oracle_of("sd15").image(neighbour))


def test_a_job_that_waits_for_its_adapters_has_its_deadline_kept(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine()
    go_on = Event()
    make = engine.components.lora_reader.make

    def slowly(file: LoraFile, unet: str) -> LoraWeights:
        go_on.wait(60)
        return make(file, unet)

    monkeypatch.setattr(engine.components.lora_reader, "make", slowly)
    listener = Listener(engine)
    started = monotonic()
    listener.submit(image_job("late", timeout_s=0.2, loras=styles(neon=1.0)))
    listener.wait()
    assert isinstance(listener.error("late"), DeadlineExceeded)
    assert 0.2 <= monotonic() - started < 5
    go_on.set()
    assert len(engine.generate(image_job("later", loras=styles(neon=1.0)))) == 1


def test_a_higher_priority_gets_the_next_free_place(make_engine: MakeEngine) -> None:
    engine = make_engine(limits=ONE_AT_A_TIME)
    listener = Listener(engine)
    order: list[str] = []
    with Gate(engine) as gate:
        listener.submit(image_job("first", num_inference_steps=2))
        gate.wait()
        for priority in (-1, 0, 5):
            job = image_job(f"{priority}", priority=priority, num_inference_steps=1)
            listener.at(job.job_id, 1, partial(order.append, job.job_id))
            listener.submit(job)
    listener.wait()
    assert order == ["5", "0", "-1"]


@pytest.mark.alone
def test_a_full_engine_says_when_there_will_be_room(make_engine: MakeEngine) -> None:
    engine = make_engine(limits=Limits(max_pending=6, max_batch=4))
    listener = Listener(engine)

    def steadily(call: UnetCall) -> Tensor:
        sleep(0.02 * len(call.t))  # whatever else the machine is busy with
        return torch.zeros_like(call.sample)

    tap_unet(engine, steadily)
    listener.submit(image_job("measured", seeds=(1, 2, 3, 4), num_inference_steps=15))
    listener.wait()

    listener.submit(image_job("crowd", seeds=(1, 2, 3, 4, 5, 6), num_inference_steps=10))
    listener.wait_for_step("crowd", 2)
    started = monotonic()
    with pytest.raises(QueueFull, match="6 of 6 images are pending") as full:
        listener.submit(image_job("one"))
    with pytest.raises(QueueFull) as fuller:
        listener.submit(image_job("six", seeds=(1, 2, 3, 4, 5, 6)))

    waits: dict[str, float] = {}
    for name, seeds in {"one": (1,), "six": (1, 2, 3, 4, 5, 6)}.items():
        while True:
            try:
                listener.submit(image_job(name, seeds=seeds, num_inference_steps=1))
                break
            except QueueFull:
                sleep(0.005)
        waits[name] = 1000 * (monotonic() - started)
    listener.wait()
    for name, told in {"one": full, "six": fuller}.items():
        assert waits[name] / 3 < told.value.retry_after_ms < waits[name] * 3, name


@pytest.mark.alone
def test_a_queue_that_waits_for_the_vae_alone_says_how_long(make_engine: MakeEngine) -> None:
    pending = 24
    engine = make_engine(limits=Limits(max_pending=pending, max_running=pending, max_batch=pending))
    vae = engine.components.vae.model
    decode = vae.decode
    each_s = 0.05

    def slow(latents: Tensor, **more: object) -> object:
        sleep(each_s * len(latents))
        return decode(latents, **more)

    vae.decode = slow
    listener = Listener(engine)
    listener.submit(image_job("measured", seeds=tuple(range(8)), num_inference_steps=1))
    listener.wait()
    listener.submit(image_job("crowd", seeds=tuple(range(pending)), num_inference_steps=1))
    assert eventually(lambda: engine.figures().decoding_images > 16)
    figures = engine.figures()
    started = monotonic()
    with pytest.raises(QueueFull) as full:
        listener.submit(image_job("as many", seeds=tuple(range(figures.pending_images))))
    listener.wait()
    took = monotonic() - started
    assert figures.pending_seconds >= figures.decode_seconds > 16 * each_s / 2
    assert took / 2 < figures.pending_seconds < took * 2
    assert took / 2 < full.value.retry_after_ms / 1000 < took * 2
    assert eventually(lambda: engine.figures().decoding_images == 0)
    assert engine.figures().pending_seconds == 0


@pytest.mark.alone
def test_a_burst_is_told_of_all_that_came_before_it(make_engine: MakeEngine) -> None:
    """Not of what the loop had counted when it last looked."""
    engine = make_engine(limits=Limits(max_pending=16, max_batch=4))

    def steadily(call: UnetCall) -> Tensor:
        sleep(0.02 * len(call.t))
        return torch.zeros_like(call.sample)

    tap_unet(engine, steadily)
    listener = Listener(engine)
    listener.submit(image_job("measured", seeds=(1, 2, 3, 4), num_inference_steps=15))
    listener.wait()
    started = monotonic()
    for n in range(16):
        listener.submit(image_job(str(n), num_inference_steps=10))
    with pytest.raises(QueueFull) as full:
        listener.submit(image_job("too many", num_inference_steps=1))
    listener.wait_until(lambda: any(listener.answered(str(n)) for n in range(16)))
    took_ms = 1000 * (monotonic() - started)
    assert took_ms / 3 < full.value.retry_after_ms < took_ms * 3
    listener.wait()


def test_what_the_loop_took_and_has_not_counted_is_told(make_engine: MakeEngine) -> None:
    engine = make_engine()
    listener = Listener(engine)

    def pending_pixels() -> float:
        report = engine.report()
        return report.pending_s / report.step_pixel_s

    with Gate(engine) as gate:
        listener.submit(image_job("first", num_inference_steps=2))
        gate.wait()
        listener.submit(image_job("crowd", seeds=(1, 2, 3, 4), num_inference_steps=20))
        handed_in = pending_pixels()
        gate.let()
        assert pending_pixels() > 0.9 * handed_in
    listener.wait()
    assert eventually(lambda: engine.report().pending_s == 0)


def test_no_row_is_begun_while_the_decoder_is_behind(make_engine: MakeEngine) -> None:
    engine = make_engine(limits=Limits(max_running=8))
    go_on = Event()
    vae = engine.components.vae.model
    decode = vae.decode

    def held(latents: Tensor, **more: object) -> object:
        assert go_on.wait(60)
        return decode(latents, **more)

    vae.decode = held
    listener = Listener(engine)
    listener.submit(image_job("crowd", seeds=tuple(range(100)), num_inference_steps=1))
    assert eventually(lambda: engine.figures().decoding_images > IMAGES_A_CALL)
    sleep(0.2)
    figures = engine.figures()
    assert figures.decoding_images <= IMAGES_A_CALL + 8 + 1
    assert figures.pending_images == 100
    go_on.set()
    listener.wait()
    assert len([e for e in listener.events["crowd"] if isinstance(e, FinishedImage)]) == 100


def test_a_cancelled_image_is_not_decoded(make_engine: MakeEngine) -> None:
    engine = make_engine()
    began, go_on, decoded = Event(), Event(), []
    vae = engine.components.vae.model
    decode = vae.decode

    def held(latents: Tensor, **more: object) -> object:
        began.set()
        assert go_on.wait(60)
        decoded.append(len(latents))
        return decode(latents, **more)

    vae.decode = held
    listener = Listener(engine)
    listener.submit(image_job("first", num_inference_steps=1))
    assert began.wait(60)  # else both may be decoded in one call
    listener.submit(image_job("gone", num_inference_steps=1))
    assert eventually(lambda: engine.figures().decoding_images == 2)
    engine.cancel("gone")
    listener.wait_until(lambda: listener.answered("gone"))
    go_on.set()
    listener.wait()
    assert isinstance(listener.error("gone"), Cancelled)
    assert eventually(lambda: engine.figures().decoding_images == 0)
    assert decoded == [1]


def test_steps_are_told_only_to_those_who_listen(make_engine: MakeEngine) -> None:
    engine = make_engine()
    heard: list[object] = []
    done = Event()

    def sink(event: object) -> None:
        heard.append(event)
        if isinstance(event, FinishedImage):
            done.set()

    tokens = engine.submit(image_job("deaf", prompt="fox fox"), sink, progress=False)
    assert done.wait(60)
    assert [type(event) for event in heard] == [FinishedImage]
    assert tokens == 2


def test_a_prompt_is_tokenised_once(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine("sdxl")
    calls = tokenised(monkeypatch)
    engine.generate(image_job(guidance_scale=5.0, negative_prompt="red"))
    assert sorted(calls) == ["a red fox in the snow"] * 2 + ["red"] * 2, "once an encoder"


def test_a_job_is_refused_whole(make_engine: MakeEngine) -> None:
    engine = make_engine(limits=Limits(max_pending=4))
    listener = Listener(engine)
    with Gate(engine):
        listener.submit(image_job("three", seeds=(1, 2, 3)))
        with pytest.raises(QueueFull, match="3 of 4 images are pending; room for 2 more"):
            listener.submit(image_job("two", seeds=(1, 2)))
        listener.submit(image_job("one"))
        assert engine.figures().pending_images == 4
    listener.wait()
    assert engine.figures().pending_images == 0


def test_more_images_than_the_queue_could_ever_hold_are_no_matter_of_waiting(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine(limits=Limits(max_pending=2))
    with pytest.raises(InvalidRequest, match="n is 3") as refused:
        engine.generate(image_job(seeds=(1, 2, 3)))
    assert refused.value.param == "n"


def test_events_come_in_order(make_engine: MakeEngine) -> None:
    listener = Listener(make_engine())
    job = image_job("job", seeds=(1, 2), num_inference_steps=8, partial_images=3)
    listener.submit(job, image_job("crowd", seeds=(4, 5), num_inference_steps=5))
    listener.wait()
    for index in (0, 1):
        events = [e for e in listener.events["job"] if e.image_index == index]
        steps = [(e.step, e.steps) for e in events if isinstance(e, Progress)]
        assert steps == [(n, 8) for n in range(1, 9)]
        shown = [e for e in events if isinstance(e, PartialImage)]
        assert [(e.partial_index, e.step) for e in shown] == [(0, 2), (1, 4), (2, 6)]
        for preview in shown:
            assert preview.pixels.shape == (128, 128, 3)
            assert events.index(Progress(index, preview.step, 8)) < _place(events, preview)
        assert isinstance(events[-1], FinishedImage)


def test_fewer_steps_give_fewer_previews(make_engine: MakeEngine) -> None:
    engine = make_engine()
    for steps, previews in {1: [], 2: [1], 3: [1, 2]}.items():
        job = image_job("job", num_inference_steps=steps, partial_images=3)
        events = list(engine.events(job))
        assert [e.step for e in events if isinstance(e, PartialImage)] == previews


def test_leaving_the_events_early_cancels_the_job(make_engine: MakeEngine) -> None:
    engine = make_engine()
    with Gate(engine) as gate:
        events = engine.events(image_job("left", num_inference_steps=50))
        gate.let(1)
        assert next(events) == Progress(0, 1, 50)
        events.close()  # type: ignore[attr-defined]
    assert eventually(lambda: engine.figures().cancelled_total == 1)
    assert engine.figures().steps_total < 50


def test_a_job_id_in_use_is_refused(make_engine: MakeEngine) -> None:
    engine = make_engine()
    listener = Listener(engine)
    with Gate(engine):
        listener.submit(image_job("twin"))
        with pytest.raises(InvalidRequest, match="already") as refused:
            listener.submit(image_job("twin"))
    assert refused.value.param == "job_id"
    listener.wait()


def test_stopping_answers_what_is_unanswered(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make_engine(limits=ONE_AT_A_TIME)
    listener = Listener(engine)
    assert len(engine.generate(image_job("done"))) == 1
    wait_for = engine._wait_for
    with Gate(engine) as gate:
        listener.submit(
            image_job("running", num_inference_steps=50),
            image_job("waiting", seeds=(1, 2)),
            image_job("preparing", loras=styles(neon=1.0, ink=1.0, papercut=1.0)),
        )
        gate.let(1)

        def told(thread: Thread) -> None:
            gate.open()
            wait_for(thread)

        monkeypatch.setattr(engine, "_wait_for", told)
        engine.stop()
    listener.wait()
    for name, index in [("running", 0), ("waiting", 0), ("waiting", 1), ("preparing", 0)]:
        assert isinstance(listener.error(name, index), NotReady)
    assert listener.steps("running") < 50
    with pytest.raises(NotReady, match="stopping"):
        engine.submit(image_job("too late"), lambda _: None)
    engine.stop()


def test_new_adapters_and_limits_while_serving(make_engine: MakeEngine, oracle_of: Oracles) -> None:
    engine = make_engine(loras={})
    listener = Listener(engine)
    new = image_job("new", seeds=(2,), loras=styles(neon=1.0))
    with pytest.raises(NotFound, match="'neon' does not exist; this model has: none"):
        listener.submit(new)
    running = image_job("running", num_inference_steps=20, width=160, height=96)
    with Gate(engine) as gate:
        listener.submit(running)
        gate.let(2)
        source = "demo/models/loras/sd15/neon.safetensors"
        lower = Limits(max_side=128, max_pending=2, max_batch=2, max_running=1)
        for _ in range(2):  # Ray calls it twice
            engine.reconfigure(ModelUserConfig(loras={"neon": source}, limits=lower))
        with pytest.raises(InvalidRequest, match="size 160x96 is not allowed"):
            listener.submit(image_job("wide", width=160, height=96))
        with pytest.raises(InvalidRequest, match="n is 3"):
            listener.submit(image_job("many", seeds=(1, 2, 3)))
        listener.submit(new)
        with pytest.raises(QueueFull):
            listener.submit(image_job("one too many"))
    listener.wait()
    assert engine.figures().batch_limit == 2
    assert_same(listener.image("running"), oracle_of("sd15").image(running))
    assert_same(listener.image("new"), oracle_of("sd15").image(new))

    engine.reconfigure(ModelUserConfig(loras={}, limits=Limits()))
    with pytest.raises(NotFound):
        listener.submit(new)


def test_another_source_under_the_same_name_is_another_adapter(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine(loras={"style": "demo/models/loras/sd15/neon.safetensors"})
    listener = Listener(engine)
    listener.submit(image_job("before", num_inference_steps=8, loras=styles(style=1.0)))
    source = "demo/models/loras/sd15/ink.safetensors"
    engine.reconfigure(ModelUserConfig(loras={"style": source}))
    listener.submit(image_job("after", num_inference_steps=8, loras=styles(style=1.0)))
    listener.wait()
    for name, style in {"before": "neon", "after": "ink"}.items():
        expected = image_job(num_inference_steps=8, loras=styles(**{style: 1.0}))
        assert_same(listener.image(name), oracle_of("sd15").image(expected))


def test_the_figures_count_what_was_done(make_engine: MakeEngine) -> None:
    engine = make_engine()
    listener = Listener(engine)
    listener.submit(
        image_job("guided", num_inference_steps=3, guidance_scale=5.0),
        image_job("styled", num_inference_steps=2, loras=styles(neon=1.0)),
    )
    listener.wait()
    assert eventually(lambda: engine.figures().running_rows == 0)
    figures = engine.figures()
    assert figures.images_total == 2
    assert figures.rows_total == 3 * 2 + 2
    assert 3 <= figures.steps_total <= 5
    assert figures.seconds_per_row_step > 0
    assert (figures.loras_resident, figures.lora_loads_total) == (1, 1)
    assert figures.lora_bytes > 100_000
    assert (figures.pending_images, figures.pending_steps) == (0, 0)


def test_the_report_says_what_is_on_the_device_and_how_long_work_takes(
    make_engine: MakeEngine,
) -> None:
    engine = make_engine()
    before = engine.report()
    assert before == Report()
    listener = Listener(engine)
    listener.submit(
        image_job("one", num_inference_steps=3, loras=styles(neon=1.0, ink=0.5)),
        image_job("long", num_inference_steps=50, width=256, height=256),
    )
    assert eventually(lambda: engine.report().pending_s > 0)
    listener.wait()
    assert eventually(lambda: engine.figures().running_rows == 0)
    assert eventually(lambda: engine.report().pending_s == 0)
    after = engine.report()
    assert after.adapters == {fingerprint("unet", "neon"), fingerprint("unet", "ink")}
    assert after.rows_total == 53
    assert after.step_pixel_s != before.step_pixel_s
    assert after.decode_pixel_s != before.decode_pixel_s


def _place(events: Sequence[object], event: object) -> int:
    """Its index, by identity: events with arrays do not compare."""
    return next(place for place, other in enumerate(events) if other is event)


def test_start_pictures_are_timed_once_a_job(make_engine: MakeEngine) -> None:
    engine = make_engine()
    told: list[int] = []
    count = engine._preparation._encoded

    def heard(pixels: int, seconds: float) -> None:
        assert seconds > 0
        told.append(pixels)
        count(pixels, seconds)

    engine._preparation._encoded = heard
    size = (WIDTH // 8) * (HEIGHT // 8)
    plain = task("plain", num_inference_steps=2)
    two = task("two", image=True, seeds=(1, 2), num_inference_steps=4, strength=0.5)
    hole = task("hole", image=True, mask=box_mask(), num_inference_steps=4, strength=0.5)
    make_all(engine, [plain, two, hole])
    assert eventually(lambda: len(told) == 2), told
    assert told == [size, size], "four channels see nothing of what the mask leaves"
    figures = engine.figures()
    assert figures.vae_encode_seconds_total > 0
    assert engine._registry.encode_s(size) > 0


def test_a_device_that_does_not_say_what_an_encoding_took_breaks_the_engine(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()

    def gone(pixels: int, seconds: float) -> None:
        raise torch.AcceleratorError("the device is gone")

    engine._preparation._encoded = gone
    one = task("one", image=True, num_inference_steps=4, strength=0.5)
    engine.submit(one.job, lambda _: None, one.assets)
    assert eventually(lambda: engine.fault is not None)
    assert "the device is gone" in str(engine.fault)
    caplog.clear()
