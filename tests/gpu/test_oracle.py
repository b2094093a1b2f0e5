"""The oracle on a device: what the engine makes is what diffusers makes there."""

from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from diffusers import AnimateDiffPipeline, MotionAdapter, TCDScheduler

from configs.app import CompileMode, ModelArgs, VaeArgs, WarmSize
from configs.families import FamilyName
from deployments.contracts.figures import EngineFigures
from deployments.contracts.jobs import ImageJob, Latents, LoraWeight
from tests.conftest import demo_loras, model_args
from tests.deployments.diffusion.engine.compiling import TORCHS_OWN
from tests.deployments.diffusion.engine.harness import image_job, styles
from tests.deployments.diffusion.engine.oracle import distance
from tests.deployments.diffusion.engine.pipelines import Pipelines, Place, Tape
from tests.deployments.diffusion.engine.tasks import (
    ADAPTERS,
    HEIGHT,
    PLUS_ADAPTERS,
    WIDTH,
    Checkpoint,
    Net,
    Task,
    box_mask,
    make_all,
    task,
)
from tests.deployments.diffusion.engine.test_tasks import make_together, mixed
from tests.gpu.conftest import EngineOn, PipelinesOf
from tests.gpu.judging import (
    TOLERANCE,
    Errors,
    assert_as_good,
    assert_equal,
    errors,
    truths,
)

pytestmark = [
    pytest.mark.gpu,
    # SDXL pipelines call it themselves.
    pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning"),
]
HALVES = [torch.float16, torch.bfloat16]


def args_of(checkpoint: Checkpoint, dtype: torch.dtype) -> ModelArgs:
    """The engine's arguments; a VAE that overflows in half precision computes in single, as
    diffusers has it: in half it is judged alone (`test_vae`)."""
    if dtype is torch.float32 or checkpoint.family != "sdxl":
        return checkpoint.args()
    return checkpoint.args().model_copy(update={"vae": VaeArgs(dtype="float32")})


def hole_tasks(checkpoint: Checkpoint) -> list[Task]:
    """What a UNet of nine channels is asked for."""
    hole: dict[str, object] = {"image": True, "mask": box_mask(), "num_inference_steps": 6}
    everything = {**hole, "nets": [Net("canny")], "sees": (checkpoint, 2, 0.5)}
    return [
        task("hole", **hole, strength=0.6, seeds=(1, 2)),  # type: ignore[arg-type]
        task("noise only, guided", **hole, guidance_scale=3.0),  # type: ignore[arg-type]
        task("everything", **everything, strength=0.9, loras=styles(ink=1)),  # type: ignore[arg-type]
    ]


def plus_tasks(checkpoint: Checkpoint) -> list[Task]:
    """What an adapter that reads hidden states is asked for."""
    return [
        task("picture", seeds=(1,), sees=(checkpoint, 1, 0.6)),
        task("pictures, guided", seeds=(2,), guidance_scale=3.0, sees=(checkpoint, 2, 0.4)),
        task("none", seeds=(4,), num_inference_steps=5),
    ]


def judge(
    checkpoint: Checkpoint,
    dtype: torch.dtype,
    tasks: list[Task],
    engine_on: EngineOn,
    pipelines_of: PipelinesOf,
    *,
    how_called: CompileMode = "off",
) -> EngineFigures:
    """All tasks in one batch, then each alone. Returns what the engine counted."""
    loras = demo_loras(checkpoint.models, checkpoint.family)
    sizes = () if how_called == "off" else (WarmSize(width=WIDTH, height=HEIGHT),)
    args = args_of(checkpoint, dtype).model_copy(update={"compile": how_called, "warmup": sizes})
    engine = engine_on(args, dtype, loras=loras)
    together = make_together(engine, tasks)
    alone = {key: image for one in tasks for key, image in make_all(engine, [one]).items()}
    here = pipelines_of(checkpoint, torch.float32)
    if dtype is torch.float32:
        on_the_cpu = Pipelines(checkpoint, Place(torch.device("cpu"), torch.float32))
        assert_equal(alone, tasks, here, on_the_cpu)
        assert_equal(together, tasks, here, on_the_cpu)
        return engine.figures()
    half = pipelines_of(checkpoint, dtype)
    judged: dict[str, list[Errors]] = {"alone": [], "together": []}
    for one in tasks:
        for index in range(len(one.job.seeds)):
            theirs, truth = truths(one, index, half, here)
            for how, made in (("alone", alone), ("together", together)):
                ours = made[one.job.job_id, index].latents
                name = f"{one.job.job_id}/{index}"
                judged[how].append(errors(name, ours, theirs.latents, truth.latents))
    for how, results in judged.items():
        print(f"{checkpoint.folder}, {dtype}, {how}")
        assert_as_good(results)
    return engine.figures()


@pytest.mark.parametrize(
    ("family", "dtype"),
    [*product(("sd15", "sdxl"), (torch.float32, *HALVES)), ("sd21", torch.float16)],
    ids=str,
)
def test_every_task(
    family: FamilyName,
    dtype: torch.dtype,
    demo_models: Path,
    engine_on: EngineOn,
    pipelines_of: PipelinesOf,
) -> None:
    checkpoint = Checkpoint(demo_models, family, family, ADAPTERS.get(family))
    judge(checkpoint, dtype, mixed(checkpoint), engine_on, pipelines_of)


@pytest.mark.timeout(900)  # it compiles
@pytest.mark.filterwarnings(TORCHS_OWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("family", ADAPTERS)
def test_every_task_by_compiled_blocks(
    family: FamilyName,
    dtype: torch.dtype,
    demo_models: Path,
    engine_on: EngineOn,
    pipelines_of: PipelinesOf,
) -> None:
    checkpoint = Checkpoint(demo_models, family, family, ADAPTERS[family])
    counted = judge(
        checkpoint, dtype, mixed(checkpoint), engine_on, pipelines_of, how_called="blocks"
    )
    assert (counted.compiled, counted.compile_failures_total) == (1, 0)


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings(TORCHS_OWN)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("family", ADAPTERS)
def test_every_task_where_plain_rows_are_replayed_as_graphs(
    family: FamilyName,
    dtype: torch.dtype,
    cuda: torch.device,
    demo_models: Path,
    engine_on: EngineOn,
    pipelines_of: PipelinesOf,
) -> None:
    checkpoint = Checkpoint(demo_models, family, family, ADAPTERS[family])
    plain = [
        task("one", seeds=(1,), num_inference_steps=6),
        task("guided", seeds=(2, 3), guidance_scale=3.0),
        task("seven", seeds=tuple(range(4, 11))),
    ]
    counted = judge(checkpoint, dtype, plain, engine_on, pipelines_of, how_called="graphs")
    assert (counted.compiled, counted.compile_failures_total) == (2, 0)
    assert counted.graph_steps_total > 0
    judge(checkpoint, dtype, mixed(checkpoint), engine_on, pipelines_of, how_called="graphs")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("family", ADAPTERS)
def test_a_unet_of_nine_channels(
    family: FamilyName,
    dtype: torch.dtype,
    demo_models: Path,
    engine_on: EngineOn,
    pipelines_of: PipelinesOf,
) -> None:
    checkpoint = Checkpoint(demo_models, family, f"{family}-inpainting", ADAPTERS[family])
    judge(checkpoint, dtype, hole_tasks(checkpoint), engine_on, pipelines_of)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("family", ADAPTERS)
def test_a_plus_adapter(
    family: FamilyName,
    dtype: torch.dtype,
    demo_models: Path,
    engine_on: EngineOn,
    pipelines_of: PipelinesOf,
) -> None:
    checkpoint = Checkpoint(demo_models, family, family, PLUS_ADAPTERS[family])
    judge(checkpoint, dtype, plus_tasks(checkpoint), engine_on, pipelines_of)


VIDEO = image_job(
    "video",
    width=64,
    height=64,
    num_frames=6,
    num_inference_steps=5,
    guidance_scale=3.0,
    negative_prompt="bad",
    loras=styles(neon=0.5),
    motion_loras=(LoraWeight("zoom-in", 1.2),),
)


class Animation:
    """diffusers' AnimateDiff with TCD, a motion LoRA and a style."""

    def __init__(self, models: Path, device: torch.device, dtype: torch.dtype) -> None:
        adapter = MotionAdapter.from_pretrained(
            models / "motion-adapter" / "sd15", torch_dtype=dtype, local_files_only=True
        )
        pipe = AnimateDiffPipeline.from_pretrained(
            models / "sd15", motion_adapter=adapter, dtype=dtype, local_files_only=True
        )
        pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
        pipe.set_progress_bar_config(disable=True)
        pipe.load_lora_weights(models / "tcd-lora" / "sd15")
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        pipe.load_lora_weights(models / "motion-loras" / "zoom-in.safetensors", adapter_name="zoom")
        pipe.load_lora_weights(models / "loras" / "sd15" / "neon.safetensors", adapter_name="neon")
        pipe.set_adapters(["zoom", "neon"], [1.2, 0.5])
        self._pipe = pipe.to(device)

    def make(self, job: ImageJob) -> Latents:
        """(C, frames, h, w): the latents of the same video, alone."""
        frames: torch.Tensor = self._pipe(
            prompt=job.prompt,
            negative_prompt=job.negative_prompt,
            width=job.width,
            height=job.height,
            num_frames=job.num_frames,
            num_inference_steps=job.num_inference_steps,
            eta=job.eta,
            guidance_scale=job.guidance_scale,
            generator=torch.Generator().manual_seed(job.seeds[0]),
            output_type="latent",
        ).frames[0]
        latents: Latents = frames.float().cpu().numpy()
        return latents


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES], ids=str)
def test_videos_beside_images(
    dtype: torch.dtype, demo_models: Path, device: torch.device, engine_on: EngineOn
) -> None:
    motion = str(demo_models / "motion-adapter" / "sd15")
    args = model_args(demo_models, "sd15").model_copy(update={"motion_adapter": motion})
    motions = {"zoom-in": str(demo_models / "motion-loras" / "zoom-in.safetensors")}
    engine = engine_on(args, dtype, loras=demo_loras(demo_models, "sd15"), motion_loras=motions)
    videos = [replace(VIDEO, job_id=f"video {n}", seeds=(n,)) for n in range(4)]
    beside = [task(f"image {n}", seeds=(n,), num_inference_steps=8) for n in range(3)]
    made = make_all(engine, [*map(Task, videos), *beside])
    single, half = (Animation(demo_models, device, each) for each in (torch.float32, dtype))
    judged: list[Errors] = []
    for video in videos:
        ours = made[video.job_id, 0].latents
        if dtype is torch.float32:
            error = distance(ours, single.make(video))
            assert error <= TOLERANCE, f"{video.job_id} is {error:.1e} off"
            continue
        tape = Tape()
        with tape.recording():
            theirs = half.make(video)
        with tape.playing():
            judged.append(errors(video.job_id, ours, theirs, single.make(video)))
    if judged:
        assert_as_good(judged)
