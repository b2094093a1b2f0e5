"""AnimateDiff in the engine: diffusers' latents, whatever goes on beside it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    AnimateDiffVideoToVideoPipeline,
    DiffusionPipeline,
    MotionAdapter,
    TCDScheduler,
)
from PIL import Image

from configs.app import Limits, ModelUserConfig
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import FinishedImage, ImageJob, LoraWeight, Progress
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from deployments.diffusion.engine.policy.batch import Batch, Outcome
from deployments.diffusion.engine.steps.runner import Runner
from tests.conftest import demo_loras, model_args

TOLERANCE = 1e-3


@pytest.fixture(scope="module")
def engine(demo_models: Path) -> Iterator[Engine]:
    motion = str(demo_models / "motion-adapter" / "sd15")
    args = model_args(demo_models, "sd15").model_copy(update={"motion_adapter": motion})
    motions = {"zoom-in": str(demo_models / "motion-loras" / "zoom-in.safetensors")}
    config = ModelUserConfig(
        loras=demo_loras(demo_models, "sd15"), motion_loras=motions, limits=Limits(max_frames=40)
    )
    engine = Engine(load(args), config)
    yield engine
    engine.stop()


@pytest.fixture(scope="module")
def pipeline(demo_models: Path) -> AnimateDiffPipeline:
    adapter = MotionAdapter.from_pretrained(demo_models / "motion-adapter" / "sd15")
    pipe = AnimateDiffPipeline.from_pretrained(demo_models / "sd15", motion_adapter=adapter)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(demo_models / "tcd-lora" / "sd15")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


def video(job_id: str, **fields: object) -> ImageJob:
    usual: dict[str, object] = {"num_frames": 6, "num_inference_steps": 5, "seeds": (0,)}
    return ImageJob(job_id, "a girl in a garden", width=64, height=64, **(usual | fields))  # type: ignore[arg-type]


def by_diffusers(pipeline: DiffusionPipeline, job: ImageJob, **more: object) -> torch.Tensor:
    """The latents of a job's video; `more`: what is not of every pipeline."""
    latents: torch.Tensor = pipeline(
        prompt=job.prompt,
        negative_prompt=job.negative_prompt,
        width=job.width,
        height=job.height,
        num_inference_steps=job.num_inference_steps,
        eta=job.eta,
        guidance_scale=job.guidance_scale,
        generator=torch.manual_seed(job.seeds[0]),
        output_type="latent",
        **more,
    ).frames[0]
    return latents


def distance(ours: FinishedImage, theirs: torch.Tensor) -> float:
    return float((torch.from_numpy(ours.latents) - theirs).norm() / theirs.norm())


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_motion_and_style_with_guidance_beside_images(
    engine: Engine, pipeline: AnimateDiffPipeline, demo_models: Path
) -> None:
    job = video(
        "v",
        guidance_scale=3.0,
        negative_prompt="bad",
        loras=(LoraWeight("neon", 0.5),),
        motion_loras=(LoraWeight("zoom-in", 1.2),),
    )
    events = engine.events(job)
    images = [
        engine.events(ImageJob(f"i{n}", "a ball", (n,), 64, 64, num_inference_steps=8))
        for n in range(3)
    ]
    ours = next(event for event in events if isinstance(event, FinishedImage))
    assert all(any(isinstance(e, FinishedImage) for e in image) for image in images)

    sources = {
        "zoom-in": demo_models / "motion-loras" / "zoom-in.safetensors",
        "neon": demo_models / "loras" / "sd15" / "neon.safetensors",
    }
    for name, source in sources.items():
        pipeline.load_lora_weights(source, adapter_name=name)
    pipeline.set_adapters(["zoom-in", "neon"], [1.2, 0.5])
    theirs = by_diffusers(pipeline, job, num_frames=6)
    pipeline.unload_lora_weights()
    assert ours.pixels.shape == (6, 64, 64, 3)
    assert distance(ours, theirs) < TOLERANCE


def test_two_videos_take_turns_and_do_not_mix(
    engine: Engine, pipeline: AnimateDiffPipeline
) -> None:
    jobs = [video("a", seeds=(1,)), video("b", seeds=(2,), num_frames=4)]
    runs = [engine.events(job) for job in jobs]
    for job, run in zip(jobs, runs, strict=True):
        ours = next(event for event in run if isinstance(event, FinishedImage))
        theirs = by_diffusers(pipeline, job, num_frames=job.num_frames)
        assert distance(ours, theirs) < TOLERANCE


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")
def test_a_long_video_is_freenoise_s_beside_a_short_one(
    engine: Engine, pipeline: AnimateDiffPipeline, demo_models: Path
) -> None:
    job = video(
        "long",
        num_frames=28,
        num_inference_steps=2,
        guidance_scale=3.0,
        motion_loras=(LoraWeight("zoom-in", 1.2),),
    )
    within = video("within", num_frames=24, seeds=(3,))
    runs = [engine.events(one) for one in (within, job)]
    short, ours = (next(event for event in run if isinstance(event, FinishedImage)) for run in runs)
    assert distance(short, by_diffusers(pipeline, within, num_frames=24)) < TOLERANCE

    pipeline.enable_free_noise(context_length=16, context_stride=4)
    zoom = demo_models / "motion-loras" / "zoom-in.safetensors"
    pipeline.load_lora_weights(zoom, adapter_name="zoom-in")
    pipeline.set_adapters(["zoom-in"], [1.2])
    theirs = by_diffusers(pipeline, job, num_frames=28)
    pipeline.unload_lora_weights()
    pipeline.disable_free_noise()
    assert ours.pixels.shape == (28, 64, 64, 3)
    assert distance(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("frames", [6, 28])
def test_a_start_picture_is_a_video_that_stands_still(
    engine: Engine, pipeline: AnimateDiffPipeline, frames: int
) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (64, 64, 3), np.uint8)
    job = video("still", num_frames=frames, image=0, strength=0.8, guidance_scale=3.0, seeds=(5,))
    (ours,) = engine.generate(job, (picture,))
    theirs = AnimateDiffVideoToVideoPipeline(**pipeline.components)
    theirs.set_progress_bar_config(disable=True)
    if frames > 24:
        theirs.enable_free_noise(context_length=16, context_stride=4)
    still = [Image.fromarray(picture)] * frames
    latents = by_diffusers(theirs, job, video=still, strength=0.8)
    if frames > 24:
        theirs.disable_free_noise()
    assert distance(ours, latents) < TOLERANCE


def test_an_image_goes_before_a_videos_next_step(engine: Engine) -> None:
    slow = engine.events(video("slow", num_inference_steps=50, priority=-1))
    assert isinstance(next(slow), Progress)
    image = engine.generate(ImageJob("quick", "a ball", (1,), 64, 64, num_inference_steps=8))
    assert len(image) == 1
    steps = sum(isinstance(event, Progress) for event in slow)
    assert steps > 30  # most of the video came after the image


def test_what_videos_cannot_do(engine: Engine) -> None:
    with pytest.raises(InvalidRequest, match="at most 40") as caught:
        engine.generate(video("long", num_frames=41))
    assert caught.value.param == "num_frames"
    with pytest.raises(InvalidRequest, match="partial_images"):
        engine.generate(video("partial", partial_images=1))
    with pytest.raises(InvalidRequest, match="mask cannot be used with videos"):
        engine.check(video("masked", image=0, mask=1))
    with pytest.raises(InvalidRequest, match="strength needs an image"):
        engine.check(video("weak", strength=0.5))
    with pytest.raises(InvalidRequest, match="leaves no step"):
        engine.check(video("weak", image=0, strength=0.1))
    with pytest.raises(InvalidRequest, match=r"\(64, 64, 3\) uint8 is needed"):
        engine.generate(video("small", image=0), (np.zeros((8, 8, 3), np.uint8),))
    with pytest.raises(InvalidRequest, match="zoom-in"):
        engine.generate(video("unknown", motion_loras=(LoraWeight("roll"),)))
    still = ImageJob("m", "a", (0,), 64, 64, motion_loras=(LoraWeight("zoom-in"),))
    with pytest.raises(InvalidRequest, match="num_frames"):
        engine.generate(still)


def test_a_guided_videos_step_is_two_calls_that_an_image_can_go_between(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither is larger than the call of a video without guidance."""
    called: list[int] = []
    run = Runner.run

    def seen(runner: Runner, batch: Batch) -> Outcome:
        called.append(0 if batch.key.frames is None else batch.unet_rows)
        if called.count(6) % 2 == 0:  # it is made ready during the next call, a first half
            name = f"beside {len(called)}"
            image = ImageJob(name, "a ball", (1,), 64, 64, num_inference_steps=1)
            engine.submit(image, lambda _: None)
        return run(runner, batch)

    monkeypatch.setattr(Runner, "run", seen)
    guided = video("g", guidance_scale=3.0, num_inference_steps=9, priority=-1)
    steps = [event.step for event in engine.events(guided) if isinstance(event, Progress)]
    assert steps == list(range(1, 10))
    assert called.count(6) == 18
    assert set(called) == {0, 6}
    before_image = [called[:at].count(6) for at, rows in enumerate(called) if rows == 0]
    assert any(calls % 2 for calls in before_image), "none went between two halves"
