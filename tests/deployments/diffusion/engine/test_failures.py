"""What goes wrong costs only the image or the job concerned; its neighbours never notice."""

from dataclasses import replace
from pathlib import Path
from threading import Event
from time import monotonic, sleep
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from configs.app import Limits
from deployments.contracts.errors import EngineFault, GenerationFailed
from deployments.contracts.jobs import ImageJob, JobEvent
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.pixels.sources import SourceLatents
from deployments.diffusion.engine.policy import scheduler
from tests.conftest import MakeEngine, demo_loras
from tests.deployments.diffusion.engine.conftest import Oracles
from tests.deployments.diffusion.engine.harness import (
    WAIT_S,
    Gate,
    Listener,
    UnetCall,
    eventually,
    image_job,
    styles,
    tap_unet,
)
from tests.deployments.diffusion.engine.oracle import Oracle, assert_same
from tests.deployments.diffusion.engine.tasks import box_mask, make_all, task

PROMPT = "a dragon asleep"
ODD = 666  # the seed of the image that goes wrong

CROWD = (
    image_job("plain", seeds=(1,), num_inference_steps=4),
    image_job("guided", seeds=(2,), num_inference_steps=3, guidance_scale=5.0),
    image_job("styled", seeds=(3, 4), num_inference_steps=2, loras=styles(neon=0.7)),
    image_job("noisy", seeds=(5,), num_inference_steps=6, eta=1.0),
)


def assert_unharmed(listener: Listener, oracle: Oracle, jobs: tuple[ImageJob, ...] = CROWD) -> None:
    for job in jobs:
        for index in range(len(job.seeds)):
            assert_same(listener.image(job.job_id, index), oracle.image(job, index))


def scaled_style(source: str, target: Path, factor: float) -> str:
    """A style whose matrices are larger by `factor`."""
    save_file({k: v * factor for k, v in load_file(source).items()}, target)
    return str(target)


@pytest.mark.parametrize("guidance", [0.0, 5.0])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_a_row_that_leaves_the_finite_range_fails_alone(
    guidance: float, number: float, make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine()

    def spoil(call: UnetCall) -> Tensor:
        output = call.run()
        output[call.rows_of(ODD)] = number
        return output

    tap_unet(engine, spoil)
    listener = Listener(engine)
    odd = image_job("odd", seeds=(8, ODD, 9), guidance_scale=guidance)
    listener.submit(odd, *CROWD)
    listener.wait()

    assert isinstance(listener.error("odd", 1), GenerationFailed)
    assert "finite" in str(listener.error("odd", 1))
    for index in (0, 2):
        assert_same(listener.image("odd", index), oracle_of("sd15").image(odd, index))
    assert_unharmed(listener, oracle_of("sd15"))
    assert engine.figures().failed_total == 1


@pytest.mark.parametrize("style", ["neon", "ink"])
@pytest.mark.parametrize("factor", [1e12, 1e25])
def test_an_adapter_of_enormous_weights_spoils_only_its_own_images(
    style: str,
    factor: float,
    make_engine: MakeEngine,
    oracle_of: Oracles,
    demo_models: Path,
    tmp_path: Path,
) -> None:
    """At 1e25 even the adapter's own output overflows, which no weight of zero can undo."""
    loras = demo_loras(demo_models, "sd15")
    loras["huge"] = scaled_style(loras[style], tmp_path / "huge.safetensors", factor)
    engine = make_engine(loras=loras)
    listener = Listener(engine)
    warm = image_job("warm", num_inference_steps=1, loras=styles(neon=1.0, huge=0.0))
    listener.submit(warm)
    listener.wait()

    with Gate(engine):
        listener.submit(image_job("odd", seeds=(ODD,), loras=styles(huge=10.0)), *CROWD)
    listener.wait()
    assert_unharmed(listener, oracle_of("sd15"))
    later = image_job("later", seeds=(9,))
    listener.submit(later)
    listener.wait()
    assert_unharmed(listener, oracle_of("sd15"), (later,))
    if factor > 1e6:
        assert isinstance(listener.error("odd"), GenerationFailed)
        assert "huge (10)" in str(listener.error("odd")), (
            "who asked for it learns what to leave out"
        )


def test_an_image_that_the_vae_cannot_decode_fails_alone(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine()
    odd = image_job("odd", seeds=(8, ODD), num_inference_steps=2)
    final = torch.from_numpy(oracle_of("sd15").image(odd, 1).latents)
    vae = engine.components.vae.model
    decode = vae.decode
    batches: list[int] = []

    def refuse(latents: Tensor, **more: object) -> object:
        until = monotonic() + WAIT_S
        while not batches and len(engine._decoder._items) < 2 and monotonic() < until:
            sleep(0.01)  # so that the next ones are decoded together
        batches.append(len(latents))
        if any(torch.allclose(x * 0.18215, final, rtol=1e-3, atol=1e-3) for x in latents):
            raise RuntimeError("an odd latent")
        return decode(latents, **more)

    vae.decode = refuse
    listener = Listener(engine)
    listener.submit(odd, *CROWD)
    listener.wait()

    assert isinstance(listener.error("odd", 1), GenerationFailed)
    assert "an odd latent" in str(listener.error("odd", 1))
    assert_same(listener.image("odd", 0), oracle_of("sd15").image(odd, 0))
    assert_unharmed(listener, oracle_of("sd15"))
    assert max(batches) > 1, "nothing was decoded together"


def small_device(engine: Engine, rows: int) -> list[int]:
    """Lets the UNet run out of memory above so many rows; collects the sizes of its calls."""
    sizes: list[int] = []

    def refuse(call: UnetCall) -> Tensor:
        sizes.append(len(call.t))
        if len(call.t) > rows:
            raise torch.OutOfMemoryError(f"no memory for {len(call.t)} rows")
        return call.run()

    tap_unet(engine, refuse)
    return sizes


def test_out_of_memory_halves_the_batch_and_goes_on(
    make_engine: MakeEngine, oracle_of: Oracles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "RECOVERY_STEPS", 5)
    engine = make_engine(limits=Limits(max_batch=16))
    engine.generate(image_job("brings neon", num_inference_steps=1, loras=styles(neon=1.0)))
    before = engine.figures().begun_total
    listener = Listener(engine)
    sizes = small_device(engine, 3)
    limits: list[int] = []
    noisy = image_job("long noisy", seeds=(11,), num_inference_steps=40, eta=1.0)
    # A step is published after it is reported.
    for n in range(2, 40):
        listener.at("long noisy", n, lambda: limits.append(engine.figures().batch_limit))
    with Gate(engine):  # all come before a second step is taken
        listener.submit(noisy, *CROWD)
    listener.wait()

    assert_unharmed(listener, oracle_of("sd15"), (noisy, *CROWD))
    assert max(sizes) > 3, "memory never ran out"
    assert sum(size > 3 for size in sizes) < 8, "it did not learn"
    assert engine.figures().out_of_memory_total == sum(size > 3 for size in sizes)
    images = len(noisy.seeds) + sum(len(job.seeds) for job in CROWD)
    assert engine.figures().begun_total == before + images
    assert max(limits[limits.index(min(limits)) :]) > 3 >= min(limits), "the bound never grew back"
    assert engine.figures().failed_total == 0


def test_a_row_too_large_for_the_device_fails_alone(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine()
    listener = Listener(engine)

    def refuse(call: UnetCall) -> Tensor:
        if call.sample.shape[-1] > 16:
            raise torch.OutOfMemoryError("too wide")
        return call.run()

    tap_unet(engine, refuse)
    listener.submit(image_job("wide", seeds=(1, 2), width=160), *CROWD)
    listener.wait()
    for index in (0, 1):
        assert isinstance(listener.error("wide", index), GenerationFailed)
        assert "memory" in str(listener.error("wide", index))
    assert_unharmed(listener, oracle_of("sd15"))
    assert engine.fault is None


def test_a_lone_row_without_memory_waits_for_the_decoders_and_is_tried_again(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine()
    vae = engine.components.vae.model
    decode = vae.decode
    decoding, met = Event(), Event()

    def slow(latents: Tensor, **more: object) -> object:
        decoding.set()
        assert met.wait(WAIT_S)
        sleep(0.5)  # long enough for whoever does not wait to be refused again
        decoding.clear()
        return decode(latents, **more)

    def refuse_beside_the_decoder(call: UnetCall) -> Tensor:
        if decoding.is_set():
            refused.append(len(call.t))
            met.set()
            raise torch.OutOfMemoryError("the decoder has it")
        return call.run()

    refused: list[int] = []
    vae.decode = slow
    tap_unet(engine, refuse_beside_the_decoder)
    listener = Listener(engine)
    listener.submit(image_job("first", num_inference_steps=1))
    assert decoding.wait(WAIT_S)
    second = image_job("second", seeds=(2,), num_inference_steps=2)
    listener.submit(second)
    listener.wait()
    assert refused == [1]
    assert_unharmed(listener, oracle_of("sd15"), (second,))


def test_out_of_memory_while_prompts_are_encoded_is_no_different(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine()
    encoder = engine.components.text_encoders[0]
    forward = encoder.forward

    def refuse(ids: Tensor, **more: object) -> object:
        if len(ids) > 2:
            raise torch.OutOfMemoryError("too many prompts")
        return forward(ids, **more)

    encoder.forward = refuse
    jobs = tuple(image_job(str(n), prompt=f"fox {n}", seeds=(n,)) for n in range(6))
    listener = Listener(engine)
    with Gate(engine) as gate:
        listener.submit(image_job("first"))
        gate.wait()
        listener.submit(*jobs)
    listener.wait()
    assert_unharmed(listener, oracle_of("sd15"), jobs)


def test_an_engine_fault_answers_every_job_and_takes_no_more(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine(limits=Limits(max_running=2))
    listener = Listener(engine)
    late: list[str] = []

    def come_late() -> None:
        listener.submit(image_job("unread"))  # the loop never reads it
        late.append("unread")

    def break_down(call: UnetCall) -> NoReturn:
        come_late()
        raise RuntimeError("the device is gone")

    with Gate(engine) as gate:
        listener.submit(image_job("running", seeds=(1, 2)), image_job("waiting"))
        listener.submit(image_job("preparing", loras=styles(neon=1.0)))
        gate.wait()
        tap_unet(engine, break_down)
    listener.wait()

    assert late == ["unread"]
    for name, index in [("running", 0), ("running", 1), ("waiting", 0), ("preparing", 0)]:
        assert isinstance(listener.error(name, index), EngineFault)
        assert "the device is gone" in str(listener.error(name, index))
    assert isinstance(listener.error("unread"), EngineFault)
    assert isinstance(engine.fault, RuntimeError)
    with pytest.raises(EngineFault, match="the device is gone"):
        engine.submit(image_job("after"), lambda _: None)
    assert engine.figures().pending_images == 0
    assert engine.figures().failed_total == 5
    assert "the engine broke" in caplog.text
    caplog.clear()


def test_a_sink_that_raises_harms_nobody(
    make_engine: MakeEngine, oracle_of: Oracles, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    listener = Listener(engine)
    heard: list[JobEvent] = []

    def broken(event: JobEvent) -> NoReturn:
        heard.append(event)
        raise RuntimeError("not interested")

    engine.submit(image_job("deaf", num_inference_steps=2, partial_images=1), broken)
    listener.submit(*CROWD)
    listener.wait()
    assert_unharmed(listener, oracle_of("sd15"))
    assert len(heard) == 4, "two steps, a preview and the image: it is told of each"
    assert engine.fault is None
    assert "the sink of job deaf raised" in caplog.text


def test_a_prompt_in_an_error_is_logged_only_if_it_may_be(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture, whole: bool
) -> None:
    """Of a sink, of a step, and of what breaks the engine."""
    engine = make_engine()
    listener = Listener(engine)
    steps = 0

    def quote(what: str) -> NoReturn:
        raise LookupError(f"{what}: no token for {PROMPT!r}")

    def odd(call: UnetCall) -> Tensor:
        nonlocal steps
        steps += 1
        if steps in (2, 3):  # with its batch, and alone; then a plain row can
            quote("the odd one")
        if steps > 4:
            quote("all after it")
        return call.run()

    tap_unet(engine, odd)
    engine.submit(image_job("deaf", num_inference_steps=1), lambda _: quote("a sink"))
    assert eventually(lambda: "the sink of job deaf raised" in caplog.text)
    listener.submit(image_job("odd", num_inference_steps=1))
    listener.wait()
    assert "a step of 1 rows failed" in caplog.text
    listener.submit(image_job("last", num_inference_steps=1))
    listener.wait()
    assert eventually(lambda: "the engine broke" in caplog.text)
    assert "in quote" in caplog.text
    for what in ("a sink", "the odd one", "all after it"):
        assert (f"{what}: no token for {PROMPT!r}" in caplog.text) is whole
    assert (PROMPT in caplog.text) is whole
    caplog.clear()


def test_an_id_used_again_while_its_row_is_being_made_ready_gets_its_own_image(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine()
    encoder = engine.components.text_encoders[0]
    forward = encoder.forward
    encoding, go_on = Event(), Event()

    def held(ids: Tensor, **more: object) -> object:
        encoding.set()
        assert go_on.wait(WAIT_S)
        return forward(ids, **more)

    encoder.forward = held
    listener = Listener(engine)
    listener.submit(image_job("same", prompt="a blue whale", seeds=(5,)))
    assert encoding.wait(WAIT_S)
    engine.cancel("same")
    listener.wait_until(lambda: listener.answered("same"))
    listener.events.clear()
    second = image_job("same", prompt="a red cube", seeds=(6,))
    listener.submit(second)
    go_on.set()
    listener.wait()
    assert_same(listener.image("same"), oracle_of("sd15").image(second))
    assert engine.fault is None


def test_a_row_that_found_no_memory_while_it_was_made_ready_is_tried_once_more(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine()
    encoder = engine.components.text_encoders[0]
    forward = encoder.forward
    refusals = 1

    def refuse(ids: Tensor, **more: object) -> object:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise torch.OutOfMemoryError("for a moment")
        return forward(ids, **more)

    encoder.forward = refuse
    listener = Listener(engine)
    first = image_job("first")
    listener.submit(first)
    listener.wait()
    assert_same(listener.image("first"), oracle_of("sd15").image(first))
    refusals = 99
    listener.submit(image_job("second", prompt="never seen"))
    listener.wait()
    assert isinstance(listener.error("second"), GenerationFailed)
    assert "memory" in str(listener.error("second"))
    assert refusals == 97, "it was tried twice"


@pytest.mark.parametrize("part", ["text encoder", "decoder"])
def test_a_device_that_is_gone_is_the_engines_fault_wherever_it_shows(
    part: str, make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()

    def gone(*_: object, **__: object) -> NoReturn:
        raise torch.AcceleratorError("the device is gone")

    if part == "decoder":
        engine.components.vae.model.decode = gone
    else:
        engine.components.text_encoders[0].forward = gone
    listener = Listener(engine)
    listener.submit(image_job("job", seeds=(1, 2)))
    listener.wait()
    for index in (0, 1):
        assert isinstance(listener.error("job", index), EngineFault)
    assert isinstance(engine.fault, torch.AcceleratorError)
    caplog.clear()


def test_memory_that_runs_out_after_the_unet_leaves_every_row_where_it_was(
    make_engine: MakeEngine, oracle_of: Oracles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask's rows are put back one by one: had the first moved, it would move twice."""
    engine = make_engine()
    made = 0
    blended = SourceLatents.blended

    def refuse(self: SourceLatents, *numbers: Any) -> Tensor:
        nonlocal made
        made += 1
        if made == 2:
            raise torch.OutOfMemoryError("no room for the second")
        return blended(self, *numbers)

    task_ = task("hole", seeds=(1, 2), image=True, mask=box_mask(), num_inference_steps=4)
    expected = make_all(engine, [task_])
    monkeypatch.setattr(SourceLatents, "blended", refuse)
    again = make_all(engine, [replace(task_, job=replace(task_.job, job_id="again"))])
    assert made > 4
    for index in (0, 1):
        apart = again["again", index].latents - expected["hole", index].latents
        assert abs(apart).max() < 1e-3
