"""The code samples of the TCD-LoRA guide: our answer over HTTP against the sample's own code, run
on the same stand-in checkpoints (its typos mended, sizes as small as the stand-ins)."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoPipelineForInpainting,
    ControlNetModel,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    TCDScheduler,
)
from numpy.typing import NDArray
from PIL import Image
from transformers import DPTForDepthEstimation, DPTImageProcessorPil

from tests.serving import Served

LEVELS = 2
SIZE = (128, 128)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """Two balls before a gradient."""
    yy, xx = np.mgrid[: SIZE[1], : SIZE[0]]
    pixels = np.stack([xx * 2 % 256, yy * 2 % 256, np.full_like(xx, 90)], -1)
    for cx, cy, r, colour in ((40, 50, 25, (220, 40, 30)), (90, 80, 30, (30, 60, 210))):
        pixels[(xx - cx) ** 2 + (yy - cy) ** 2 < r * r] = colour
    return Image.fromarray(pixels.astype(np.uint8))


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(file_of(image)).decode()


def file_of(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def pixels_of(b64: str | None) -> NDArray[np.int16]:
    assert b64 is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64)))).astype(np.int16)


def generate(served: Served, model: str, prompt: str, **extra: object) -> NDArray[np.int16]:
    answer = served.openai().images.generate(
        model=model, prompt=prompt, extra_body={"seed": 0, "eta": 0.3, "guidance_scale": 0, **extra}
    )
    assert answer.data is not None
    return pixels_of(answer.data[0].b64_json)


def same(ours: NDArray[np.int16], theirs: Image.Image) -> bool:
    return bool(np.abs(ours - np.asarray(theirs).astype(np.int16)).max() <= LEVELS)


def fused(pipe: Any, models: Path) -> Any:
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(models / "tcd-lora" / "sdxl")
    pipe.fuse_lora()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_text_to_image(served: Served, demo_models: Path) -> None:
    prompt = "Painting of the orange cat Otto von Garfield"
    pipe = fused(StableDiffusionXLPipeline.from_pretrained(demo_models / "sdxl"), demo_models)
    image = pipe(
        prompt=prompt,
        num_inference_steps=4,
        guidance_scale=0,
        eta=0.3,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert same(generate(served, "sdxl", prompt, num_inference_steps=4), image)


def test_inpainting(served: Served, demo_models: Path, picture: Image.Image) -> None:
    mask = Image.new("L", SIZE, 0)
    mask.paste(255, (30, 40, 100, 110))
    prompt = "a tiger sitting on a park bench"
    pipe = AutoPipelineForInpainting.from_pretrained(demo_models / "sdxl-inpainting")
    image = fused(pipe, demo_models)(
        prompt=prompt,
        image=picture,
        mask_image=mask,
        height=SIZE[1],
        width=SIZE[0],
        num_inference_steps=8,
        guidance_scale=0,
        eta=0.3,
        strength=0.99,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    answer = served.openai().images.edit(
        model="sdxl-inpainting",
        prompt=prompt,
        image=("picture.png", file_of(picture)),
        mask=("mask.png", file_of(mask)),
        extra_body={
            "seed": 0,
            "eta": 0.3,
            "guidance_scale": 0,
            "num_inference_steps": 8,
            "strength": 0.99,
            "preserve_unmasked": False,
        },
    )
    assert answer.data is not None
    assert same(pixels_of(answer.data[0].b64_json), image)


def test_community_models(served: Served, demo_models: Path) -> None:
    prompt = "A man, clad in a meticulously tailored military uniform"
    pipe = StableDiffusionXLPipeline.from_pretrained(demo_models / "sdxl-animagine")
    image = fused(pipe, demo_models)(
        prompt=prompt,
        num_inference_steps=8,
        guidance_scale=0,
        eta=0.3,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    assert same(generate(served, "animagine", prompt, num_inference_steps=8), image)


def test_style_lora_mixing(served: Served, demo_models: Path) -> None:
    prompt = "papercut of a winter mountain, snow"
    pipe = StableDiffusionXLPipeline.from_pretrained(demo_models / "sdxl")
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(demo_models / "tcd-lora" / "sdxl", adapter_name="tcd")
    style = demo_models / "loras" / "sdxl" / "papercut.safetensors"
    pipe.load_lora_weights(style, adapter_name="style")
    pipe.set_adapters(["tcd", "style"], adapter_weights=[1.0, 1.0])
    image = pipe(
        prompt=prompt,
        num_inference_steps=4,
        guidance_scale=0,
        eta=0.3,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    ours = generate(
        served,
        "sdxl",
        prompt,
        num_inference_steps=4,
        loras=[{"name": "papercut", "weight": 1.0}],
    )
    assert same(ours, image)


def controlled(models: Path, kind: str, prompt: str, control: Image.Image) -> Image.Image:
    controlnet = ControlNetModel.from_pretrained(models / "controlnet" / "sdxl" / kind)
    pipe = StableDiffusionXLControlNetPipeline.from_pretrained(
        models / "sdxl", controlnet=controlnet
    )
    made: Image.Image = fused(pipe, models)(
        prompt,
        image=control,
        height=SIZE[1],
        width=SIZE[0],
        num_inference_steps=4,
        guidance_scale=0,
        eta=0.3,
        controlnet_conditioning_scale=0.5,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    return made


def test_depth_controlnet(served: Served, demo_models: Path, picture: Image.Image) -> None:
    estimator = DPTForDepthEstimation.from_pretrained(demo_models / "dpt-hybrid")
    processor = DPTImageProcessorPil.from_pretrained(demo_models / "dpt-hybrid")

    def get_depth_map(image: Image.Image) -> Image.Image:
        pixel_values = processor(images=image, return_tensors="pt").pixel_values
        with torch.no_grad():
            depth_map = estimator(pixel_values).predicted_depth
        depth_map = torch.nn.functional.interpolate(
            depth_map.unsqueeze(1), size=SIZE, mode="bicubic", align_corners=False
        )
        depth_min = torch.amin(depth_map, dim=[1, 2, 3], keepdim=True)
        depth_max = torch.amax(depth_map, dim=[1, 2, 3], keepdim=True)
        depth_map = (depth_map - depth_min) / (depth_max - depth_min)
        stacked = torch.cat([depth_map] * 3, dim=1).permute(0, 2, 3, 1).cpu().numpy()[0]
        return Image.fromarray((stacked * 255.0).clip(0, 255).astype(np.uint8))

    prompt = "stormtrooper lecture, photorealistic"
    image = controlled(demo_models, "depth", prompt, get_depth_map(picture))
    controls = [{"type": "depth", "image": data_url(picture), "conditioning_scale": 0.5}]
    assert same(generate(served, "sdxl", prompt, controls=controls), image)


def test_canny_controlnet(served: Served, demo_models: Path, picture: Image.Image) -> None:
    import cv2

    prompt = "ultrarealistic shot of a furry blue bird"
    edges = cv2.Canny(np.asarray(picture), 100, 200)
    canny_image = Image.fromarray(np.stack([edges] * 3, axis=2).astype(np.uint8))
    image = controlled(demo_models, "canny", prompt, canny_image)
    made_here = [{"type": "canny", "image": data_url(picture)}]
    assert same(generate(served, "sdxl", prompt, controls=made_here), image)
    # The sample brings its canny picture ready-made.
    ready = [{"type": "canny", "image": data_url(canny_image), "preprocessed": True}]
    assert same(generate(served, "sdxl", prompt, controls=ready), image)


def test_ip_adapter(served: Served, demo_models: Path, picture: Image.Image) -> None:
    prompt = "best quality, high quality, wearing sunglasses"
    pipe = fused(StableDiffusionXLPipeline.from_pretrained(demo_models / "sdxl"), demo_models)
    pipe.load_ip_adapter(
        demo_models / "ip-adapter",
        subfolder="sdxl_models",
        weight_name="ip-adapter_sdxl.safetensors",
    )
    pipe.set_ip_adapter_scale(0.5)
    image = pipe(
        prompt=prompt,
        ip_adapter_image=picture,
        num_inference_steps=4,
        guidance_scale=0,
        eta=0.3,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    ours = generate(served, "sdxl", prompt, ip_adapter={"image": data_url(picture), "scale": 0.5})
    assert same(ours, image)
