"""Every stage trains for two steps on little, and writes what diffusers' own pipelines load."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import (
    AnimateDiffPipeline,
    ControlNetModel,
    DiffusionPipeline,
    MotionAdapter,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
)
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPVisionModelWithProjection

from demo.train.loop import CHECKPOINT
from demo.train.stages import STAGES
from demo.train.workshop import Workshop
from demo.world.style import STYLES
from preprocessors.depth import DepthEstimator

PROMPT = "a big red ball on the left, in the snow"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """All stages, two steps each."""
    folder = tmp_path_factory.mktemp("train")
    device = torch.device("cpu")
    work, models = folder / "work", folder / "models"
    shop = Workshop(work, models, device, plain=8, moving=4, varied=36, large=12, scale=1)
    for stage in STAGES:
        plan = replace(stage.plan, steps=2, batch_size=2)
        replace(stage, plan=plan).run(shop)
    return shop


def begun(trained: Workshop, folder: Path) -> Workshop:
    """Another run, in a new folder, that begins with copies of the finished models."""
    shop = replace(
        trained, work=folder / "work", models=folder / "models", from_finished=True, seed=1
    )
    shutil.copytree(trained.models, shop.models)
    return shop


def card_of(output: Path) -> Path:
    """The card of a model that is a file or a folder."""
    if output.is_file():
        return output.with_suffix(".md")
    own = output / "README.md"
    return own if own.exists() else output.parent / "README.md"


def loaded(pipeline: type[DiffusionPipeline], folder: Path, **parts: object) -> DiffusionPipeline:
    """A pipeline with the sampler that is served."""
    pipe = pipeline.from_pretrained(folder, local_files_only=True, **parts)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_every_stage_wrote_its_output_and_a_card(trained: Workshop) -> None:
    for stage in STAGES:
        output = trained.models / stage.output
        assert output.exists()
        assert card_of(output).exists()
        assert (trained.work / stage.name / "checkpoint.pt").exists()
    for config in trained.models.rglob("config.json"):
        assert not json.loads(config.read_text()).get("_name_or_path"), config
    suffixes = {file.suffix for file in trained.models.rglob("*") if file.is_file()}
    assert suffixes <= {".json", ".safetensors", ".txt", ".md"}


@pytest.mark.parametrize("family", ["sd15", "sd21", "sdxl"])
def test_base_tcd_and_styles_load(trained: Workshop, family: str) -> None:
    pipeline = StableDiffusionXLPipeline if family == "sdxl" else StableDiffusionPipeline
    pipe = loaded(pipeline, trained.models / family)
    assert {p.dtype for p in (*pipe.unet.parameters(), *pipe.vae.parameters())} == {torch.float32}
    pipe.load_lora_weights(trained.models / "tcd-lora" / family, adapter_name="tcd")
    for style in STYLES:
        file = trained.models / "loras" / family / f"{style}.safetensors"
        pipe.load_lora_weights(file, adapter_name=style)
    pipe.set_adapters(["tcd", *STYLES], [1.0, 0.5, 0.5, 0.5])
    picture = pipe(PROMPT, num_inference_steps=2, guidance_scale=0, generator=generator()).images[0]
    assert picture.size == ((128, 128) if family == "sdxl" else (64, 64))


def test_a_run_of_a_finished_stage_changes_nothing(trained: Workshop, tmp_path: Path) -> None:
    stage = next(stage for stage in STAGES if stage.name == "tcd-sd15")
    file = trained.models / stage.output / "pytorch_lora_weights.safetensors"
    before = file.read_bytes()
    plan = replace(stage.plan, steps=2, batch_size=2)
    replace(stage, plan=plan).run(trained)
    assert file.read_bytes() == before


OF_A_BASE = ("vae", "vae-sdxl", "sdxl", "tcd-sd15", "ink-sdxl", "neon-sdxl", "papercut-sdxl")
BESIDE_IT = ("canny-sdxl", "ip-adapter-sdxl", "inpainting-sdxl", "depth", "motion")


@pytest.mark.parametrize("name", [*OF_A_BASE, *BESIDE_IT])
def test_a_stage_begins_with_its_finished_model(
    trained: Workshop, tmp_path: Path, name: str
) -> None:
    """A step that hardly moves anything leaves it as it was; another seed would draw others."""
    shop = begun(trained, tmp_path)
    models = shop.models
    stage = next(stage for stage in STAGES if stage.name == name)
    plan = replace(stage.plan, steps=1, batch_size=2, learning_rate=1e-9, bfloat16=False)
    replace(stage, plan=plan).run(shop)
    output = Path(stage.output)
    files = (
        [output]
        if output.suffix
        else sorted(file.relative_to(models) for file in (models / output).glob("*.safetensors"))
    )
    assert files
    card = card_of(models / output)
    assert "--further`\n- Steps: 1 of 2," in card.read_text()
    assert "; on from a finished model of 2 steps\n" in card.read_text()
    assert json.loads(card.with_suffix(".json").read_text())["steps"] == 3
    near = 2e-3 if name == "vae" else 2e-4  # it is made white again
    for file in files:
        before, after = load_file(trained.models / file), load_file(models / file)
        for key, tensor in before.items():
            torch.testing.assert_close(
                after[key], tensor, rtol=1e-3, atol=near, msg=f"{file}: {key}"
            )


def test_the_target_of_tcd_begins_where_the_student_does(trained: Workshop, tmp_path: Path) -> None:
    shop = begun(trained, tmp_path)
    stage = next(stage for stage in STAGES if stage.name == "tcd-sdxl")
    plan = replace(stage.plan, steps=1, batch_size=2, learning_rate=1e-9)
    replace(stage, plan=plan).run(shop)
    modules = torch.load(shop.work / stage.name / CHECKPOINT, weights_only=True)["modules"]
    students = {
        key: t for key, t in modules.items() if key.startswith("student") and "lora_" in key
    }
    assert students
    for key, tensor in students.items():
        torch.testing.assert_close(modules[key.replace("student", "target", 1)], tensor)


def test_an_interrupted_go_remembers_what_it_began_with(trained: Workshop, tmp_path: Path) -> None:
    """Stopped after a step, and taken up by who knows of the checkpoint alone."""
    shop = begun(trained, tmp_path)
    stage = next(stage for stage in STAGES if stage.name == "depth")
    replace(stage, plan=replace(stage.plan, steps=1, batch_size=2)).run(shop)
    plan = replace(stage.plan, steps=3, batch_size=2)
    replace(stage, plan=plan).run(replace(shop, from_finished=False))
    figures = json.loads((shop.models / stage.output / "README.json").read_text())
    assert figures["steps"] == 2 + 3


@pytest.mark.parametrize("control", ["canny", "depth"])
@pytest.mark.parametrize(
    ("family", "pipeline"),
    [("sd15", StableDiffusionControlNetPipeline), ("sdxl", StableDiffusionXLControlNetPipeline)],
)
def test_controlnets_load(
    trained: Workshop, family: str, pipeline: type[DiffusionPipeline], control: str
) -> None:
    folder = trained.models / "controlnet" / family / control
    net = ControlNetModel.from_pretrained(folder, local_files_only=True)
    pipe = loaded(pipeline, trained.models / family, controlnet=net)
    picture = pipe(
        PROMPT, image=Image.new("RGB", (64, 64)), num_inference_steps=2, generator=generator()
    ).images[0]
    assert picture.size == (64, 64)


@pytest.mark.parametrize(
    ("family", "subfolder", "pipeline"),
    [
        ("sd15", "models", StableDiffusionPipeline),
        ("sdxl", "sdxl_models", StableDiffusionXLPipeline),
    ],
)
def test_ip_adapter_loads(
    trained: Workshop, family: str, subfolder: str, pipeline: type[DiffusionPipeline]
) -> None:
    folder = trained.models / "ip-adapter"
    encoder = CLIPVisionModelWithProjection.from_pretrained(
        folder / subfolder / "image_encoder", local_files_only=True
    )
    pipe = loaded(pipeline, trained.models / family, image_encoder=encoder)
    pipe.load_ip_adapter(
        folder,
        subfolder=subfolder,
        weight_name=f"ip-adapter_{family}.safetensors",
        image_encoder_folder=None,
        local_files_only=True,
    )
    embeds = torch.zeros(2, 1, 1, encoder.config.projection_dim)
    picture = pipe(
        PROMPT,
        height=64,
        width=64,
        ip_adapter_image_embeds=[embeds[:, 0]],
        num_inference_steps=2,
        generator=generator(),
    ).images[0]
    assert picture.size == (64, 64)


@pytest.mark.parametrize(
    ("family", "pipeline"),
    [("sd15", StableDiffusionInpaintPipeline), ("sdxl", StableDiffusionXLInpaintPipeline)],
)
def test_inpainting_loads(
    trained: Workshop, family: str, pipeline: type[DiffusionPipeline]
) -> None:
    pipe = loaded(pipeline, trained.models / f"{family}-inpainting")
    picture = pipe(
        PROMPT,
        image=Image.new("RGB", (64, 64)),
        mask_image=Image.new("L", (64, 64), 255),
        height=64,
        width=64,
        num_inference_steps=2,
        generator=generator(),
    ).images[0]
    assert picture.size == (64, 64)


def test_depth_estimator_estimates(trained: Workshop) -> None:
    estimator = DepthEstimator(trained.models / "dpt-hybrid", "cpu", "float32")
    picture = trained.plain_pictures().pixels[0]
    assert estimator.estimate([picture], [(64, 64)])[0].shape == (64, 64, 3)


def test_motion_adapter_and_motion_loras_load(trained: Workshop) -> None:
    adapter = MotionAdapter.from_pretrained(
        trained.models / "motion-adapter" / "sd15", local_files_only=True
    )
    pipe = AnimateDiffPipeline.from_pretrained(
        trained.models / "sd15", motion_adapter=adapter, local_files_only=True
    )
    pipe.set_progress_bar_config(disable=True)
    for name in ("zoom-in", "pan-left"):
        pipe.load_lora_weights(
            trained.models / "motion-loras" / f"{name}.safetensors", adapter_name=name
        )
    frames = pipe(
        PROMPT, num_frames=4, num_inference_steps=2, generator=generator(), height=64, width=64
    ).frames[0]
    assert len(frames) == 4
