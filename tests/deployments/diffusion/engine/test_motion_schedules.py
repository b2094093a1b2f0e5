"""Few-step motion adapters: their schedules, in videos alone."""

from pathlib import Path

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    DDIMScheduler,
    MotionAdapter,
    TCDScheduler,
)

from configs.app import ModelUserConfig, MotionSchedule
from deployments.contracts.jobs import ImageJob
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from deployments.diffusion.engine.models.schedule import Schedule
from tests.conftest import model_args

LIGHTNING = MotionSchedule(beta_schedule="linear", timestep_spacing="trailing")


def test_a_video_has_its_own_and_images_have_theirs(demo_models: Path) -> None:
    """AnimateDiff-Lightning's, without TCD: by diffusers' DDIM, which its Euler is too."""
    motion = demo_models / "motion-adapter" / "sd15"
    more = {"motion_adapter": str(motion), "motion_schedule": LIGHTNING, "tcd_lora": None}
    parts = load(model_args(demo_models, "sd15").model_copy(update=more))
    engine = Engine(parts, ModelUserConfig())
    try:
        job = ImageJob("v", "a ball", (4,), 64, 64, num_frames=4, num_inference_steps=4, eta=0.0)
        (ours,) = engine.generate(job)
    finally:
        engine.stop()
    pipe = AnimateDiffPipeline.from_pretrained(
        demo_models / "sd15", motion_adapter=MotionAdapter.from_pretrained(motion)
    )
    pipe.scheduler = DDIMScheduler.from_config(
        pipe.scheduler.config,
        beta_schedule="linear",
        timestep_spacing="trailing",
        set_alpha_to_one=False,
        clip_sample=False,
    )
    pipe.set_progress_bar_config(disable=True)
    theirs = pipe(
        job.prompt,
        num_frames=4,
        height=64,
        width=64,
        num_inference_steps=4,
        guidance_scale=0,
        generator=torch.manual_seed(4),
        output_type="latent",
    ).frames[0]
    assert (torch.from_numpy(ours.latents) - theirs).norm() / theirs.norm() < 1e-3
    assert [step.t for step in parts.schedule.steps(4, 0.0)] == [999, 759, 499, 259]


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_trailing_timesteps_are_diffusers_s(steps: int) -> None:
    ours = Schedule(TCDScheduler()).changed("linear", "trailing").steps(steps, 0.0)
    ddim = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing")
    ddim.set_timesteps(steps)
    assert [step.t for step in ours] == ddim.timesteps.tolist()


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_how_betas_rise_is_diffusers_s(beta_schedule: str) -> None:
    """AnimateLCM's and others', whatever the checkpoint's are trained with."""
    theirs = DDIMScheduler(beta_start=0.0001, beta_schedule=beta_schedule)
    base = Schedule(TCDScheduler(beta_start=0.0001, beta_end=0.02, trained_betas=[0.1] * 1000))
    for step in base.changed(beta_schedule, "leading").steps(4, 0.5):
        assert step.alpha_t**2 == pytest.approx(float(theirs.alphas_cumprod[step.t]), rel=1e-4)


def test_what_is_not_said_stays() -> None:
    base = Schedule(TCDScheduler(beta_schedule="linear", prediction_type="v_prediction"))
    same = base.changed(None, "leading")
    assert same.steps(5, 0.3) == base.steps(5, 0.3)
    assert same.prediction_type == "v_prediction"
