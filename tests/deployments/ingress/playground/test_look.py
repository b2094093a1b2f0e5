"""What axe finds, at each width and in light and dark; nothing is wider than the page. With
`TCD_SCREENSHOTS` set to a folder, the demo draws, and the documentation's pictures of the page are
written there (`make screenshots`)."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

from demo.service import demo_config, running
from tests.deployments.ingress.playground.conftest import Visit
from tests.deployments.ingress.playground.visitor import PHONE, WIDE, Visitor
from tests.serving import Served

SHOTS = os.environ.get("TCD_SCREENSHOTS")
SECTIONS = ("Negative prompt, weights", "Styles", "Start picture", "Controls", "Pictures to")


def sound(visitor: Visitor) -> None:
    """What is seen now has no finding, and fits."""
    found = Axe().run(visitor.page)
    assert found.violations_count == 0, found.generate_report()
    assert visitor.overflow() <= 0


def shot(visitor: Visitor, name: str) -> None:
    if SHOTS:
        visitor.page.evaluate("() => scrollTo(0, 0)")
        visitor.page.screenshot(path=Path(SHOTS) / f"playground-{name}.png")


@pytest.fixture(scope="module")
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    """Of a service with sd15."""
    if SHOTS:
        with running(demo_config(["sd15"]), "screenshots") as started:
            yield started.url
    else:
        served: Served = request.getfixturevalue("served")
        yield served.url


@pytest.mark.parametrize(
    ("window", "scheme"),
    [
        pytest.param(WIDE, "light", id="wide-light"),
        pytest.param(PHONE, "dark", id="phone-dark"),
        pytest.param(WIDE, "dark", id="wide-dark", marks=pytest.mark.deep),
        pytest.param(PHONE, "light", id="phone-light", marks=pytest.mark.deep),
    ],
)
def test_each_state_of_the_page(
    url: str, visit: Visit, tmp_path: Path, window: tuple[int, int], scheme: str
) -> None:
    Image.new("RGB", (64, 64), "green").save(tmp_path / "green.png")
    visitor = visit(url + "/", window, scheme)
    sound(visitor)
    name = f"{'phone' if window == PHONE else 'wide'}-{scheme}"
    visitor.choose("sd15")
    visitor.field("prompt").fill("a big red ball on the left, in the snow")
    visitor.section("Styles").get_by_role("button", name="+ papercut").click()
    visitor.field("n").fill("4")
    visitor.field("seed").fill("7")
    visitor.generate(new=4)
    sound(visitor)
    shot(visitor, name)
    visitor.opened().get_by_role("button", name="curl").click()
    visitor.page.get_by_label("The request", exact=True).wait_for()
    sound(visitor)
    visitor.page.keyboard.press("Escape")
    for title in SECTIONS:
        visitor.section(title)
    visitor.section("Controls").get_by_role("button", name="Add canny").click()
    for place in ("Start picture", "Picture for canny", "Picture to resemble"):
        visitor.give(place, tmp_path / "green.png")
    visitor.page.get_by_role("img", name="canny map").wait_for(timeout=60_000)
    visitor.easel().click()
    visitor.page.get_by_text("What is painted is made anew").wait_for()
    sound(visitor)
    visitor.field("num_inference_steps").fill("99")
    visitor.button("Generate").click()
    visitor.page.locator(".fault").first.wait_for()
    sound(visitor)
    visitor.button("Video").click()
    visitor.field("num_inference_steps").fill("40")
    visitor.section("Camera")
    visitor.button("Generate").click()
    visitor.page.locator(".queue .task").wait_for()
    sound(visitor)
    visitor.page.locator(".queue").get_by_role("button", name="Cancel", exact=True).click()
    visitor.page.wait_for_function("() => !document.querySelector('.queue')", timeout=60_000)
