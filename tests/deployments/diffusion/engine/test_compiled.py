"""Compiled blocks: the same images, few compilations, and eager calls where compiling fails."""

import logging
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import TensorifyScalarRestartAnalysis, Unsupported

from configs.app import WarmSize
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models import compiler as compiler_module
from deployments.diffusion.engine.models.compiler import inductor
from tests.conftest import demo_loras, model_args
from tests.deployments.diffusion.engine.compiling import TORCHS_OWN, compiled_engine, traced
from tests.deployments.diffusion.engine.conftest import Oracles
from tests.deployments.diffusion.engine.harness import eventually, image_job, styles
from tests.deployments.diffusion.engine.oracle import assert_same
from tests.deployments.diffusion.engine.pipelines import Pipelines
from tests.deployments.diffusion.engine.tasks import ADAPTERS, Checkpoint, Net, Task, make_all, task
from tests.deployments.diffusion.engine.test_tasks import (
    assert_all_same,
    make_together,
    mixed,
)

WIDTHS = 2  # of the stand-ins' blocks
NUMBERS = count()
SIZES = (WarmSize(width=128, height=128),)


@pytest.fixture(scope="module")
def checkpoint(demo_models: Path) -> Checkpoint:
    return Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])


@pytest.fixture(scope="module")
def engine(checkpoint: Checkpoint) -> Iterator[Engine]:
    """Text and styles alone; traced, not compiled, and warm: shared, as what is traced is."""
    torch.set_num_threads(1)
    args = checkpoint.args().model_copy(update={"controls": {}, "ip_adapter": None})
    with compiled_engine(args, demo_loras(checkpoint.models, "sd15"), warmup=SIZES) as made:
        yield made


def test_a_crowd_is_what_diffusers_makes_alone(engine: Engine, checkpoint: Checkpoint) -> None:
    tasks = [
        task("plain", seeds=(1, 2)),
        task("guided", seeds=(3,), guidance_scale=3.0, negative_prompt="blue"),
        task("styles", seeds=(4,), loras=styles(papercut=0.8, ink=-0.5)),
        task("style", seeds=(5,), loras=styles(neon=1.0), num_inference_steps=6),
    ]
    made = make_together(engine, tasks)
    assert_all_same(made, tasks, Pipelines(checkpoint))
    assert engine.figures().compiled == 1


LONG = "a red fox in the snow by the lake at night, " * 9


def short(**fields: Any) -> Task:
    """A task of two steps, another one each time."""
    number = next(NUMBERS)
    return task(str(number), **{"seeds": (number,), "num_inference_steps": 2, **fields})


def test_after_the_warm_up_nothing_is_compiled_whatever_is_asked_for(engine: Engine) -> None:
    compiled = engine.figures().compiles_total
    kinds = 1 + 2  # one row; several, with prompts of one length and of several
    assert compiled == 2 * kinds * WIDTHS, "with and without adapters"
    ink, two = styles(ink=1.0), styles(papercut=0.5, neon=-1.0)
    three = styles(papercut=1, ink=1, neon=1)
    make_all(engine, [short()])
    make_all(engine, [short(loras=two)])
    make_all(engine, [short(loras=ink), short(loras=two), short(guidance_scale=2.0), short()])
    make_all(engine, [short(loras=three) for _ in range(5)])
    tall = {"width": 64, "height": 200}
    make_all(engine, [short(**tall, loras=ink), short(**tall)])
    make_all(engine, [short(width=200, height=72)])
    make_all(engine, [short(prompt=LONG)])
    make_all(engine, [short(prompt=LONG, loras=ink), short(guidance_scale=2.0, loras=two)])
    make_all(engine, [short(), short(prompt=LONG), short(negative_prompt=LONG, guidance_scale=2)])
    assert engine.figures().compiles_total == compiled
    assert engine.figures().compile_failures_total == 0


@pytest.mark.deep
@pytest.mark.timeout(900)
def test_the_same_with_pictures_and_control_nets(checkpoint: Checkpoint) -> None:
    loras = demo_loras(checkpoint.models, "sd15")
    ink, two = styles(ink=1.0), styles(papercut=0.5, neon=-1.0)
    one, pictures = (checkpoint, 1, 0.5), (checkpoint, 2, 0.5)
    canny, both = [Net("canny")], [Net("canny"), Net("depth")]
    with compiled_engine(checkpoint.args(), loras, warmup=SIZES) as engine:
        compiled = engine.figures().compiles_total
        kinds = 1 + 2  # one row; several, with prompts of one length and of several
        seeing = kinds + 2  # and of several, of both kinds, a single one sees pictures
        assert compiled == (2 * (kinds + seeing) + 2) * WIDTHS, "two are the ControlNets'"
        make_all(engine, [short(sees=one, width=200, height=72)])
        make_all(engine, [short(nets=canny, sees=pictures, loras=two), short(loras=ink)])
        make_all(engine, [short(nets=both), short(nets=canny, loras=ink, guidance_scale=2.0)])
        make_all(engine, [short(sees=pictures, loras=ink), short(sees=one), short(), short()])
        make_all(engine, [short(sees=one, prompt=LONG), short(nets=both), short(loras=ink)])
        assert engine.figures().compiles_total == compiled
        assert engine.figures().compile_failures_total == 0


def said(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """What the engine's log says."""
    return [record for record in caplog.records if record.name == "tcd.engine"]


def broken(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
    """A machine without a C++ compiler."""
    raise RuntimeError("there is no working C++ compiler")


def test_what_cannot_be_compiled_runs_eager_and_says_so_once(
    demo_models: Path, oracle_of: Oracles, caplog: pytest.LogCaptureFixture
) -> None:
    job = image_job(loras=styles(ink=1.0))
    with (
        caplog.at_level(logging.WARNING, "tcd.engine"),
        compiled_engine(
            model_args(demo_models, "sd15"), demo_loras(demo_models, "sd15"), broken
        ) as engine,
    ):
        (image,) = engine.generate(job)
        figures = engine.figures()
    assert_same(image, oracle_of("sd15").image(job))
    assert (figures.compiled, figures.compiles_total) == (0, 0)
    assert figures.compile_failures_total >= WIDTHS
    (record,) = said(caplog)
    assert record.exc_text is not None
    assert "no working C++ compiler" in record.exc_text


def test_another_look_at_the_code_is_no_failure(demo_models: Path) -> None:
    """Torch asks for one by an exception that passes through the compiler."""
    asked = 0

    def asking(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise TensorifyScalarRestartAnalysis
        return traced(graph, inputs)

    with compiled_engine(model_args(demo_models, "sd15"), {}, asking) as engine:
        engine.generate(image_job(num_inference_steps=1))
        assert asked > 1
        assert eventually(lambda: engine.figures().compiles_total == asked - 1)
        assert engine.figures().compile_failures_total == 0


def test_what_cannot_be_traced_runs_eager_from_then_on(
    demo_models: Path,
    oracle_of: Oracles,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = 0

    def refuse(*_: object, **__: object) -> Tensor:
        nonlocal tried
        tried += 1
        raise Unsupported("this is too new")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: refuse)
    with (
        caplog.at_level(logging.WARNING, "tcd.engine"),
        compiled_engine(model_args(demo_models, "sd15"), {}) as engine,
    ):
        (image,) = engine.generate(image_job())
        figures = engine.figures()
    assert_same(image, oracle_of("sd15").image(image_job()))
    assert tried == 1
    assert (figures.compiled, figures.compile_failures_total) == (0, 1)
    assert len(said(caplog)) == 1


def test_more_kinds_than_are_kept_run_eager_and_are_counted(
    demo_models: Path, oracle_of: Oracles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiler_module, "MOST_KINDS", 1)
    with compiled_engine(model_args(demo_models, "sd15"), {}) as engine:
        (image,) = engine.generate(image_job())
        figures = engine.figures()
    assert_same(image, oracle_of("sd15").image(image_job()))
    assert (figures.compiled, figures.compiles_total) == (1, 1)
    assert figures.compile_failures_total > 0


@pytest.mark.deep
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings(TORCHS_OWN)
def test_every_task_by_inductor(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled indeed, with an empty cache, and all of it before the first request."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    tasks, pipelines = mixed(checkpoint), Pipelines(checkpoint)
    loras = demo_loras(checkpoint.models, "sd15")
    with compiled_engine(checkpoint.args(), loras, inductor, SIZES) as engine:
        warm = engine.figures()
        assert (warm.compiled, warm.compile_failures_total) == (1, 0)
        assert_all_same(make_together(engine, tasks), tasks, pipelines)
        for one in tasks:
            assert_all_same(make_all(engine, [one]), [one], pipelines)
        remixed = [
            task("remixed", loras=styles(neon=0.3, ink=1.0)),
            task("other", seeds=(5,), width=64, height=72, loras=styles(papercut=1.0)),
        ]
        assert_all_same(make_all(engine, remixed), remixed, pipelines)
        assert engine.figures().compiles_total == warm.compiles_total
    assert any(tmp_path.iterdir())
