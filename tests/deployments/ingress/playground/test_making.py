"""Every task by clicking, on the running service, at a desk in the light and on a phone in the
dark: what is asked for is what was chosen, and it comes into the gallery."""

import io
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from tests.deployments.ingress.playground.conftest import Visit
from tests.deployments.ingress.playground.visitor import KEPT, PHONE, WIDE, Visitor
from tests.serving import Served

LOOKS = [
    pytest.param((WIDE, "light"), id="wide-light"),
    pytest.param((PHONE, "dark"), id="phone-dark", marks=pytest.mark.deep),
]


# How many greys the mask has that the browser keeps.
LEVELS_OF_THE_MASK = f"""async () => {{
    const draft = await ({KEPT})(["tcd-page", "page", "draft"]);
    const mask = await createImageBitmap(draft.mask);
    const page = new OffscreenCanvas(mask.width, mask.height).getContext("2d");
    page.drawImage(mask, 0, 0);
    const {{ data }} = page.getImageData(0, 0, mask.width, mask.height);
    return new Set(data.filter((_, at) => at % 4 === 0)).size;
}}"""


@pytest.fixture(params=LOOKS)
def visitor(request: pytest.FixtureRequest, served: Served, visit: Visit) -> Visitor:
    """Someone who draws with sd15."""
    window, scheme = request.param
    come = visit(served.url + "/", window, scheme)
    come.choose("sd15")
    come.field("prompt").fill("a red ball")
    return come


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A white square on green."""
    file = tmp_path_factory.mktemp("pictures") / "square.png"
    image = Image.new("RGB", (64, 64), "green")
    image.paste("white", (16, 16, 48, 48))
    image.save(file)
    return file


def pixels(visitor: Visitor) -> Image.Image:
    """The newest item, as it is downloaded."""
    dialog = visitor.opened()
    with visitor.page.expect_download() as started:
        dialog.get_by_role("link", name="Download").click()
    visitor.page.keyboard.press("Escape")
    return Image.open(io.BytesIO(started.value.path().read_bytes())).convert("RGB")


def test_pictures_with_a_style_and_numbers(visitor: Visitor) -> None:
    visitor.section("Styles").get_by_role("button", name="+ ink").click()
    visitor.page.get_by_label("ink, exactly").fill("0.33")
    visitor.field("eta").fill("0.33")
    visitor.field("num_inference_steps").fill("3")
    visitor.field("guidance_scale").fill("1.7")
    visitor.section("Negative prompt, weights")
    visitor.field("negative_prompt").fill("snow")
    visitor.field("seed").fill("7")
    visitor.field("n").fill("2")
    visitor.generate(new=2)
    assert visitor.asked() == {
        "model": "sd15",
        "prompt": "a red ball",
        "negative_prompt": "snow",
        "size": "64x64",
        "n": 1,
        "num_inference_steps": 3,
        "eta": 0.33,
        "guidance_scale": 1.7,
        "seed": 8,  # the second of the two came last
        "loras": [{"name": "ink", "weight": 0.33}],
    }
    assert pixels(visitor).size == (64, 64)


def test_a_style_that_is_not_listed_is_named(visitor: Visitor) -> None:
    visitor.choose("animagine")
    styles = visitor.section("Styles")
    styles.get_by_label("Another, by name").fill("neon")
    styles.get_by_label("Another, by name").press("Enter")
    visitor.page.get_by_label("neon, exactly").fill("0.5")
    visitor.generate()
    assert visitor.asked()["loras"] == [{"name": "neon", "weight": 0.5}]
    styles.get_by_label("Another, by name").fill("nowhere")
    styles.get_by_role("button", name="Add", exact=True).click()
    visitor.page.get_by_role("button", name="Generate").click()
    styles.get_by_text("'nowhere' does not exist").wait_for()


def test_every_model_makes_pictures(served: Served, visit: Visit) -> None:
    visitor = visit(served.url + "/")
    visitor.field("prompt").fill("a red ball")
    for model in ("sdxl", "animagine", "small"):
        visitor.choose(model)
        visitor.generate()
        assert visitor.asked()["model"] == model


def test_an_edit_keeps_what_is_not_painted(visitor: Visitor, picture: Path) -> None:
    visitor.section("Start picture and mask")
    visitor.give("Start picture", picture)
    easel = visitor.easel()
    easel.scroll_into_view_if_needed()
    box = easel.bounding_box()
    assert box is not None
    mouse = visitor.page.mouse
    mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.5)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.5, steps=4)
    mouse.up()
    visitor.page.get_by_text("What is painted is made anew").wait_for()
    visitor.field("seed").fill("3")
    visitor.generate()
    made = pixels(visitor)
    with Image.open(picture) as before:
        assert made.getpixel((1, 1)) == before.getpixel((1, 1))
        assert made.getpixel((62, 60)) == before.getpixel((62, 60))
        assert made.getpixel((32, 32)) != before.getpixel((32, 32))


def test_a_soft_edge_of_a_mask(visitor: Visitor, picture: Path) -> None:
    visitor.section("Start picture and mask")
    visitor.give("Start picture", picture)
    visitor.page.get_by_label("Brush size, exactly").fill("60")  # softened, less than this is none
    visitor.easel().click()
    visitor.page.get_by_text("What is painted is made anew").wait_for()
    levels: list[int] = []
    for feather in ("0", "12"):
        visitor.page.get_by_label("Feather, exactly").fill(feather)
        visitor.page.get_by_label("Feather, exactly").press("Tab")
        visitor.page.wait_for_timeout(1000)  # the draft is kept when it rests
        levels.append(visitor.page.evaluate(LEVELS_OF_THE_MASK))
    hard, soft = levels
    assert soft > hard + 20
    visitor.generate()
    made = pixels(visitor)
    with Image.open(picture) as before:
        assert made.getpixel((1, 1)) == before.getpixel((1, 1))


@pytest.mark.parametrize("how", ["drop", "paste"])
def test_pictures_come_by_hand(visitor: Visitor, picture: Path, how: str) -> None:
    visitor.section("Start picture and mask")
    visitor.section("Controls").get_by_role("button", name="Add canny").click()
    visitor.section("Pictures to resemble")
    for place in ("Start picture", "Picture for canny", "Picture to resemble"):
        visitor.brings(place, how, picture)
        visitor.page.get_by_role("img", name=f"{place} 1").wait_for()


def test_what_becomes_of_a_picture_is_seen(visitor: Visitor) -> None:
    for field, value in (("width", "256"), ("height", "256"), ("num_inference_steps", "50")):
        visitor.field(field).fill(value)
    visitor.button("Generate").click()
    visitor.page.locator(".queue .previews img").wait_for(timeout=60_000)
    visitor.waits_for(1)
    visitor.page.get_by_text("takes about").wait_for()


def test_controls_show_their_maps_first(visitor: Visitor, picture: Path) -> None:
    visitor.section("Controls").get_by_role("button", name="Add canny").click()
    visitor.give("Picture for canny", picture)
    shown = visitor.page.get_by_role("img", name="canny map")
    shown.wait_for(timeout=60_000)
    first = shown.get_attribute("src")
    visitor.page.get_by_label("High threshold, exactly").fill("255")
    visitor.page.get_by_label("High threshold, exactly").press("Tab")
    visitor.page.wait_for_function(
        "before => document.querySelector('.map img')?.src !== before", arg=first, timeout=60_000
    )
    visitor.page.get_by_label("To step share, exactly").fill("0.5")
    visitor.page.get_by_label("To step share, exactly").press("Tab")
    visitor.generate()
    controls = cast(list[dict[str, object]], visitor.asked()["controls"])
    (control,) = controls
    assert control | {"image": ""} == {
        "type": "canny",
        "image": "",
        "preprocessed": False,
        "conditioning_scale": 0.5,
        "start": 0,
        "end": 0.5,
        "low_threshold": 100,
        "high_threshold": 255,
    }


def test_several_pictures_to_resemble(visitor: Visitor, picture: Path) -> None:
    visitor.section("Pictures to resemble")
    visitor.give("Picture to resemble", picture, picture)
    visitor.generate()
    assert visitor.asked()["ip_adapter"] == {"image": [{}, {}], "scale": 0.5}


def test_a_video_with_a_camera(visitor: Visitor) -> None:
    visitor.button("Video").click()
    visitor.field("num_frames").fill("8")
    visitor.section("Camera").get_by_role("button", name="+ zoom-in").click()
    visitor.generate()
    asked = visitor.asked()
    assert asked["motion_loras"] == [{"name": "zoom-in", "weight": 1}]
    assert (asked["num_frames"], asked["fps"]) == (8, 8)
    film = visitor.opened().locator("video")
    visitor.page.wait_for_function("() => document.querySelector('dialog video').duration > 0")
    assert film.evaluate("film => film.duration") == pytest.approx(1, abs=0.05)


def test_again_variations_and_what_else_can_be_done_with_a_picture(visitor: Visitor) -> None:
    visitor.field("seed").fill("11")
    visitor.generate()
    visitor.field("prompt").fill("something else")
    visitor.opened().get_by_role("button", name="Again with this seed").click()
    assert visitor.field("prompt").input_value() == "a red ball"
    assert visitor.field("seed").input_value() == "11"
    visitor.opened().get_by_role("button", name="Its settings").click()
    assert visitor.field("seed").input_value() == ""
    visitor.opened().get_by_role("button", name="4 variations of the seed").click()
    visitor.waits_for(5)
    assert {f"seed {seed}" for seed in (12, 13, 14, 15)} == {
        str(visitor.tiles.nth(index).get_by_role("button").get_attribute("aria-label"))[-7:]
        for index in range(4)
    }
    visitor.opened().get_by_role("button", name="Start from it").click()
    visitor.page.get_by_role("img", name="Start picture 1").wait_for()
    visitor.opened(1).get_by_role("button", name="Control: canny").click()
    visitor.page.get_by_role("img", name="Picture for canny 1").wait_for()
    visitor.opened(2).get_by_role("button", name="Resemble it").click()
    visitor.page.get_by_role("img", name="Picture to resemble 1").wait_for()
    for index in (0, 1):
        visitor.tiles.nth(index).get_by_role("checkbox").check()
    visitor.button("Compare the two").click()
    visitor.page.get_by_label("How much of the first").fill("20")
    visitor.page.keyboard.press("Escape")
    visitor.opened().get_by_role("button", name="Delete").click()
    visitor.page.wait_for_function("() => document.querySelectorAll('.gallery .tile').length == 4")


def test_all_is_there_after_a_reload(visitor: Visitor) -> None:
    visitor.section("Styles").get_by_role("button", name="+ ink").click()
    visitor.field("model").select_option("sdxl")
    visitor.generate()
    visitor.page.wait_for_timeout(600)
    visitor.opens(visitor.page.url)
    assert visitor.tiles.count() == 1
    assert visitor.field("model").input_value() == "sdxl"
    assert visitor.field("prompt").input_value() == "a red ball"
    assert visitor.page.get_by_label("ink, exactly").input_value() == "1"


def test_a_task_goes_on_while_the_page_is_away(visitor: Visitor, served: Served) -> None:
    visitor.button("Video").click()
    visitor.field("num_frames").fill("16")
    visitor.field("num_inference_steps").fill("30")
    visitor.button("Generate").click()
    visitor.page.locator(".queue .task").wait_for()
    visitor.page.goto("about:blank")
    visitor.opens(served.url + "/")
    visitor.waits_for(1)


def test_one_is_cancelled_and_all_are(visitor: Visitor) -> None:
    visitor.button("Video").click()
    visitor.field("num_frames").fill("32")
    visitor.field("num_inference_steps").fill("50")
    for count in (1, 2, 3):
        visitor.button("Generate").click()
        visitor.page.wait_for_function(
            "count => document.querySelectorAll('.queue .task').length == count", arg=count
        )
    visitor.page.locator(".queue").get_by_role("button", name="Cancel", exact=True).first.click()
    visitor.page.wait_for_function("() => document.querySelectorAll('.task').length == 2")
    visitor.button("Cancel all 2").click()
    visitor.page.wait_for_function("() => !document.querySelector('.queue')", timeout=60_000)
    assert visitor.tiles.count() == 0
    assert visitor.page.get_by_role("alert").count() == 0
