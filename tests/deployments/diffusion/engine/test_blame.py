"""A step that raises: the rows that are to blame fail, the others take it; or the engine does."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from configs.app import Defaults, ModelUserConfig
from deployments.contracts.errors import EngineFault, GenerationFailed, InvalidRequest
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from deployments.diffusion.engine.pixels.sources import SourceLatents
from deployments.diffusion.engine.steps import runner
from deployments.diffusion.engine.steps.row import Row
from deployments.diffusion.engine.steps.staging import Numbers
from tests.conftest import MakeEngine, model_args
from tests.deployments.diffusion.engine.conftest import Oracles
from tests.deployments.diffusion.engine.harness import (
    Gate,
    Listener,
    UnetCall,
    image_job,
    styles,
    tap_unet,
)
from tests.deployments.diffusion.engine.oracle import assert_same
from tests.deployments.diffusion.engine.tasks import (
    Checkpoint,
    Task,
    box_mask,
    make_all,
    task,
)

ODD = 666  # the seed of the image that goes wrong
CROWD = (
    image_job("plain", seeds=(1,), num_inference_steps=4),
    image_job("guided", seeds=(2,), num_inference_steps=3, guidance_scale=5.0),
    image_job("styled", seeds=(3, 4), num_inference_steps=2, loras=styles(neon=0.7)),
    image_job("noisy", seeds=(5,), num_inference_steps=12, eta=1.0),
)


def refuse_odd(engine: Engine, error: Callable[[], Exception]) -> list[int]:
    """Has the first step of `ODD` raise; collects how many rows each call had."""
    sizes: list[int] = []

    def refuse(call: UnetCall) -> Tensor:
        sizes.append(len(call.t))
        if call.rows_of(ODD):
            raise error()
        return call.run()

    tap_unet(engine, refuse)
    return sizes


def refuse_eta(monkeypatch: pytest.MonkeyPatch, eta: float) -> None:
    """Has every step of rows of this eta raise while it is planned."""
    planned = runner._put_noise

    def refuse(row: Row, cursor: int, numbers: Numbers) -> int | None:
        if row.spec.eta == eta:
            raise IndexError("the schedule ends here")
        return planned(row, cursor, numbers)

    monkeypatch.setattr(runner, "_put_noise", refuse)


def test_a_row_whose_step_raises_fails_alone(
    make_engine: MakeEngine, oracle_of: Oracles, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    listener = Listener(engine)
    with Gate(engine) as gate:
        listener.submit(image_job("first"))
        gate.wait()
        sizes = refuse_odd(engine, lambda: ValueError("this row cannot be"))
        listener.submit(image_job("odd", seeds=(8, ODD, 9), num_inference_steps=2), *CROWD)
    listener.wait()
    assert isinstance(listener.error("odd", 1), GenerationFailed)
    assert "this row cannot be" in str(listener.error("odd", 1))
    assert max(sizes) > 2, "nothing was denoised together"
    odd = image_job("odd", seeds=(8, ODD, 9), num_inference_steps=2)
    for index in (0, 2):
        assert_same(listener.image("odd", index), oracle_of("sd15").image(odd, index))
    for job in CROWD:
        for index in range(len(job.seeds)):
            assert_same(listener.image(job.job_id, index), oracle_of("sd15").image(job, index))
    assert engine.fault is None
    assert engine.figures().failed_total == 1
    assert listener.steps("odd") == 2
    assert "this row cannot be" in caplog.text
    caplog.clear()


def test_noise_that_was_drawn_for_a_step_is_not_drawn_again_when_it_is_made_again(
    make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    """In a step for which noise was not drawn ahead."""
    engine = make_engine()
    noisy = image_job("noisy", seeds=(5,), num_inference_steps=13, eta=1.0)
    listener = Listener(engine)
    with Gate(engine) as gate:
        listener.submit(noisy)
        gate.let(10)
        sizes = refuse_odd(engine, lambda: ValueError("the neighbour"))
        listener.submit(image_job("odd", seeds=(ODD,), num_inference_steps=1))
    listener.wait()
    assert 2 in sizes
    assert isinstance(listener.error("odd"), GenerationFailed)
    assert_same(listener.image("noisy"), oracle_of("sd15").image(noisy))


def test_a_job_all_of_whose_rows_raise_costs_nobody_else(
    make_engine: MakeEngine, oracle_of: Oracles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone on the engine, too: a plain row shows that it is well."""
    engine = make_engine()
    refuse_eta(monkeypatch, 0.5)
    listener = Listener(engine)
    listener.submit(image_job("odd", seeds=(1, 2, 3), eta=0.5, guidance_scale=3.0))
    listener.wait()
    for index in range(3):
        assert isinstance(listener.error("odd", index), GenerationFailed)
    later = image_job("later", seeds=(4,))
    listener.submit(later)
    listener.wait()
    assert_same(listener.image("later"), oracle_of("sd15").image(later))
    assert engine.fault is None


@pytest.mark.parametrize("kind", ["sdxl", "sdxl-inpainting", "video"])
def test_models_of_every_kind_are_told_from_their_rows(
    kind: str, demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plain row can take a step in each of them."""
    if kind == "video":
        motion = str(demo_models / "motion-adapter" / "sd15")
        args = model_args(demo_models, "sd15").model_copy(update={"motion_adapter": motion})
        fine = Task(image_job("fine", num_frames=4, width=64, height=64))
    else:
        args = Checkpoint(demo_models, "sdxl", kind).args()
        hole = kind != "sdxl"
        fine = task("fine", image=hole, mask=box_mask() if hole else None)
    odd = replace(fine, job=replace(fine.job, job_id="odd", eta=0.5, guidance_scale=3.0))
    refuse_eta(monkeypatch, 0.5)
    engine = Engine(load(args), ModelUserConfig())
    try:
        with pytest.raises(GenerationFailed, match="the schedule ends here"):
            make_all(engine, [odd])
        assert make_all(engine, [fine])
        assert engine.fault is None
    finally:
        engine.stop()


def test_a_batch_that_raises_though_no_row_does_alone_is_the_engines_fault(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    listener = Listener(engine)

    def refuse(call: UnetCall) -> Tensor:
        if len(call.t) > 1:
            raise RuntimeError("not together")
        return call.run()

    with Gate(engine) as gate:
        listener.submit(image_job("first"))
        gate.wait()
        tap_unet(engine, refuse)
        listener.submit(image_job("job", seeds=(1, 2, 3)))
    listener.wait()
    assert isinstance(engine.fault, RuntimeError)
    assert isinstance(listener.error("job"), EngineFault)
    caplog.clear()


def test_a_row_that_raises_after_the_unet_leaves_every_row_where_it_was(
    make_engine: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mask's rows are put back one by one: had the first moved, it would move twice."""
    engine = make_engine()
    fine = task("fine", seeds=(1, 2), image=True, mask=box_mask(), num_inference_steps=4)
    odd = task("odd", seeds=(3,), image=True, mask=box_mask(), num_inference_steps=3)
    expected = make_all(engine, [fine])
    blended = SourceLatents.blended
    refused: list[int] = []
    steps = engine.components.schedule.steps(3, 0.3, odd.job.strength)

    def refuse(self: SourceLatents, latents: Tensor, alpha: float, sigma: float) -> Tensor:
        if alpha == steps[0].alpha_prev:
            refused.append(1)
            raise ValueError("an odd mask")
        return blended(self, latents, alpha, sigma)

    monkeypatch.setattr(SourceLatents, "blended", refuse)
    listener = Listener(engine)
    again = replace(fine.job, job_id="again")
    with Gate(engine) as gate:
        listener.submit(image_job("first"))
        gate.wait()
        for one, assets in ((again, fine.assets), (odd.job, odd.assets)):
            listener._unanswered += len(one.seeds)
            engine.submit(one, partial(listener._hear, one.job_id), assets)
    listener.wait()
    assert refused
    assert isinstance(listener.error("odd"), GenerationFailed)
    for index in (0, 1):
        apart = listener.image("again", index).latents - expected["fine", index].latents
        assert abs(apart).max() < 1e-3


@pytest.mark.parametrize(
    "words",
    [
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "GET was unable to find an engine to execute this computation",
        "Triton Error [CUDA]: out of memory",
    ],
)
@pytest.mark.parametrize("part", ["unet", "text encoder", "decoder"])
def test_a_lack_of_memory_in_a_librarys_own_words_is_one(
    words: str, part: str, make_engine: MakeEngine, oracle_of: Oracles
) -> None:
    engine = make_engine()
    parts = engine.components
    refused: list[int] = []

    def refuse_many(forward: Callable[..., Any]) -> Callable[..., Any]:
        def limited(given: Tensor, *more: object, **named: object) -> object:
            if len(given) > 1:
                refused.append(len(given))
                raise RuntimeError(words)
            return forward(given, *more, **named)

        return limited

    listener = Listener(engine)
    jobs = tuple(
        image_job(str(n), prompt=f"fox {n}", seeds=(n,), num_inference_steps=2) for n in range(4)
    )
    with Gate(engine) as gate:
        listener.submit(image_job("first"))
        gate.wait()
        if part == "unet":
            parts.unet.forward = refuse_many(parts.unet.forward)
        elif part == "decoder":
            parts.vae.model.decode = refuse_many(parts.vae.model.decode)
        else:
            (encoder,) = parts.text_encoders
            encoder.forward = refuse_many(encoder.forward)
        listener.submit(*jobs)
    listener.wait()
    assert refused or part == "decoder", "nothing was tried together"
    for job in jobs:
        assert_same(listener.image(job.job_id), oracle_of("sd15").image(job))
    assert engine.fault is None


def test_the_devices_own_failure_is_no_lack_of_memory(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    refuse_odd(engine, lambda: torch.AcceleratorError("CUDA error: an illegal memory access"))
    with pytest.raises(EngineFault):
        engine.generate(image_job(seeds=(ODD,)))
    assert isinstance(engine.fault, torch.AcceleratorError)
    caplog.clear()


def test_more_steps_than_a_schedule_has_are_refused(demo_models: Path, tmp_path: Path) -> None:
    short = shutil.copytree(demo_models / "sd15", tmp_path / "short")
    described = short / "scheduler" / "scheduler_config.json"
    config = json.loads(described.read_text()) | {"original_inference_steps": 30}
    described.write_text(json.dumps(config))
    args = model_args(demo_models, "sd15").model_copy(update={"checkpoint": str(short)})
    engine = Engine(load(args), ModelUserConfig())
    try:
        with pytest.raises(InvalidRequest, match="31; this model's schedule has 30") as caught:
            engine.generate(image_job(num_inference_steps=31))
        assert caught.value.param == "num_inference_steps"
        assert len(engine.generate(image_job(num_inference_steps=30))) == 1
    finally:
        engine.stop()
    too_many = args.model_copy(update={"defaults": Defaults(num_inference_steps=40)})
    with pytest.raises(ValueError, match=r"defaults\.num_inference_steps is 40; .* has 30"):
        load(too_many)


def test_rows_that_find_no_memory_even_alone_are_not_the_engines_fault(
    make_engine: MakeEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine = make_engine()
    tries: list[int] = []

    def refuse(call: UnetCall) -> Tensor:
        tries.append(len(call.t))
        if len(tries) == 1:
            raise ValueError("not now")
        if len(tries) == 2:
            raise torch.OutOfMemoryError("full")
        return call.run()

    tap_unet(engine, refuse)
    assert len(engine.generate(image_job("job"))) == 1
    assert engine.fault is None
    caplog.clear()
