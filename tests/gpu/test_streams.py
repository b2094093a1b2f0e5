"""Several streams, threads and engines on one device: right images, and nobody waits unasked."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from configs.families import FamilyName
from deployments.contracts.jobs import LoraWeight
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.steps.preparation import Order
from deployments.diffusion.engine.steps.row import Row
from tests.conftest import demo_loras
from tests.deployments.diffusion.engine.harness import image_job, styles
from tests.deployments.diffusion.engine.oracle import distance, levels_apart
from tests.deployments.diffusion.engine.tasks import (
    ADAPTERS,
    Checkpoint,
    Made,
    Task,
    make_all,
)
from tests.deployments.diffusion.engine.test_tasks import mixed
from tests.gpu.conftest import EngineOn
from tests.gpu.judging import CLEARLY_WRONG

pytestmark = [
    pytest.mark.gpu,
    # torch says so whenever it is told to look for waits.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype:UserWarning"),
]
LEVELS = 8  # of 255: what is read too early or too late is not a little off
LATE = 10_000_000  # cycles of the device: some five milliseconds
REPEATS = 3


def crowd(checkpoint: Checkpoint) -> tuple[list[Task], list[int]]:
    """Every task, and after how many steps of the first one each comes."""
    tasks = mixed(checkpoint)
    return tasks, [index * 8 // len(tasks) for index in range(len(tasks))]


def again(tasks: Sequence[Task], name: str) -> list[Task]:
    """The same under other names."""
    return [replace(one, job=replace(one.job, job_id=f"{one.job.job_id}, {name}")) for one in tasks]


def assert_unchanged(made: Made, expected: Made) -> None:
    """But for rounding, which is another one in every batch."""
    for (job_id, index), image in made.items():
        other = expected[job_id.rpartition(", ")[0], index]
        error = distance(image.latents, other.latents)
        assert error <= CLEARLY_WRONG, f"{job_id}/{index} is {error:.1e} off"
        assert levels_apart(image.pixels, other.pixels) <= LEVELS, job_id


def engine_of(checkpoint: Checkpoint, engine_on: EngineOn, **more: object) -> Engine:
    loras = demo_loras(checkpoint.models, checkpoint.family)
    return engine_on(checkpoint.args(), loras=loras, **more)  # type: ignore[arg-type]


def test_streams_wait_for_each_other(
    demo_models: Path, cuda: torch.device, engine_on: EngineOn
) -> None:
    """Each of the three streams is late in turn: whoever did not wait would read what is not
    there yet, or what is there no longer."""
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])
    engine = engine_of(checkpoint, engine_on)
    tasks, joins = crowd(checkpoint)
    expected = make_all(engine, tasks)
    parts = engine.components
    for late in (preparing_late(engine), late_in(parts.unet), late_in(parts.vae.model.decoder)):
        with late:
            for turn in range(REPEATS):
                made = make_all(engine, again(tasks, f"late {turn}"), joins)
                assert_unchanged(made, expected)


@contextmanager
def late_in(model: nn.Module) -> Iterator[None]:
    """Has the stream that a model runs on stand still before each of its calls."""
    hook = model.register_forward_pre_hook(lambda *_: torch.cuda._sleep(LATE))
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def preparing_late(engine: Engine) -> Iterator[None]:
    """Has the stream on which rows are made ready stand still before them."""
    preparation = engine._preparation
    rows = preparation.rows

    def late(orders: Sequence[Order]) -> Iterator[Row]:
        torch.cuda._sleep(LATE)
        return rows(orders)

    preparation.rows = late  # type: ignore[method-assign]
    try:
        yield
    finally:
        preparation.rows = rows  # type: ignore[method-assign]


def test_two_engines_on_one_device(demo_models: Path, engine_on: EngineOn) -> None:
    assert_side_by_side(demo_models, engine_on, [None, None])


def test_an_engine_on_each_of_two_devices(
    demo_models: Path, cuda: torch.device, engine_on: EngineOn
) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one CUDA device")
    assert_side_by_side(demo_models, engine_on, [torch.device("cuda:0"), torch.device("cuda:1")])


def assert_side_by_side(
    models: Path, engine_on: EngineOn, devices: Sequence[torch.device | None]
) -> None:
    families: tuple[FamilyName, ...] = ("sd15", "sdxl")
    checkpoints = [Checkpoint(models, family, family, ADAPTERS[family]) for family in families]
    engines = [
        engine_of(checkpoint, engine_on, device=device)
        for checkpoint, device in zip(checkpoints, devices, strict=True)
    ]
    crowds = [crowd(checkpoint) for checkpoint in checkpoints]
    expected = [make_all(e, tasks) for e, (tasks, _) in zip(engines, crowds, strict=True)]
    for engine, device in zip(engines, devices, strict=True):
        assert device is None or engine.components.unet.device == device

    def run(index: int, turn: int) -> Made:
        tasks, joins = crowds[index]
        return make_all(engines[index], again(tasks, f"turn {turn}"), joins)

    with ThreadPoolExecutor(len(engines)) as threads:
        for turn in range(REPEATS):
            both = threads.map(run, range(len(engines)), [turn] * len(engines))
            for made, right in zip(both, expected, strict=True):
                assert_unchanged(made, right)


def test_nobody_waits_for_the_device_unasked(
    demo_models: Path, device: torch.device, engine_on: EngineOn
) -> None:
    """Steps, preparation, decoding and arriving adapters: a synchronisation that nobody asked for
    would raise, and fail an image or break the engine."""
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])
    motion = str(demo_models / "motion-adapter" / "sd15")
    args = checkpoint.args().model_copy(update={"motion_adapter": motion})
    loras = demo_loras(demo_models, "sd15")
    engine = engine_on(
        args,
        torch.float16,
        loras=loras | {f"new-{name}": source for name, source in loras.items()},
        motion_loras={"zoom-in": str(demo_models / "motion-loras" / "zoom-in.safetensors")},
    )
    tasks, joins = crowd(checkpoint)
    shown = image_job("shown", num_inference_steps=6, partial_images=3, guidance_scale=2.0)
    video = image_job("video", width=64, height=64, num_frames=6, guidance_scale=2.0)
    moving = replace(video, job_id="moving", motion_loras=(LoraWeight("zoom-in", 1.0),))
    tasks += [Task(shown), Task(video), Task(moving)]
    joins += [1, 2, 4]
    for turn in range(2):
        make_all(engine, again(tasks, f"warm {turn}"), joins)
    arriving = image_job("arriving", loras=styles(**{f"new-{name}": 0.5 for name in loras}))
    with no_synchronisation(device):
        made = make_all(engine, [*again(tasks, "watched"), Task(arriving)], [*joins, 3])
    assert len(made) == sum(len(one.job.seeds) for one in tasks) + 1
    assert engine.fault is None
    assert engine.figures().failed_total == 0


@contextmanager
def no_synchronisation(device: torch.device) -> Iterator[None]:
    """Has every wait for a CUDA device raise that is not one for an event."""
    if device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_the_watch_sees_a_wait(cuda: torch.device) -> None:
    """Else the test above would show nothing."""
    number = torch.ones(1, device=cuda)
    with no_synchronisation(cuda), pytest.raises(RuntimeError, match="synchroniz"):
        number.item()
