"""The same tasks without a mouse: by Tab, arrows, Space, Enter and Escape alone."""

from pathlib import Path

import pytest
from PIL import Image

from tests.deployments.ingress.playground.conftest import Visit
from tests.deployments.ingress.playground.visitor import PHONE, WIDE, Visitor
from tests.serving import Served

MOST_TABS = 120


@pytest.fixture(
    params=[
        pytest.param(WIDE, id="wide"),
        pytest.param(PHONE, id="phone", marks=pytest.mark.deep),
    ]
)
def visitor(request: pytest.FixtureRequest, served: Served, visit: Visit) -> Visitor:
    """Someone whose mouse is broken."""
    come = visit(served.url + "/", request.param)
    come.choose("sd15")
    come.page.evaluate("() => document.activeElement.blur()")
    return come


def focused(visitor: Visitor) -> str:
    """What has the focus, as it is called."""
    name: str = visitor.page.evaluate(
        """() => {
            const one = document.activeElement;
            const label = one.labels?.[0]?.querySelector("span")?.textContent;
            return one.getAttribute("aria-label") ?? label ?? one.textContent.trim();
        }"""
    )
    return name


def tab_to(visitor: Visitor, name: str) -> None:
    """Goes on by Tab until something of this name has the focus, which has to be seen."""
    for _ in range(MOST_TABS):
        visitor.page.keyboard.press("Tab")
        if focused(visitor).startswith(name):
            outlined = visitor.page.evaluate(
                "() => getComputedStyle(document.activeElement).outlineStyle"
            )
            assert outlined != "none", name
            return
    raise AssertionError(f"no Tab leads to {name!r}")


def press(visitor: Visitor, *keys: str) -> None:
    for key in keys:
        visitor.page.keyboard.press(key)


def write_over(visitor: Visitor, name: str, text: str) -> None:
    """A text in place of what stands in a field."""
    tab_to(visitor, name)
    press(visitor, "Control+a")
    visitor.page.keyboard.type(text)


def test_a_picture_with_a_style(visitor: Visitor) -> None:
    write_over(visitor, "Prompt", "a red ball")
    tab_to(visitor, "Styles")
    press(visitor, "Enter")
    tab_to(visitor, "+ ink")
    press(visitor, "Space")
    visitor.page.evaluate("() => document.activeElement.blur()")
    tab_to(visitor, "ink")
    press(visitor, "ArrowLeft", "ArrowLeft")
    press(visitor, "Tab", "Control+a")
    visitor.page.keyboard.type("0.905")
    tab_to(visitor, "Eta")
    visitor.page.keyboard.type("0.05")
    tab_to(visitor, "Seed")
    visitor.page.keyboard.type("5")
    press(visitor, "Control+Enter")
    visitor.waits_for(1)
    asked = visitor.asked()
    assert asked["eta"] == 0.05
    assert asked["loras"] == [{"name": "ink", "weight": 0.905}]
    assert (asked["prompt"], asked["seed"]) == ("a red ball", 5)


def test_the_form_can_be_sent_by_its_button(visitor: Visitor) -> None:
    write_over(visitor, "Prompt", "a red ball")
    tab_to(visitor, "Generate")
    press(visitor, "Enter")
    visitor.waits_for(1)


def test_a_mask_is_painted_and_taken_back(visitor: Visitor, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "green").save(tmp_path / "green.png")
    visitor.section("Start picture and mask")
    visitor.give("Start picture", tmp_path / "green.png")
    visitor.easel()
    tab_to(visitor, "Mask: arrows move the brush")
    said = visitor.page.locator(".mask > small")
    assert "with nothing painted" in said.inner_text()
    press(visitor, "ArrowRight", "Space", "Shift+ArrowDown")
    visitor.page.get_by_text("What is painted is made anew").wait_for()
    press(visitor, "Control+z", "Control+z")
    visitor.page.get_by_text("with nothing painted").wait_for()
    press(visitor, "Control+Shift+Z")
    visitor.page.get_by_text("What is painted is made anew").wait_for()
    for tool in ("Invert", "Fill", "Clear"):
        tab_to(visitor, tool)
        press(visitor, "Space")
    visitor.page.get_by_text("with nothing painted").wait_for()


def test_a_picture_of_the_gallery_is_taken_and_looked_at(visitor: Visitor) -> None:
    write_over(visitor, "Prompt", "a red ball")
    press(visitor, "Control+Enter")
    visitor.waits_for(1)
    visitor.section("Start picture and mask")
    tab_to(visitor, "From the gallery")
    press(visitor, "Enter")
    tab_to(visitor, "Take: a red ball")
    press(visitor, "Enter")
    visitor.page.get_by_role("img", name="Start picture 1").wait_for()
    tab_to(visitor, "Open: a red ball")
    press(visitor, "Enter")
    visitor.page.get_by_role("dialog").wait_for()
    tab_to(visitor, "Again with this seed")
    press(visitor, "Enter")
    visitor.page.get_by_role("dialog").wait_for(state="hidden")
    assert visitor.field("seed").input_value() != ""
    tab_to(visitor, "Open: a red ball")
    press(visitor, "Enter")
    visitor.page.get_by_role("dialog").wait_for()
    press(visitor, "Escape")
    visitor.page.get_by_role("dialog").wait_for(state="hidden")
    assert focused(visitor).startswith("Open: a red ball")


def test_a_video_is_asked_for_and_cancelled(visitor: Visitor) -> None:
    tab_to(visitor, "Video")
    press(visitor, "Space")
    write_over(visitor, "Prompt", "a red ball")
    write_over(visitor, "Frames", "32")
    tab_to(visitor, "Steps")
    visitor.page.keyboard.type("50")
    press(visitor, "Control+Enter")
    tab_to(visitor, "Cancel")
    press(visitor, "Enter")
    visitor.page.wait_for_function("() => !document.querySelector('.queue')", timeout=60_000)
