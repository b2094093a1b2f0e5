"""Controls and IP-Adapters in videos: what diffusers' AnimateDiff pipelines make of each."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from weakref import ref

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AnimateDiffPipeline,
    AnimateDiffVideoToVideoControlNetPipeline,
    ControlNetModel,
    MotionAdapter,
    TCDScheduler,
)
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image

from configs.app import DEFAULT_IP_ADAPTER, ControlArgs, Limits, ModelArgs, ModelUserConfig
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import (
    Asset,
    ControlUse,
    FinishedImage,
    ImageJob,
    IpAdapterUse,
    LoraWeight,
    Mask,
)
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from deployments.diffusion.engine.policy.batch import Advanced, Batch
from deployments.diffusion.engine.policy.spec import ImagePrompt, RowSpec
from deployments.diffusion.engine.policy.trajectory import Trajectory
from deployments.diffusion.engine.prompts.tokens import Tokenizers
from deployments.diffusion.engine.steps.preparation import Order, Preparation
from deployments.diffusion.engine.steps.runner import Runner
from tests.conftest import demo_loras
from tests.control_models import write_adapter
from tests.deployments.diffusion.engine.tasks import (
    ADAPTERS,
    HEIGHT,
    WIDTH,
    Checkpoint,
    control_map,
    picture,
    task,
)
from tests.deployments.diffusion.engine.test_videos import TOLERANCE, by_diffusers, distance

CLEARLY_DIFFERENT = 1e-2
FRAMES = 6


def checkpoint(models: Path) -> Checkpoint:
    return Checkpoint(models, "sd15", "sd15", ADAPTERS["sd15"])


def with_motion(models: Path) -> ModelArgs:
    motion = str(models / "motion-adapter" / "sd15")
    return checkpoint(models).args().model_copy(update={"motion_adapter": motion})


@pytest.fixture(scope="module")
def engine(demo_models: Path) -> Iterator[Engine]:
    config = ModelUserConfig(loras=demo_loras(demo_models, "sd15"), limits=Limits(max_frames=40))
    engine = Engine(load(with_motion(demo_models)), config)
    yield engine
    engine.stop()


class Oracle:
    """diffusers' pipelines; those with an IP-Adapter have a UNet of their own."""

    def __init__(self, models: Path) -> None:
        self._models = models
        self._nets = {
            kind: ControlNetModel.from_pretrained(models / "controlnet" / "sd15" / kind)
            for kind in ("depth", "canny")
        }
        self._bases = {adapted: self._base(adapted) for adapted in (False, True)}

    def _base(self, adapted: bool) -> Any:
        models = self._models
        motion = MotionAdapter.from_pretrained(models / "motion-adapter" / "sd15")
        pipe = AnimateDiffPipeline.from_pretrained(models / "sd15", motion_adapter=motion)
        pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
        pipe.load_lora_weights(models / "tcd-lora" / "sd15")
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        if adapted:
            files = ADAPTERS["sd15"]
            pipe.load_ip_adapter(
                models / "ip-adapter",
                subfolder=files.subfolder,
                weight_name=files.weights,
                image_encoder_folder=None,
            )
        return pipe

    def latents(self, job: ImageJob, assets: Sequence[Asset]) -> torch.Tensor:
        """(4, frames, h, w): of a job's first video."""
        frames = job.num_frames
        assert frames is not None
        base = self._bases[bool(job.ip_adapters)]
        given: dict[str, Any] = {"num_frames": frames}
        cls: Any = AnimateDiffPipeline
        components = base.components
        if job.controls:
            cls, nets = AnimateDiffControlNetPipeline, [self._nets[c.type] for c in job.controls]
            components = {**components, "controlnet": nets if len(nets) > 1 else nets[0]}
            maps = [
                [image(assets[index]) for index in (control.maps * frames)[:frames]]
                for control in job.controls
            ]
            given |= {
                "conditioning_frames": maps if len(nets) > 1 else maps[0],
                "controlnet_conditioning_scale": alone(
                    [c.conditioning_scale for c in job.controls]
                ),
                "control_guidance_start": alone([c.start for c in job.controls]),
                "control_guidance_end": alone([c.end for c in job.controls]),
            }
        if job.image is not None:
            cls = AnimateDiffVideoToVideoControlNetPipeline
            del given["num_frames"]
            given |= {"video": [image(assets[job.image])] * frames, "strength": job.strength}
        for use in job.ip_adapters:
            base.set_ip_adapter_scale(use.scale)
            pairs = torch.from_numpy(np.stack([assets[index] for index in use.embeds], axis=1))
            shown = pairs[:1]
            if job.guidance_scale > 1:
                shown = torch.cat([pairs[1:], shown])
            given["ip_adapter_image_embeds"] = [shown]
            if use.mask is not None:
                mask = Image.fromarray(np.asarray(assets[use.mask], np.uint8))
                size = {"height": job.height, "width": job.width}
                masks = IPAdapterMaskProcessor().preprocess([mask], **size)
                given["cross_attention_kwargs"] = {"ip_adapter_masks": [masks[:, 0][:, None]]}
        pipe = cls(**components)
        pipe.set_progress_bar_config(disable=True)
        if frames > 24:
            pipe.enable_free_noise(context_length=16, context_stride=4)
        made = by_diffusers(pipe, job, **given)
        if frames > 24:
            pipe.disable_free_noise()
        return made


def image(asset: Asset) -> Image.Image:
    return Image.fromarray(np.asarray(asset, np.uint8))


def alone(values: list[float]) -> object:
    return values[0] if len(values) == 1 else values


@pytest.fixture(scope="module")
def oracle(demo_models: Path) -> Oracle:
    return Oracle(demo_models)


def moving(kind: str, frames: int = FRAMES) -> list[Asset]:
    """A map of each frame, each another one."""
    return [np.roll(control_map(kind, WIDTH, HEIGHT), 5 * n, axis=1) for n in range(frames)]


def video(**fields: object) -> ImageJob:
    usual: dict[str, object] = {"num_frames": FRAMES, "num_inference_steps": 4, "seeds": (1,)}
    return ImageJob("v", "a girl in a garden", width=WIDTH, height=HEIGHT, **(usual | fields))  # type: ignore[arg-type]


def sees(models: Path, *numbers: int) -> list[Asset]:
    return [checkpoint(models).embeds(picture(number, 90, 80)) for number in numbers]


def test_a_map_of_each_frame_for_some_of_the_steps(engine: Engine, oracle: Oracle) -> None:
    use = ControlUse("depth", tuple(range(FRAMES)), 0.8, 0.2, 0.9)
    job, maps = video(controls=(use,), guidance_scale=3.0, num_inference_steps=6), moving("depth")
    (ours,) = engine.generate(job, maps)
    assert distance(ours, oracle.latents(job, maps)) < TOLERANCE
    other = oracle.latents(job, [*reversed(maps)])
    assert distance(ours, other) > CLEARLY_DIFFERENT, "the frames' order does not matter"


def test_two_controls_one_with_a_map_for_all_frames(engine: Engine, oracle: Oracle) -> None:
    uses = (ControlUse("canny", (0,), 0.7), ControlUse("depth", tuple(range(1, 1 + FRAMES)), 0.5))
    job = video(controls=uses)
    assets = [control_map("canny", WIDTH, HEIGHT), *moving("depth")]
    (ours,) = engine.generate(job, assets)
    assert distance(ours, oracle.latents(job, assets)) < TOLERANCE


@pytest.mark.parametrize("guidance_scale", [0.0, 3.0])
def test_pictures_to_resemble_beside_images_that_see_others(
    engine: Engine, oracle: Oracle, demo_models: Path, guidance_scale: float
) -> None:
    """And beside one that sees none, and one with a control."""
    job = video(
        ip_adapters=(IpAdapterUse(DEFAULT_IP_ADAPTER, (0, 1), 0.8),), guidance_scale=guidance_scale
    )
    assets = sees(demo_models, 1, 2)
    others = [
        task("seeing", sees=(checkpoint(demo_models), 1, 0.5), num_inference_steps=4),
        task("plain", num_inference_steps=4),
    ]
    events = engine.events(job, assets)
    beside = [engine.events(one.job, one.assets) for one in others]
    ours = next(event for event in events if isinstance(event, FinishedImage))
    crowd = [next(e for e in run if isinstance(e, FinishedImage)) for run in beside]
    assert distance(ours, oracle.latents(job, assets)) < TOLERANCE
    blind = oracle.latents(replace(job, ip_adapters=()), ())
    assert distance(ours, blind) > CLEARLY_DIFFERENT
    for one, found in zip(others, crowd, strict=True):
        (again,) = engine.generate(one.job, one.assets)
        assert distance(found, torch.from_numpy(again.latents)) < TOLERANCE


def test_pictures_that_act_on_a_part_of_each_frame(
    engine: Engine, oracle: Oracle, demo_models: Path
) -> None:
    mask: Mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, : WIDTH // 2] = 255
    use = IpAdapterUse(DEFAULT_IP_ADAPTER, (0,), 0.9, mask=1)
    job, assets = video(ip_adapters=(use,)), [*sees(demo_models, 3), mask]
    (ours,) = engine.generate(job, assets)
    assert distance(ours, oracle.latents(job, assets)) < TOLERANCE
    everywhere = replace(job, ip_adapters=(replace(use, mask=None),))
    assert distance(ours, oracle.latents(everywhere, assets)) > CLEARLY_DIFFERENT


def test_a_long_video_with_all_of_it(engine: Engine, oracle: Oracle, demo_models: Path) -> None:
    job = video(
        num_frames=28,
        num_inference_steps=2,
        controls=(ControlUse("depth", tuple(range(28)), 0.6),),
        ip_adapters=(IpAdapterUse(DEFAULT_IP_ADAPTER, (28,), 0.6),),
        guidance_scale=2.0,
    )
    assets = [*moving("depth", 28), *sees(demo_models, 4)]
    (ours,) = engine.generate(job, assets)
    assert distance(ours, oracle.latents(job, assets)) < TOLERANCE


def test_a_start_picture_with_controls(engine: Engine, oracle: Oracle) -> None:
    job = video(
        image=0,
        strength=0.75,
        controls=(ControlUse("canny", tuple(range(1, 1 + FRAMES)), 0.8),),
        guidance_scale=2.5,
    )
    assets = [picture(7, WIDTH, HEIGHT), *moving("canny")]
    (ours,) = engine.generate(job, assets)
    assert distance(ours, oracle.latents(job, assets)) < TOLERANCE


def test_a_style_goes_with_it_and_goes_again(engine: Engine, demo_models: Path) -> None:
    """What one video was given is not on the next."""
    plain = video()
    (before,) = engine.generate(plain)
    styled = video(
        loras=(LoraWeight("neon", 0.8),),
        controls=(ControlUse("depth", (0,), 0.8),),
        ip_adapters=(IpAdapterUse(DEFAULT_IP_ADAPTER, (1,), 0.8),),
    )
    assets = [control_map("depth", WIDTH, HEIGHT), *sees(demo_models, 5)]
    (between,) = engine.generate(styled, assets)
    (after,) = engine.generate(plain)
    assert np.array_equal(before.latents, after.latents)
    assert not np.array_equal(before.latents, between.latents)


def refused(engine: Engine, job: ImageJob) -> str:
    with pytest.raises(InvalidRequest) as caught:
        engine.check(job)
    assert caught.value.param in ("controls", "ip_adapter")
    return str(caught.value)


def test_pictures_are_let_go_of_with_the_row_that_sees_them(demo_models: Path) -> None:
    """The motion UNet, whose next call may never come, keeps none of a video that is done."""
    parts = load(with_motion(demo_models))
    runner, preparation = Runner(parts), Preparation(parts, 2**20)
    (seen_as,) = sees(demo_models, 1)
    pair = np.asarray(seen_as, np.float32)
    spec = RowSpec(
        prompt=Tokenizers(parts.tokenizers).tokenize("a girl", "prompt"),
        seed=0,
        height=64,
        width=64,
        num_inference_steps=1,
        image_prompts=(ImagePrompt(DEFAULT_IP_ADAPTER, (pair,)),),
    )
    for frames in (None, 2):
        row = Trajectory("one", replace(spec, frames=frames), slot=0)
        with torch.inference_mode():
            (ready,) = preparation.rows([Order("one", "job", row.spec)])
        seen = ref(ready.seen[0])
        runner.adopt(0, ready)
        assert runner.run(Batch(row.key, (row,))) == Advanced({}, ANY)
        runner.free(0)
        preparation.forget("job")
        del ready
        assert seen() is None, frames


def test_what_is_wrong_is_said_before_any_map_is_made(engine: Engine) -> None:
    def controlled(*uses: ControlUse) -> ImageJob:
        return video(controls=uses)

    assert "this model has canny, depth" in refused(engine, controlled(ControlUse("pose", (0,))))
    twice = controlled(ControlUse("depth", (0,)), ControlUse("depth", (1,)))
    assert "named twice" in refused(engine, twice)
    some = controlled(ControlUse("depth", (0, 1, 2)))
    assert "has 3 maps; one is needed, or of a video one a frame" in refused(engine, some)
    none = controlled(ControlUse("depth", (0,), start=0.3, end=0.4))
    assert "none of the 4 steps lies within 0.3 to 0.4" in refused(engine, none)
    face = video(ip_adapters=(IpAdapterUse("face", (0,)),))
    assert "this model has default" in refused(engine, face)


def test_t2i_adapters_are_not_for_videos(demo_models: Path, tmp_path: Path) -> None:
    write_adapter(demo_models / "sd15", tmp_path, "full_adapter")
    controls = {"sketch": ControlArgs(source=str(tmp_path))}
    args = with_motion(demo_models).model_copy(update={"controls": controls})
    engine = Engine(load(args), ModelUserConfig())
    try:
        job = video(controls=(ControlUse("sketch", (0,)),))
        assert "is a T2I-Adapter here, which videos cannot have" in refused(engine, job)
    finally:
        engine.stop()
