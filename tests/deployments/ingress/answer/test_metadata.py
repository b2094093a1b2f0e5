"""What files say of how they were made, as Pillow and AUTOMATIC1111 read it."""

import json
import struct
from dataclasses import replace
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

from deployments.contracts.api import OutputFormat
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import Control, IpAdapter, LoraWeight
from deployments.contracts.recipe import Recipe
from deployments.ingress.answer.media import Encoding
from deployments.ingress.answer.metadata import metadata_of, wanted
from tests.deployments.ingress.answer import a1111

FORMATS: tuple[OutputFormat, ...] = ("png", "jpeg", "webp")
PICTURE = np.random.default_rng(0).integers(0, 256, (16, 24, 3), dtype=np.uint8)
PLAIN = Recipe(
    model="sd15",
    prompt="a red ball",
    negative_prompt=None,
    width=24,
    height=16,
    num_inference_steps=4,
    eta=0.3,
    guidance_scale=0.0,
    prompt_syntax="plain",
    clip_skip=0,
)
FULL = replace(
    PLAIN,
    negative_prompt="blurry, grey",
    guidance_scale=7.5,
    clip_skip=1,
    original_size=(12, 18),
    target_size=(512, 768),
    loras=(LoraWeight("papercut", 1.0), LoraWeight("ink", -0.55)),
    image="sha256:aa",
    mask="sha256:bb",
    strength=0.8,
    controls=(
        Control("canny", "sha256:cc", end=0.5, low_threshold=50),
        Control("depth", "map-depth-dd", conditioning_scale=0.7),
    ),
    ip_adapters=(IpAdapter(("sha256:ee", "sha256:ff"), 0.6),),
)
# Words that break something somewhere: quotes, commas, colons, lines, what looks like a figure.
PROMPTS = {
    "quotes": 'a "red" ball, said "so": 5, \\"no\\"',
    "lines": "a red ball\n\nin the snow\n(big:1.2), Steps: 50, Sampler: Euler, Seed: 1",
    "emoji": "ein roter Ball im Schnee \u2603 \U0001f534 \u00e9\u00df \u0641 \u7d05",
    "long": "a red ball, in the snow; " * 80,
    "like a figure": "Steps: 4, Seed: 5",
    "brackets": "{a: [b]} <c> & d | e % f \u2028 g",
}


def file_of(recipe: Recipe, kind: OutputFormat = "png", quality: int | None = None) -> bytes:
    return Encoding(kind, quality, True).file(PICTURE, recipe, 7)


def request_in(file: bytes) -> dict[str, Any] | None:
    """The request of a file, as Pillow reads it."""
    image = Image.open(BytesIO(file))
    if image.format == "PNG":
        return json.loads(image.info["tcd"]) if "tcd" in image.info else None
    description = image.getexif().get(0x010E)
    return None if description is None else json.loads(description)["tcd"]


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_prompts_survive(kind: OutputFormat, prompt: str) -> None:
    file = file_of(replace(FULL, prompt=prompt, negative_prompt=prompt), kind)
    text = a1111.infotext_of(file)
    assert text is not None
    read = a1111.parse(text)
    lines = "\n".join(line.strip() for line in prompt.split("\n")).strip()
    assert (read.prompt, read.negative_prompt) == (lines, lines)
    assert read.figures["Seed"] == "7"
    request = request_in(file)
    assert request is not None
    assert (request["prompt"], request["negative_prompt"]) == (prompt, prompt)


@pytest.mark.parametrize("kind", FORMATS)
def test_control_characters_break_nothing(kind: OutputFormat) -> None:
    prompt = "".join(map(chr, range(32))) + "a\x00b\x7f\x85" + "\r\n c"
    file = file_of(replace(PLAIN, prompt=prompt), kind)
    assert Image.open(BytesIO(file)).convert("RGB").size == (24, 16)
    text = a1111.infotext_of(file)
    assert text is not None
    assert "\x00" not in text
    assert a1111.parse(text).prompt.endswith("c")
    request = request_in(file)
    assert request is not None
    assert request["prompt"] == prompt


def test_the_figures_of_a_plain_image() -> None:
    text = metadata_of(PLAIN, 7, "png").parameters
    assert text == (
        "a red ball\n"
        "Steps: 4, Sampler: TCD, CFG scale: 1, Seed: 7, Size: 24x16, Model: sd15, Eta: 0.3"
    )


def test_the_figures_of_everything() -> None:
    text = metadata_of(FULL, 7, "png").parameters
    assert a1111.parse(text) == a1111.Infotext(
        "a red ball",
        "blurry, grey",
        {
            "Steps": "4",
            "Sampler": "TCD",
            "CFG scale": "7.5",
            "Seed": "7",
            "Size-1": "24",
            "Size-2": "16",
            "Model": "sd15",
            "Clip skip": "2",
            "Denoising strength": "0.8",
            "Eta": "0.3",
            "Lora": "papercut: 1, ink: -0.55",
            "ControlNet 0": "Module: canny, Weight: 0.5, Guidance Start: 0, Guidance End: 0.5",
            "ControlNet 1": "Module: depth, Weight: 0.7, Guidance Start: 0, Guidance End: 1",
            "IP-Adapter": "0.6",
        },
    )


def test_without_a_prompt() -> None:
    text = metadata_of(replace(FULL, prompt=""), 7, "png").parameters
    read = a1111.parse(text)
    assert (read.prompt, read.negative_prompt) == ("", "blurry, grey")


def test_the_request_of_everything() -> None:
    assert request_in(file_of(FULL, "jpeg", 90)) == {
        "model": "sd15",
        "prompt": "a red ball",
        "negative_prompt": "blurry, grey",
        "n": 1,
        "size": "24x16",
        "num_inference_steps": 4,
        "eta": 0.3,
        "guidance_scale": 7.5,
        "prompt_syntax": "plain",
        "clip_skip": 1,
        "original_size": "18x12",
        "target_size": "768x512",
        "seed": 7,
        "loras": [{"name": "papercut", "weight": 1.0}, {"name": "ink", "weight": -0.55}],
        "image": "sha256:aa",
        "mask": "sha256:bb",
        "strength": 0.8,
        "preserve_unmasked": True,
        "controls": [
            {
                "type": "canny",
                "image": "sha256:cc",
                "preprocessed": False,
                "conditioning_scale": 0.5,
                "start": 0.0,
                "end": 0.5,
                "low_threshold": 50,
            },
            {
                "type": "depth",
                "image": "map-depth-dd",
                "preprocessed": False,
                "conditioning_scale": 0.7,
                "start": 0.0,
                "end": 1.0,
            },
        ],
        "ip_adapter": {"image": ["sha256:ee", "sha256:ff"], "scale": 0.6},
        "output_format": "jpeg",
        "output_compression": 90,
    }


@pytest.mark.parametrize(
    ("characters", "parameters", "request_too"),
    [(15_000, True, True), (25_000, True, False), (50_000, False, True), (70_000, False, False)],
)
def test_what_does_not_fit_into_a_jpeg_is_left_out(
    characters: int, parameters: bool, request_too: bool
) -> None:
    """64 KiB: a character has two bytes in the first, one in the second."""
    file = file_of(replace(PLAIN, prompt="x" * characters), "jpeg")
    assert Image.open(BytesIO(file)).convert("RGB").size == (24, 16)
    assert (a1111.infotext_of(file) is not None) == parameters
    assert (request_in(file) is not None) == request_too


def test_a_png_has_room_for_the_longest_prompt() -> None:
    prompt = "\U0001f534" * 100_000
    file = file_of(replace(PLAIN, prompt=prompt))
    request = request_in(file)
    assert request is not None
    assert request["prompt"] == prompt
    assert a1111.parse(a1111.infotext_of(file) or "").prompt == prompt


def test_the_comment_is_text_by_its_type() -> None:
    """UNDEFINED (7): of a BYTE, which Pillow would write, piexif and others read numbers."""
    exif = metadata_of(PLAIN, 7, "jpeg").exif()
    place = exif.index(struct.pack(">H", a1111.USER_COMMENT))
    kind, count = struct.unpack(">HI", exif[place + 2 : place + 8])
    text = metadata_of(PLAIN, 7, "jpeg").parameters
    assert (kind, count) == (7, 8 + 2 * len(text))


@pytest.mark.parametrize("kind", FORMATS)
def test_without_metadata(kind: OutputFormat) -> None:
    for file in (
        Encoding(kind, None, False).file(PICTURE, FULL, 7),
        Encoding(kind, None, True).file(PICTURE),
    ):
        assert a1111.infotext_of(file) is None
        assert request_in(file) is None


def test_pixels_do_not_depend_on_it() -> None:
    for kind in FORMATS:
        with_it, without = (
            np.asarray(Image.open(BytesIO(Encoding(kind, 80, on).file(PICTURE, FULL, 7))))
            for on in (True, False)
        )
        assert (with_it == without).all()


def test_who_asks_for_what_is_not_written_is_told() -> None:
    assert [wanted(None, True), wanted(False, True), wanted(True, True)] == [True, False, True]
    assert [wanted(None, False), wanted(False, False)] == [False, False]
    with pytest.raises(InvalidRequest, match="metadata: false in its args") as refused:
        wanted(True, False)
    assert refused.value.param == "metadata"
