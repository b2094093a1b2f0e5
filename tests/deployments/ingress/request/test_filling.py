"""What is made of a request's gaps."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from configs.app import Limits, size_allowed
from deployments.contracts.api import GenerationsBody
from deployments.contracts.cards import CardDefaults, CardLimits, ModelCard
from deployments.contracts.jobs import ImageRequest, Quality
from deployments.contracts.videos import VideoBody
from deployments.ingress.request.filling import image_job, nearest_size, video_job

CARD = ModelCard(
    id="sd15",
    created=0,
    family="sd15",
    tasks=["text-to-image"],
    checkpoint="x",
    dtype="float32",
    tcd_lora=None,
    loras={},
    defaults=CardDefaults(
        width=64, height=64, num_inference_steps=5, eta=0.3, guidance_scale=0, clip_skip=1
    ),
    limits=CardLimits(
        min_side=64,
        max_side=1024,
        max_pixels=512 * 512,
        max_prompt_tokens=75,
        max_steps=40,
        max_loras=1,
        max_frames=0,
        max_pending=1,
    ),
)


def steps(quality: Quality | None, mask: int | None = None, named: int | None = None) -> int:
    request = ImageRequest("a", quality=quality, num_inference_steps=named)
    return image_job(
        request, CARD, (64, 64), image=mask, mask=mask, controls=(), ip_adapters=()
    ).num_inference_steps


@pytest.mark.parametrize(
    ("quality", "expected", "masked"),
    [
        (None, 5, 8),
        ("auto", 5, 8),
        ("medium", 5, 8),
        ("standard", 5, 8),
        ("low", 3, 4),
        ("high", 10, 16),
        ("hd", 10, 16),
        ("xhigh", 20, 32),
        ("max", 20, 32),
    ],
)
def test_quality_is_steps(quality: Quality | None, expected: int, masked: int) -> None:
    assert steps(quality) == expected
    assert steps(quality, mask=0) == masked
    assert steps(quality, named=7) == 7


def test_a_low_quality_leaves_a_step() -> None:
    """At the strength that is asked for, if the usual number does."""
    request = ImageRequest("a", quality="low", strength=0.21)

    def taken(usual: int) -> int:
        card = CARD.model_copy(
            update={"defaults": CARD.defaults.model_copy(update={"num_inference_steps": usual})}
        )
        return image_job(
            request, card, (64, 64), image=0, mask=None, controls=(), ip_adapters=()
        ).num_inference_steps

    assert [taken(usual) for usual in (2, 5, 6, 20)] == [2, 5, 5, 10]


def test_no_quality_takes_more_than_there_are() -> None:
    many = CARD.model_copy(
        update={"defaults": CARD.defaults.model_copy(update={"num_inference_steps": 30})}
    )
    job = image_job(
        ImageRequest("a", quality="max"),
        many,
        (64, 64),
        image=None,
        mask=None,
        controls=(),
        ip_adapters=(),
    )
    assert job.num_inference_steps == 40
    assert (job.clip_skip, job.prompt_syntax) == (1, "plain")


def test_what_sdxl_is_told_of_sizes_goes_on() -> None:
    body = GenerationsBody(prompt="a", original_size="640x480", target_size="99x1")
    asked = body.to_request()
    job = image_job(asked, CARD, (64, 64), image=None, mask=None, controls=(), ip_adapters=())
    assert (job.original_size, job.target_size) == ((480, 640), (1, 99))
    video = VideoBody(prompt="a", original_size="640x480").to_request()
    job = video_job(video, CARD, (64, 64), image=None, controls=(), ip_adapters=())
    assert (job.original_size, job.target_size) == ((480, 640), None)


LIMITS = [
    Limits(),
    Limits(max_side=512, max_pixels=256 * 512),
    Limits(min_side=512, max_side=1024, max_pixels=1024 * 1024),
    Limits(min_side=104, max_side=128, max_pixels=128 * 120),
]
sides = st.integers(1, 20_000)


@pytest.mark.parametrize("limits", LIMITS)
@given(width=sides, height=sides)
def test_the_nearest_size_is_one_that_is_made(limits: Limits, width: int, height: int) -> None:
    found = nearest_size(width, height, limits)
    assert all(side % 8 == 0 for side in found)
    assert size_allowed(limits, *found)
    if width % 8 == height % 8 == 0 and size_allowed(limits, width, height):
        assert found == (width, height)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1000, 500), (1000, 496)),
        ((101, 101), (104, 104)),
        ((4000, 3000), (1024, 768)),
        ((30, 60), (64, 128)),
        ((3000, 40), (1024, 64)),
    ],
)
def test_shapes_are_kept(size: tuple[int, int], expected: tuple[int, int]) -> None:
    limits = Limits(max_side=1024, max_pixels=1024 * 1024)
    assert nearest_size(*size, limits) == expected
