"""What is wrong is said at the field that it is of, and costs nothing else."""

from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.deployments.ingress.playground.conftest import Visit
from tests.deployments.ingress.playground.visitor import Visitor
from tests.serving import Served


@pytest.fixture
def visitor(served: Served, visit: Visit) -> Visitor:
    come = visit(served.url + "/")
    come.choose("sd15")
    come.field("prompt").fill("a red ball")
    return come


def refused(visitor: Visitor, field: str) -> str:
    """What is said at a field, which has the focus."""
    visitor.button("Generate").click()
    fault = visitor.page.locator(f'[id="fault-{field}"]')
    fault.wait_for()
    assert visitor.page.evaluate(
        "name => document.activeElement.closest(`[data-field='${name}']`) !== null", field
    )
    assert visitor.tiles.count() == 0
    return fault.inner_text()


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("num_inference_steps", "99", "50"),
        ("eta", "1.5", "1"),
        ("guidance_scale", "-1", "0"),
        ("n", "9", "4 at most"),
        ("seed", "-5", "-1"),
        ("prompt", "a <lora:ink:1>", "loras"),
    ],
)
def test_a_wrong_value(visitor: Visitor, field: str, value: str, said: str) -> None:
    visitor.field(field).fill(value)
    assert said in refused(visitor, field)
    assert visitor.field(field).get_attribute("aria-invalid") == "true"
    usual = "a red ball" if field == "prompt" else "1" if field == "n" else ""
    visitor.field(field).fill(usual)
    visitor.generate()


def test_a_size_that_the_model_does_not_make(visitor: Visitor) -> None:
    visitor.field("width").fill("1000")
    assert "512" in refused(visitor, "size")


def test_a_field_in_a_section_that_is_closed(visitor: Visitor) -> None:
    visitor.section("Negative prompt, weights")
    visitor.field("negative_prompt").fill("snow")
    closing = visitor.section("Negative prompt, weights").locator("summary").first
    closing.click()
    assert "guidance_scale" in refused(visitor, "negative_prompt")
    assert visitor.field("negative_prompt").is_visible()


def test_a_file_that_is_no_picture(visitor: Visitor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")
    visitor.section("Start picture")
    visitor.give("Start picture", tmp_path / "text.png")
    visitor.page.get_by_text("This is no picture that the browser can read.").wait_for()
    visitor.generate()
    assert "image" not in visitor.asked()


def test_a_control_that_never_acts(visitor: Visitor, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), "green").save(tmp_path / "green.png")
    visitor.section("Controls").get_by_role("button", name="Add canny").click()
    visitor.give("Picture for canny", tmp_path / "green.png")
    visitor.page.get_by_label("To step share, exactly").fill("0.01")
    visitor.page.get_by_label("To step share, exactly").press("Tab")
    visitor.button("Generate").click()
    fault = visitor.page.locator('[id="fault-controls"]')
    fault.wait_for()
    assert "step" in fault.inner_text()


def test_a_model_that_only_inpaints(visitor: Visitor, tmp_path: Path) -> None:
    visitor.choose("sdxl-inpainting")
    assert "paint" in refused(visitor, "image")
    Image.new("RGB", (64, 64), "green").save(tmp_path / "green.png")
    visitor.give("Start picture", tmp_path / "green.png")
    visitor.easel().click()
    visitor.page.get_by_text("What is painted is made anew").wait_for()
    visitor.generate()


def test_what_another_model_cannot_do_is_left_out(visitor: Visitor) -> None:
    visitor.button("Video").click()
    visitor.field("num_frames").fill("999")
    visitor.section("Pictures to resemble")
    visitor.choose("small")
    visitor.generate()
    assert "num_frames" not in visitor.asked()


def test_tokens_are_counted_and_windows_shown(visitor: Visitor) -> None:
    visitor.page.get_by_text("3 tokens of").wait_for()
    visitor.field("prompt").fill("a red ball, " * 40)
    summary = visitor.page.get_by_text("160 tokens of 2400, read in 3 windows")
    summary.wait_for()
    summary.click()
    assert visitor.page.locator(".tokens li").count() == 3


def test_a_task_that_the_service_forgot(visitor: Visitor, served: Served) -> None:
    visitor.button("Video").click()
    visitor.field("num_frames").fill("32")
    visitor.field("num_inference_steps").fill("50")
    with visitor.page.expect_response("**/v1/videos") as answered:
        visitor.button("Generate").click()
    job = answered.value.json()["id"]
    visitor.page.locator(".queue .task").wait_for()
    assert httpx.delete(f"{served.url}/v1/jobs/{job}").is_success
    # It ends as cancelled, or as one that is not known: whichever is heard first.
    visitor.page.wait_for_function("() => !document.querySelector('.queue progress')")
    for task in visitor.page.locator(".queue .task").all():
        assert "the service does not know this task" in task.inner_text()
        task.get_by_role("button", name="Dismiss").click()
    assert visitor.page.locator(".queue").count() == 0
