"""The playground in a real browser: what counts is sent, what is wrong is shown."""

import pytest

from deployments.contracts.api import GenerationsBody
from deployments.contracts.cards import CardDefaults, CardLimits, ModelCard
from deployments.contracts.videos import VideoBody
from tests.deployments.ingress.browser import CHROMIUM, play

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's package chromium")
PICTURES, EDITS, VIDEOS = "/v1/images/generations", "/v1/images/edits", "/v1/videos"


def card(name: str, max_frames: int) -> ModelCard:
    """A model with one style."""
    return ModelCard(
        id=name,
        created=0,
        family=name,
        tasks=["text-to-image", "image-to-image", "inpainting"] + ["video"] * (max_frames > 0),
        checkpoint=name,
        dtype="float32",
        tcd_lora=name,
        loras={"ink": "ink"},
        motion_loras={"pan-left": "pan-left"} if max_frames else {},
        defaults=CardDefaults(
            width=64, height=64, num_inference_steps=4, eta=0.3, guidance_scale=0
        ),
        limits=CardLimits(
            min_side=64,
            max_side=512,
            max_pixels=512 * 512,
            max_prompt_tokens=75,
            max_loras=8,
            max_frames=max_frames,
            max_pending=8,
        ),
    )


CARDS = [card("sd15", max_frames=32), card("sdxl", max_frames=0)]


def test_a_model_without_video_makes_pictures() -> None:
    seen = play(CARDS, "pick('sdxl'); return await press();")
    assert seen.told["status"].startswith("done")
    (call,) = seen.calls
    assert call.route == PICTURES
    assert GenerationsBody.model_validate(call.body).model == "sdxl"


@pytest.mark.parametrize("away", ["await toggle('num_frames')", "pick('sdxl')"])
def test_a_wrong_value_in_a_section_that_is_closed_or_not_offered_is_none(away: str) -> None:
    seen = play(
        CARDS,
        f"""await toggle('num_frames'); $('animate').click(); $('num_frames').value = 99;
        {away}; return await press();""",
    )
    assert seen.told["status"].startswith("done")
    assert [call.route for call in seen.calls] == [PICTURES]


@pytest.mark.parametrize(
    ("field", "label", "opened"),
    [
        ("strength", "Strength", "await toggle('strength')"),
        ("num_frames", "Frames", "await toggle('animate'); $('animate').click()"),
    ],
)
def test_a_wrong_value_in_an_open_section_is_shown(field: str, label: str, opened: str) -> None:
    seen = play(CARDS, f"{opened}; $('{field}').value = 99; return await press();")
    assert seen.told["focus"] == field
    assert seen.told["status"].startswith(f"{label}: ")
    assert seen.calls == []


def test_only_open_sections_are_sent() -> None:
    seen = play(
        CARDS,
        """await toggle('styles'); document.querySelector('#styles input').value = 0.5;
        await toggle('image'); await givePicture('image'); await until(() => $('mask').width);
        await press(); await toggle('image');
        await press(); await toggle('styles');
        return await press();""",
    )
    edit, styled, plain = seen.calls
    assert edit.route == EDITS
    assert styled.route == plain.route == PICTURES
    assert styled.body is not None
    assert styled.body["loras"] == [{"name": "ink", "weight": 0.5}]
    assert plain.body is not None
    assert "loras" not in plain.body


def test_a_video_leaves_out_what_is_of_pictures_alone() -> None:
    seen = play(
        CARDS,
        """await toggle('strength'); $('strength').value = 7;
        await toggle('animate'); $('animate').click();
        document.querySelector('#motions input').value = 0.5; return await press();""",
    )
    assert seen.told["status"].startswith("done")
    (call,) = seen.calls
    assert call.route == VIDEOS
    body = VideoBody.model_validate(call.body)
    assert (body.num_frames, body.fps) == (16, 8)
    assert [(lora.name, lora.weight) for lora in body.motion_loras] == [("pan-left", 0.5)]


def test_any_value_of_a_range_passes() -> None:
    seen = play(
        CARDS, "$('eta').value = 0.33; $('guidance_scale').value = 7.31; return await press();"
    )
    (call,) = seen.calls
    body = GenerationsBody.model_validate(call.body)
    assert (body.eta, body.guidance_scale) == (0.33, 7.31)
