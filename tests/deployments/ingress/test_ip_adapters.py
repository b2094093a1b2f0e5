"""`ip_adapter` on the wire: several objects, regions, and the further pictures of an edit."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, TCDScheduler
from diffusers.image_processor import IPAdapterMaskProcessor
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

from deployments.contracts.api import EditsForm, GenerationsBody
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import IpAdapter
from deployments.ingress.http.brackets import joined
from tests.deployments.diffusion.engine.tasks import picture
from tests.deployments.ingress.images import data_url, png
from tests.serving import IMAGE_ENCODERS, Served

WIDTH, HEIGHT, LEVELS = 136, 96, 2


def region(*, right: bool) -> Image.Image:
    """Twice as large as the images that are made, one half of it white."""
    pixels = np.zeros((2 * HEIGHT, 2 * WIDTH), np.uint8)
    pixels[:, WIDTH:] = 255
    return Image.fromarray(pixels if right else 255 - pixels)


def expected(models: Path, pictures: Sequence[Image.Image]) -> np.ndarray:
    """By diffusers: the first picture by `base` on the left, the second by `plus` on the right."""
    pipe: Any = StableDiffusionXLPipeline.from_pretrained(models / "sdxl", local_files_only=True)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.load_lora_weights(models / "tcd-lora" / "sdxl")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    pipe.load_ip_adapter(
        models / "ip-adapter",
        subfolder="sdxl_models",
        weight_name=["ip-adapter_sdxl.safetensors", "ip-adapter-plus_sdxl_vit-h.safetensors"],
        image_encoder_folder=None,
    )
    pipe.set_ip_adapter_scale([0.9, 0.6])
    shown = []
    for name, seen, hidden in (("sdxl", pictures[0], False), ("sd15", pictures[1], True)):
        folder = models / "ip-adapter" / IMAGE_ENCODERS[name]
        pipe.register_modules(
            image_encoder=CLIPVisionModelWithProjection.from_pretrained(folder),
            feature_extractor=CLIPImageProcessorPil.from_pretrained(folder),
        )
        made, nothing = pipe.encode_image(seen, "cpu", 1, hidden)
        shown.append(torch.stack([nothing, made]))
    masks = IPAdapterMaskProcessor().preprocess(
        [region(right=False), region(right=True)], height=HEIGHT, width=WIDTH
    )
    image = pipe(
        prompt="two balls",
        width=WIDTH,
        height=HEIGHT,
        num_inference_steps=4,
        guidance_scale=3.0,
        eta=0.3,
        generator=torch.Generator().manual_seed(5),
        ip_adapter_image_embeds=shown,
        cross_attention_kwargs={"ip_adapter_masks": [mask[None] for mask in masks]},
    ).images[0]
    return np.asarray(image).astype(np.int16)


def test_two_adapters_with_encoders_and_regions_of_their_own(
    served: Served, demo_models: Path
) -> None:
    pictures = [Image.fromarray(picture(number, 90, 70)) for number in (1, 2)]
    answer = served.openai().images.generate(
        model="sdxl",
        prompt="two balls",
        size=f"{WIDTH}x{HEIGHT}",
        extra_body={
            "seed": 5,
            "guidance_scale": 3.0,
            "ip_adapter": [
                {
                    "image": data_url(png(pictures[0])),
                    "scale": 0.9,
                    "mask": data_url(png(region(right=False))),
                },
                {
                    "name": "plus",
                    "image": data_url(png(pictures[1])),
                    "scale": 0.6,
                    "mask": data_url(png(region(right=True))),
                },
            ],
        },
    )
    assert answer.data is not None
    made = Image.open(io.BytesIO(base64.b64decode(answer.data[0].b64_json or "")))
    apart = np.abs(np.asarray(made).astype(np.int16) - expected(demo_models, pictures))
    assert apart.max() <= LEVELS


def test_the_card_names_them(served: Served) -> None:
    card = httpx.get(f"{served.url}/v1/models/sdxl", timeout=30).json()
    by_name = {
        name: (Path(one["adapter"]).name, one["image_encoder"], one["hidden"])
        for name, one in card["ip_adapters"].items()
    }
    assert list(by_name.items()) == [
        ("base", ("ip-adapter_sdxl.safetensors", "sdxl", False)),
        ("plus", ("ip-adapter-plus_sdxl_vit-h.safetensors", "sd15", True)),
    ]
    assert Path(card["ip_adapter"]).name == "ip-adapter_sdxl.safetensors"
    assert (card["image_encoder"], card["image_encoder_hidden"]) == ("sdxl", False)
    other = httpx.get(f"{served.url}/v1/models/sd15", timeout=30).json()
    assert list(other["ip_adapters"]) == ["default"]
    assert "image-variation" in card["tasks"]


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        (None, None),
        ([], ()),
        ({"image": "a"}, IpAdapter(("a",))),
        (
            {"image": ["a", "b"], "scale": 0.2, "name": "plus", "mask": "c"},
            IpAdapter(("a", "b"), 0.2, "plus", "c"),
        ),
        (
            [{"image": "a"}, {"image": ["b"], "name": "plus", "scale": None}],
            (IpAdapter(("a",)), IpAdapter(("b",), name="plus")),
        ),
    ],
)
def test_one_object_or_several(sent: object, read: object) -> None:
    body = GenerationsBody.model_validate({"prompt": "a", "ip_adapter": sent})
    assert body.to_request().ip_adapter == read


def test_the_official_clients_flattened_form() -> None:
    flat = [
        (("", "image"), "a"),
        (("", "image"), "b"),
        (("", "name"), "base"),
        (("", "name"), "plus"),
        (("", "scale"), "0.5"),
        (("", "scale"), "1"),
    ]
    form = EditsForm.model_validate({"prompt": "a", "ip_adapter": joined(flat)})
    assert form.to_request([b"edited"], None).ip_adapter == (
        IpAdapter(("a",), 0.5, "base"),
        IpAdapter(("b",), 1.0, "plus"),
    )


def test_further_pictures_of_an_edit() -> None:
    def seen(sent: object) -> object:
        form = EditsForm.model_validate({"prompt": "a", "ip_adapter": sent})
        return form.to_request([b"edited", b"x", b"y"], None).ip_adapter

    assert seen(None) == IpAdapter((b"x", b"y"))
    one = {"image": "a", "scale": 0.9, "name": "plus", "mask": "m"}
    assert seen(one) == IpAdapter(("a", b"x", b"y"), 0.9, "plus", "m")
    assert seen([one]) == (IpAdapter(("a",), 0.9, "plus", "m"), IpAdapter((b"x", b"y")))
    with pytest.raises(InvalidRequest, match="4 objects, and further images would be one more"):
        seen([one] * 4)
