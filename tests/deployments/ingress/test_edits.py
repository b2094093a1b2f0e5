"""Edits and variations through the official client, against bare diffusers."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
from PIL import Image
from ray import serve

from configs.app import DEFAULT_IP_ADAPTER
from deployments.contracts.jobs import (
    Control,
    ControlUse,
    FinishedImage,
    ImageJob,
    ImageRequest,
    IpAdapter,
    IpAdapterUse,
    LoraWeight,
    Mask,
    Pixels,
)
from preprocessors.canny import canny
from preprocessors.resize import resize
from tests.deployments.diffusion.engine.pipelines import Pipelines
from tests.deployments.diffusion.engine.tasks import (
    ADAPTERS,
    Checkpoint,
    Task,
    control_map,
    picture,
)
from tests.deployments.ingress.images import LEVELS, apart, data_url, pixels_of, png, shown
from tests.serving import Served

WIDTH, HEIGHT = 136, 96
PICTURE = picture(7, WIDTH, HEIGHT)
HOLE = (slice(30, 70), slice(40, 100))
PLAIN: dict[str, object] = {"seed": 5, "num_inference_steps": 6}


@pytest.fixture(scope="module")
def pipelines(demo_models: Path) -> Pipelines:
    torch.set_num_threads(1)
    return Pipelines(Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"]))


def hole() -> Mask:
    """255 where the picture is made anew."""
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[HOLE] = 255
    return mask


def job(prompt: str = "a red ball", **fields: Any) -> ImageJob:
    """What an edit of `PICTURE` means, said to the engine; arrays: the picture, its mask."""
    said: dict[str, object] = {"seeds": (5,), "num_inference_steps": 6, "image": 0, **fields}
    return ImageJob(job_id="job", prompt=prompt, width=WIDTH, height=HEIGHT, **said)  # type: ignore[arg-type]


def edit(served: Served, image: bytes, mask: bytes | None = None, **fields: Any) -> Pixels:
    """The picture that an edit gives."""
    answer = served.openai().images.edit(
        prompt="a red ball",
        image=("image.png", image),
        mask=openai.omit if mask is None else ("mask.png", mask),
        extra_body={**PLAIN, **fields},
    )
    return pixels_of(answer)


def test_without_a_mask_it_is_image_to_image(served: Served, pipelines: Pipelines) -> None:
    made = edit(served, png(PICTURE), strength=0.6, guidance_scale=3.0)
    expected = pipelines.image(Task(job(strength=0.6, guidance_scale=3.0), (PICTURE,)))
    assert apart(made, expected.pixels).max() <= LEVELS


def test_the_defaults_of_image_to_image(served: Served, pipelines: Pipelines) -> None:
    answer = served.openai().images.edit(
        prompt="a red ball", image=("a.png", png(PICTURE)), n=2, extra_body={"seed": 5}
    )
    assert answer.size == f"{WIDTH}x{HEIGHT}"
    task = Task(job(seeds=(5, 6), num_inference_steps=4, strength=0.8), (PICTURE,))
    for index in range(2):
        expected = pipelines.image(task, index)
        assert apart(pixels_of(answer, index), expected.pixels).max() <= LEVELS
    assert answer.usage is not None
    assert answer.usage.model_extra == {"denoising_steps": 2 * 3}


def inpainted(pipelines: Pipelines, mask: Mask, start: Pixels = PICTURE, **fields: Any) -> Pixels:
    task = Task(job(mask=1, **{"strength": 0.99, **fields}), (start, mask))
    return pipelines.image(task).pixels


def on_white(alpha: Mask) -> Pixels:
    """The picture, with white where it is transparent."""
    share = alpha[:, :, None] / 255
    laid: Pixels = np.round(share * PICTURE + (1 - share) * 255).astype(np.uint8)
    return laid


def test_transparent_pixels_of_a_mask_are_made_anew(served: Served, pipelines: Pipelines) -> None:
    expected = inpainted(pipelines, hole())
    for colours in (PICTURE, np.zeros_like(PICTURE), np.full_like(PICTURE, 255)):
        made = edit(served, png(PICTURE), png(colours, 255 - hole()), preserve_unmasked=False)
        assert apart(made, expected).max() <= LEVELS


def test_white_pixels_of_a_mask_without_alpha_are_made_anew(
    served: Served, pipelines: Pipelines
) -> None:
    made = edit(served, png(PICTURE), png(hole()), preserve_unmasked=False)
    assert apart(made, inpainted(pipelines, hole())).max() <= LEVELS


def test_without_a_mask_transparent_pixels_of_the_image_are_made_anew(
    served: Served, pipelines: Pipelines
) -> None:
    made = edit(served, png(PICTURE, 255 - hole()), preserve_unmasked=False)
    expected = inpainted(pipelines, hole(), on_white(255 - hole()))
    assert apart(made, expected).max() <= LEVELS


def test_a_mask_counts_more_than_transparent_pixels(served: Served, pipelines: Pipelines) -> None:
    other = np.roll(hole(), -20, axis=1)
    made = edit(served, png(PICTURE, 255 - other), png(hole()), preserve_unmasked=False)
    expected = inpainted(pipelines, hole(), on_white(255 - other))
    assert apart(made, expected).max() <= LEVELS


def test_a_mask_that_is_opaque_everywhere_is_read_by_its_brightness(
    served: Served, pipelines: Pipelines
) -> None:
    white = np.repeat(hole()[:, :, None], 3, axis=2)
    opaque = np.full((HEIGHT, WIDTH), 255, np.uint8)
    made = edit(served, png(PICTURE), png(white, opaque), preserve_unmasked=False)
    assert apart(made, inpainted(pipelines, hole())).max() <= LEVELS


@pytest.mark.parametrize("alpha", [None, np.full((HEIGHT, WIDTH), 255, np.uint8)])
def test_a_mask_that_asks_for_nothing_is_refused(served: Served, alpha: Mask | None) -> None:
    with pytest.raises(openai.BadRequestError, match="mask asks for nothing") as refused:
        edit(served, png(PICTURE), png(np.zeros_like(PICTURE), alpha))
    assert refused.value.param == "mask"


def test_a_mask_too_thin_for_the_size_is_refused(served: Served) -> None:
    thin = np.zeros((4 * HEIGHT, 4 * WIDTH), np.uint8)
    thin[:, 7] = 255
    large = Image.fromarray(PICTURE).resize((4 * WIDTH, 4 * HEIGHT))
    with pytest.raises(openai.BadRequestError, match="more than a line"):
        edit(served, png(large), png(thin), size=f"{WIDTH}x{HEIGHT}")


def test_too_many_pictures_to_resemble(served: Served) -> None:
    many = [("a.png", png(PICTURE))] * 5
    seen = json.dumps({"image": [data_url(png(PICTURE))] * 5})
    with pytest.raises(openai.BadRequestError, match="9 pictures to resemble") as refused:
        served.openai().images.edit(prompt="a", image=many, extra_body={"ip_adapter": seen})
    assert refused.value.param == "image"


def test_strength_1_noises_the_picture_as_far_as_it_goes(
    served: Served, pipelines: Pipelines
) -> None:
    made = edit(served, png(PICTURE), strength=1)
    expected = pipelines.image(Task(job(strength=1.0), (PICTURE,)))
    assert apart(made, expected.pixels).max() <= LEVELS


def test_an_odd_picture_is_made_in_the_nearest_size(served: Served) -> None:
    odd = Image.fromarray(PICTURE).resize((101, 203))
    answer = served.openai().images.edit(
        prompt="a red ball", image=("a.png", png(odd)), extra_body=PLAIN
    )
    assert answer.size == "104x200"
    assert pixels_of(answer).shape == (200, 104, 3)
    large = Image.fromarray(PICTURE).resize((900, 600))
    answer = served.openai().images.edit(
        prompt="a red ball", image=("a.png", png(large)), extra_body=PLAIN
    )
    assert answer.size == "512x344"


def test_further_pictures_are_pictures_to_resemble(served: Served) -> None:
    files = [png(PICTURE), png(np.flipud(PICTURE).copy()), png(255 - PICTURE)]
    client = served.openai()
    several = client.images.edit(
        prompt="a red ball",
        image=[(f"{number}.png", file) for number, file in enumerate(files)],
        extra_body={**PLAIN, "strength": 0.6},
    )
    seen = {"image": [data_url(file) for file in files[1:]], "scale": 0.5}
    named = edit(served, files[0], strength=0.6, ip_adapter=json.dumps(seen))
    assert apart(pixels_of(several), named).max() <= LEVELS
    alone = edit(served, files[0], strength=0.6)
    assert apart(named, alone).max() > 10 * LEVELS
    with pytest.raises(openai.BadRequestError, match="no IP-Adapter"):
        client.images.edit(
            model="animagine", prompt="a", image=[("a.png", files[0]), ("b.png", files[1])]
        )


def test_nested_fields_as_the_official_client_flattens_them(served: Served) -> None:
    loras = [{"name": "ink", "weight": 0.5}, {"name": "neon", "weight": -0.3}]
    flattened = edit(served, png(PICTURE), strength=0.6, loras=loras)
    as_json = edit(served, png(PICTURE), strength=0.6, loras=json.dumps(loras))
    assert apart(flattened, as_json).max() <= LEVELS
    assert apart(flattened, edit(served, png(PICTURE), strength=0.6)).max() > 10 * LEVELS


def test_an_opaque_alpha_channel_is_no_mask(served: Served, pipelines: Pipelines) -> None:
    opaque = np.full((HEIGHT, WIDTH), 255, np.uint8)
    made = edit(served, png(PICTURE, opaque), strength=0.6)
    expected = pipelines.image(Task(job(strength=0.6), (PICTURE,)))
    assert apart(made, expected.pixels).max() <= LEVELS


def test_the_defaults_of_inpainting(served: Served, pipelines: Pipelines) -> None:
    answer = served.openai().images.edit(
        prompt="a red ball",
        image=("a.png", png(PICTURE)),
        mask=("m.png", png(hole())),
        extra_body={"seed": 5, "preserve_unmasked": False},
    )
    expected = inpainted(pipelines, hole(), num_inference_steps=8)
    assert apart(pixels_of(answer), expected).max() <= LEVELS


def test_pixels_outside_the_mask_come_back_as_they_were(served: Served) -> None:
    inside = hole() > 0
    graded = np.where(inside, 255, 0).astype(np.uint8)
    graded[:, 10:20] = np.linspace(0, 255, 10).astype(np.uint8)  # half transparent
    for mask in (hole(), graded):
        anew = mask >= 128
        kept = edit(served, png(PICTURE), png(PICTURE, 255 - mask))
        loose = edit(served, png(PICTURE), png(PICTURE, 255 - mask), preserve_unmasked=False)
        assert np.array_equal(kept[~anew], PICTURE[~anew])
        share = np.clip((mask[:, :, None] - 128.0) / 127, 0, 1)  # a light grey is a soft edge
        assert np.abs(kept - (share * loose + (1 - share) * PICTURE)).max() <= LEVELS + 0.5
        assert apart(kept, PICTURE)[anew].mean() > 5, "nothing was made anew"
        assert apart(loose, PICTURE)[~anew].max() > 0, "the VAE kept every pixel by itself"


def test_pixels_are_kept_at_another_size_too(served: Served) -> None:
    answer = served.openai().images.edit(
        prompt="a red ball",
        image=("a.png", png(PICTURE)),
        mask=("m.png", png(hole())),
        size="64x160",
        extra_body=PLAIN,
    )
    made, anew = pixels_of(answer), resize(hole(), (64, 160)) >= 128
    assert made.shape == (160, 64, 3)
    assert np.array_equal(made[~anew], resize(PICTURE, (64, 160))[~anew])
    assert apart(made, resize(PICTURE, (64, 160)))[anew].mean() > 5


def test_a_stream_of_an_edit_keeps_the_pixels_too(served: Served) -> None:
    events = list(
        served.openai().images.edit(
            prompt="a red ball",
            image=("a.png", png(PICTURE)),
            mask=("m.png", png(hole())),
            stream=True,
            partial_images=2,
            extra_body=PLAIN,
        )
    )
    kinds = ["partial_image", "partial_image", "completed"]
    assert [event.type for event in events] == [f"image_edit.{kind}" for kind in kinds]
    for event in events:
        pixels = shown(base64.b64decode(event.b64_json))
        assert np.array_equal(pixels[hole() == 0], PICTURE[hole() == 0])
        assert apart(pixels, PICTURE)[HOLE].mean() > 5
    whole = edit(served, png(PICTURE), png(hole()))
    assert apart(shown(base64.b64decode(events[-1].b64_json)), whole).max() <= LEVELS


def test_a_list_of_one_image(served: Served) -> None:
    answer = served.openai().images.edit(
        prompt="a red ball", image=[("a.png", png(PICTURE))], extra_body={**PLAIN, "strength": 0.6}
    )
    assert apart(pixels_of(answer), edit(served, png(PICTURE), strength=0.6)).max() <= LEVELS


def test_a_photo_is_turned_upright(served: Served) -> None:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees to the right
    lying = Image.fromarray(np.rot90(PICTURE).copy())
    lying.save(file, "PNG", exif=exif)
    turned = edit(served, file.getvalue(), strength=0.6)
    assert apart(turned, edit(served, png(PICTURE), strength=0.6)).max() <= LEVELS


def test_everything_in_one_edit(served: Served, pipelines: Pipelines, demo_models: Path) -> None:
    seen, edges = picture(3, 150, 130), control_map("canny", WIDTH, HEIGHT)
    fields: dict[str, Any] = {
        "num_inference_steps": 7,
        "guidance_scale": 2.5,
        "negative_prompt": "blurry",
        "eta": 0.6,
        "strength": 0.9,
    }
    nested = {
        "loras": [{"name": "ink", "weight": 0.7}],
        "controls": [
            {"type": "canny", "image": data_url(png(PICTURE)), "conditioning_scale": 0.8},
            {
                "type": "depth",
                "image": data_url(png(edges)),
                "preprocessed": True,
                "start": 0.2,
                "end": 0.9,
            },
        ],
        "ip_adapter": {"image": [data_url(png(seen)), data_url(png(PICTURE))], "scale": 0.4},
    }
    made = edit(
        served,
        png(PICTURE),
        png(hole()),
        preserve_unmasked=False,
        **fields,
        **{name: json.dumps(value) for name, value in nested.items()},
    )
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])
    assets = (
        PICTURE,
        hole(),
        canny(PICTURE),
        edges,
        checkpoint.embeds(seen),
        checkpoint.embeds(PICTURE),
    )
    controls = (ControlUse("canny", (2,), 0.8), ControlUse("depth", (3,), 0.5, 0.2, 0.9))
    asked = job(
        mask=1,
        loras=(LoraWeight("ink", 0.7),),
        controls=controls,
        ip_adapters=(IpAdapterUse(DEFAULT_IP_ADAPTER, (4, 5), 0.4),),
        **fields,
    )
    expected = pipelines.image(Task(asked, assets, (seen, PICTURE)))
    assert apart(made, expected.pixels).max() <= LEVELS

    request = ImageRequest(
        "a red ball",
        model="sd15",
        seed=5,
        image=PICTURE,
        mask=np.dstack([PICTURE, 255 - hole()]),
        preserve_unmasked=False,
        loras=(LoraWeight("ink", 0.7),),
        controls=(
            Control("canny", PICTURE, conditioning_scale=0.8),
            Control("depth", png(edges), preprocessed=True, start=0.2, end=0.9),
        ),
        ip_adapter=IpAdapter((seen, png(PICTURE)), 0.4),
        **fields,
    )
    handle = serve.get_app_handle("tcd")
    (same,) = handle.generate.remote(request).result(timeout_s=60).images
    assert apart(same, expected.pixels).max() <= LEVELS
    streaming: Any = handle.options(stream=True)
    events = list(streaming.stream.remote(request))
    (last,) = [event for event in events if isinstance(event, FinishedImage)]
    assert apart(last.pixels, expected.pixels).max() <= LEVELS


@pytest.mark.filterwarnings("ignore:deprecated:DeprecationWarning")  # the client's own
def test_variations_are_pictures_like_one(
    served: Served, pipelines: Pipelines, demo_models: Path
) -> None:
    seen = picture(3, 150, 130)
    client = served.openai()
    answer = client.images.create_variation(
        image=("a.png", png(seen)), n=2, model="sd15", extra_body={"seed": 5}
    )
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])
    asked = ImageJob(
        "job", "", (5, 6), 128, 128, ip_adapters=(IpAdapterUse(DEFAULT_IP_ADAPTER, (0,), 1.0),)
    )
    task = Task(asked, (checkpoint.embeds(seen),), (seen,))
    for index in range(2):
        expected = pipelines.image(task, index)
        assert apart(pixels_of(answer, index), expected.pixels).max() <= LEVELS
    fields: dict[str, Any] = {
        "seed": 5,
        "scale": 0.5,
        "prompt": "a red ball",
        "num_inference_steps": 6,
    }
    other = client.images.create_variation(
        image=("a.png", png(seen)), size="256x256", response_format="b64_json", extra_body=fields
    )
    asked = ImageJob(
        "job",
        "a red ball",
        (5,),
        256,
        256,
        num_inference_steps=6,
        ip_adapters=(IpAdapterUse(DEFAULT_IP_ADAPTER, (0,), 0.5),),
    )
    expected = pipelines.image(Task(asked, (checkpoint.embeds(seen),), (seen,)))
    assert apart(pixels_of(other), expected.pixels).max() <= LEVELS
