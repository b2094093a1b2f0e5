"""Every kind of model on the meta device, every task walked through it: nothing stays behind.

An operation that reads from the host and from the device fails on a GPU, and here, where neither
has any data.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderTiny

from configs.app import DEFAULT_IP_ADAPTER, ControlArgs, Dtype
from configs.families import FAMILIES, FamilyName
from deployments.contracts.jobs import LoraWeight
from tests.conftest import demo_loras, model_args
from tests.control_models import write_adapter, write_union
from tests.deployments.diffusion.engine.harness import styles
from tests.deployments.diffusion.engine.steps.walk import (
    LeftBehind,
    Walk,
    Watch,
    left_on_the_host,
)
from tests.deployments.diffusion.engine.tasks import (
    ADAPTERS,
    PLUS_ADAPTERS,
    Checkpoint,
    Net,
    Task,
    box_mask,
    task,
)

DTYPES: tuple[Dtype, ...] = ("float32", "float16")
GUIDED: dict[str, object] = {"guidance_scale": 3.0}
Walking = Callable[..., Walk]


@pytest.fixture
def walking() -> Iterator[Walking]:
    """Models of one test."""
    walks: list[Walk] = []

    def make(*args: object, **more: object) -> Walk:
        walks.append(Walk(*args, **more))  # type: ignore[arg-type]
        return walks[-1]

    yield make
    for walk in walks:
        walk.close()


def image_tasks(checkpoint: Checkpoint) -> list[Task]:
    """Each thing that an image can ask for, and all of them together."""
    both = [Net("depth"), Net("canny", 0.8)]
    start: dict[str, object] = {"image": True, "strength": 0.6}
    hole = {**start, "mask": box_mask()}
    tasks = [
        short("text", seeds=(1, 2)),
        short("guided", **GUIDED),
        short("guided, negative", **GUIDED, negative_prompt="dark"),
        short("one style", loras=styles(papercut=0.7)),
        short("styles, guided", **GUIDED, loras=styles(papercut=0.7, ink=-1.0, neon=0.4)),
        short("depth", nets=both[:1]),
        short("canny", nets=[Net("canny", 0.8, 0.0, 0.5)], num_inference_steps=3),
        short("both, guided", nets=both, **GUIDED),
        short("image", **start),
        short("hole", **hole),
        short("hole, noise only", image=True, mask=box_mask()),
        short("everything but a picture", **hole, **GUIDED, nets=both, loras=styles(neon=1.0)),
    ]
    if checkpoint.adapter is None:
        return tasks
    sees = (checkpoint, 1, 0.5)
    return [
        *tasks,
        short("picture", sees=sees),
        short("pictures, guided", sees=(checkpoint, 2, 0.5), **GUIDED),
        short("everything", **hole, **GUIDED, nets=both, loras=styles(ink=1.0), sees=sees),
    ]


def hole_tasks(checkpoint: Checkpoint) -> list[Task]:
    """What a UNet of nine channels is asked for."""
    hole: dict[str, object] = {"image": True, "mask": box_mask()}
    sees = (checkpoint, 1, 0.5)
    return [
        short("hole", **hole, strength=0.6, seeds=(1, 2)),
        short("hole, noise only", **hole),
        short("everything", **hole, **GUIDED, nets=[Net("canny")], loras=styles(ink=1), sees=sees),
    ]


def short(job_id: str, **fields: object) -> Task:
    """A task of two steps, if nothing else is said."""
    return task(job_id, **{"num_inference_steps": 2, **fields})  # type: ignore[arg-type]


def walk_all(walk: Walk, tasks: Sequence[Task], alone: Sequence[Task] = ()) -> None:
    """One step of each of those alone, then all tasks as one batch to their ends."""
    with Watch():
        for one in alone:
            for row in walk.join(one):
                walk.step([row])
        walk.finish(walk.join(*tasks))
    assert left_on_the_host(walk.parts) == []


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_images(family: FamilyName, dtype: Dtype, demo_models: Path, walking: Walking) -> None:
    checkpoint = Checkpoint(demo_models, family, family, ADAPTERS.get(family))
    walk = walking(checkpoint.args(), dtype, loras=demo_loras(demo_models, family))
    tasks = image_tasks(checkpoint)
    walk_all(walk, tasks, alone=tasks if (family, dtype) == ("sd15", "float16") else tasks[:1])


def test_controls_of_all_kinds(demo_models: Path, tmp_path: Path, walking: Walking) -> None:
    base = demo_models / "sdxl"
    write_union(base, tmp_path / "union")
    write_adapter(base, tmp_path / "sketch", "full_adapter_xl", 1)
    kinds = {"openpose": "union", "tile": "union", "sketch": "sketch"}
    args = Checkpoint(demo_models, "sdxl", "sdxl").args()
    more = {kind: ControlArgs(source=str(tmp_path / name)) for kind, name in kinds.items()}
    walk = walking(args.model_copy(update={"controls": {**args.controls, **more}}), "float16")
    tasks = [
        short("modes", nets=[Net("openpose"), Net("tile", 0.8)], **GUIDED),
        short("adapter", nets=[Net("sketch")]),
        short("all", nets=[Net("sketch"), Net("depth"), Net("tile", 0.8)], **GUIDED),
    ]
    walk_all(walk, tasks, alone=tasks)
    (row,) = walk.join(tasks[1])
    with Watch() as watch:
        walk.step([row])
    assert len(watch.uploads) == 1  # the features are there


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ADAPTERS)
def test_a_plus_adapter(
    family: FamilyName, dtype: Dtype, demo_models: Path, walking: Walking
) -> None:
    checkpoint = Checkpoint(demo_models, family, family, PLUS_ADAPTERS[family])
    tasks = [
        short("text"),
        short("picture", sees=(checkpoint, 1, 0.5)),
        short("pictures, guided", sees=(checkpoint, 2, 0.5), **GUIDED),
    ]
    walk_all(walking(checkpoint.args(), dtype), tasks, alone=tasks[1:2])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", ADAPTERS)
def test_a_unet_of_nine_channels(
    family: FamilyName, dtype: Dtype, demo_models: Path, walking: Walking
) -> None:
    checkpoint = Checkpoint(demo_models, family, f"{family}-inpainting", ADAPTERS[family])
    walk = walking(checkpoint.args(), dtype, loras=demo_loras(demo_models, family))
    walk_all(walk, hole_tasks(checkpoint))


def test_videos(demo_models: Path, walking: Walking) -> None:
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])
    motion = str(demo_models / "motion-adapter" / "sd15")
    args = checkpoint.args().model_copy(update={"motion_adapter": motion})
    motions = {"zoom-in": str(demo_models / "motion-loras" / "zoom-in.safetensors")}
    walk = walking(args, "float16", loras=demo_loras(demo_models, "sd15"), motion_loras=motions)
    mixed = {"loras": styles(neon=0.5), "motion_loras": (LoraWeight("zoom-in", 1.2),)}
    conditions = {"nets": [Net("depth"), Net("canny", 0.8)], "sees": (checkpoint, 2, 0.5)}
    with Watch():
        walk.finish(walk.join(short("image")))
        for name, frames, more in (
            ("plain", 2, {"num_inference_steps": 2}),
            ("guided", 2, GUIDED),
            ("long", 27, {**GUIDED, **mixed}),
            ("from a picture", 2, {**GUIDED, **conditions, "image": True, "strength": 1}),
        ):
            asked = {"num_inference_steps": 1, "num_frames": frames, **more}
            for row in walk.join(short(name, **asked)):
                walk.finish([row])
    (row,) = walk.join(short("controlled", num_frames=3, **GUIDED, **conditions))
    for _ in range(2):  # the two calls of a step
        with Watch() as watch:
            walk.step([row])
        assert len(watch.uploads) == 1
    assert left_on_the_host(walk.parts) == []


@pytest.mark.parametrize("family", ["sd15", "sdxl"])
def test_a_single_file(family: FamilyName, demo_models: Path, walking: Walking) -> None:
    file = str(demo_models / f"{family}-community.safetensors")
    args = model_args(demo_models, family).model_copy(
        update={"checkpoint": file, "config": str(demo_models / family)}
    )
    walk_all(walking(args, "float16"), [short("text"), short("guided", **GUIDED)])


def test_a_vae_for_previews(demo_models: Path, tmp_path: Path, walking: Walking) -> None:
    tiny = AutoencoderTiny(
        encoder_block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8)
    )
    tiny.save_pretrained(tmp_path)
    args = model_args(demo_models, "sd15").model_copy(update={"preview_vae": str(tmp_path)})
    walk = walking(args, "float16")
    assert walk.parts.preview_vae is not walk.parts.vae
    walk_all(walk, [short("text")])


def test_what_is_left_behind_is_found(demo_models: Path, walking: Walking) -> None:
    """The mistake that these tests are for: an IP-Adapter's projection that stays on the CPU."""
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])
    walk = walking(checkpoint.args())
    adapter = walk.parts.ip_adapters[DEFAULT_IP_ADAPTER]
    adapter.project.to_empty(device=torch.device("cpu"))
    left = left_on_the_host(walk.parts)
    assert left
    assert all(name.startswith(".ip_adapters.default.project.") for name in left)
    with Watch():
        walk.join(short("text"))
        with pytest.raises(LeftBehind, match=r"mixes .*cpu"):
            walk.join(short("picture", sees=(checkpoint, 1, 0.5)))


def test_an_adapter_that_is_left_behind_is_found(demo_models: Path, walking: Walking) -> None:
    walk = walking(model_args(demo_models, "sd15"), loras=demo_loras(demo_models, "sd15"))
    weights = walk.parts.lora_reader.read(demo_models / "loras" / "sd15" / "neon.safetensors")
    (row,) = walk.join(short("styled", loras=styles(neon=1.0)))
    ((key, _),) = row.spec.loras
    bank = walk.parts.banks["unet"]
    bank.hold(key, bank.met(weights.layers["unet"]))
    assert left_on_the_host(walk.parts)
    with Watch(), pytest.raises(LeftBehind, match=r"mixes .*cpu"):
        walk.step([row])
