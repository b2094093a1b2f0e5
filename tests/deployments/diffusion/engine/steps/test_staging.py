"""The numbers of a step: exact, and brought over by one copy that nobody waits for."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from deployments.diffusion.engine.policy.trajectory import Trajectory
from deployments.diffusion.engine.steps.staging import Numbers
from tests.conftest import demo_loras, model_args
from tests.deployments.diffusion.engine.harness import styles
from tests.deployments.diffusion.engine.steps.walk import Walk, Watch
from tests.deployments.diffusion.engine.tasks import ADAPTERS, Checkpoint, Net, box_mask, task

CPU, META = torch.device("cpu"), torch.device("meta")
READS_A_NUMBER = "aten._local_scalar_dense.default"  # what `.item()` comes to: the host waits


def test_each_part_comes_back_in_its_shape() -> None:
    numbers = Numbers(CPU)
    noise = torch.randn(4, 12, 17)
    no_adapters: list[list[float]] = [[]]
    given: list[torch.Tensor | list[float] | list[list[float]]] = [
        [3.0, 1.0, 2.0],
        noise,
        [],
        [[0.5, -1.0], [2.0, 0.0]],
        no_adapters,
        torch.zeros(6, 2, 1, 1, 1),
    ]
    places = [numbers.put(part) for part in given]
    numbers.upload()
    assert places == list(range(len(given)))
    for place, part in zip(places, given, strict=True):
        assert torch.equal(numbers[place], torch.as_tensor(part))
        assert numbers[place].dtype is torch.float32


def test_timesteps_indexes_and_weights_are_exact() -> None:
    numbers = Numbers(CPU)
    timesteps = numbers.put(list(range(1000)))
    indexes = numbers.put(list(range(512)))
    weights = numbers.put([0.1, -10.0, 1 / 3])
    numbers.upload()
    assert numbers[timesteps].long().tolist() == list(range(1000))
    assert numbers[indexes].long().tolist() == list(range(512))
    assert torch.equal(numbers[weights], torch.tensor([0.1, -10.0, 1 / 3]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_noise_of_half_precision_is_exact_in_single(dtype: torch.dtype) -> None:
    noise = torch.randn((4, 64, 64), generator=torch.Generator().manual_seed(1), dtype=dtype)
    numbers = Numbers(CPU)
    place = numbers.put(noise.float())
    numbers.upload()
    assert torch.equal(numbers[place].to(dtype), noise)


def test_all_parts_share_one_copy() -> None:
    numbers = Numbers(META)
    for size in (1, 100, 0, 7):
        numbers.put([0.0] * size)
    with Watch() as watch:
        numbers.upload()
    assert watch.uploads == [108]
    assert all(numbers[place].is_meta for place in range(4))


@pytest.fixture
def mixed(demo_models: Path) -> Iterator[Walk]:
    """A model that does everything that images can ask for."""
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])
    walk = Walk(checkpoint.args(), "float16", loras=demo_loras(demo_models, "sd15"))
    yield walk
    walk.close()


def join_everything(walk: Walk, models: Path) -> list[Trajectory]:
    """Rows of all tasks, at different steps of different schedules."""
    checkpoint = Checkpoint(models, "sd15", "sd15", ADAPTERS["sd15"])
    start: dict[str, object] = {"image": True, "strength": 0.75}
    nets = [Net("depth"), Net("canny", 0.8, 0.0, 0.5)]
    return walk.join(
        task("text", num_inference_steps=8, seeds=(1, 2)),
        task("guided", guidance_scale=3.0, negative_prompt="dark"),
        task("styles", loras=styles(papercut=0.7, ink=-1.0, neon=0.4)),
        task("nets", nets=nets, guidance_scale=2.0, eta=0.0),
        task("picture", sees=(checkpoint, 2, 0.5), eta=1.0),
        task("image", **start),  # type: ignore[arg-type]
        task("hole", **start, mask=box_mask(), nets=nets[:1], loras=styles(neon=1.0)),  # type: ignore[arg-type]
    )


def copies_of_steps(walk: Walk, rows: Sequence[Trajectory], steps: int) -> list[int]:
    """Copies from the host in each of the next steps of these rows, of which none reads a
    number back."""
    copies: list[int] = []
    for _ in range(steps):
        with Watch() as watch:
            walk.step(rows)
        assert len(watch.names) > 1000, "the watch saw no UNet"
        assert READS_A_NUMBER not in watch.names
        copies.append(len(watch.uploads))
    return copies


def test_a_step_of_a_mixed_batch_is_one_copy(mixed: Walk, demo_models: Path) -> None:
    rows = join_everything(mixed, demo_models)
    assert copies_of_steps(mixed, rows, 3) == [1, 1, 1]


def test_rows_that_join_with_other_weights_add_no_copy(mixed: Walk, demo_models: Path) -> None:
    rows = join_everything(mixed, demo_models)
    mixed.step(rows)
    rows += mixed.join(task("same styles", loras=styles(papercut=-0.5, ink=2.0)))
    assert copies_of_steps(mixed, rows, 1) == [1]
    rows = mixed.join(task("one style", loras=styles(papercut=1.0), num_inference_steps=2))
    assert copies_of_steps(mixed, rows, 1) == [1], "fewer adapters are multiplied: a new mix"
    rows += mixed.join(task("another", loras=styles(neon=1.0)))
    assert copies_of_steps(mixed, rows, 1) == [1]


def test_a_step_of_a_video_is_one_copy(demo_models: Path) -> None:
    motion = str(demo_models / "motion-adapter" / "sd15")
    args = model_args(demo_models, "sd15").model_copy(update={"motion_adapter": motion})
    walk = Walk(args, "float16", loras=demo_loras(demo_models, "sd15"))
    try:
        rows = walk.join(task("v", num_frames=2, guidance_scale=2.0, loras=styles(neon=1.0)))
        assert copies_of_steps(walk, rows, 2) == [1, 1]
    finally:
        walk.close()


def test_a_number_that_is_read_back_is_seen() -> None:
    """Else the tests above would pass for a step that waits for the device."""
    with Watch() as watch:
        assert torch.ones(3).sum().item() == 3
    assert READS_A_NUMBER in watch.names
