"""The request as others would send it: curl and Python make the same picture when they are run."""

import base64
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deployments.contracts.jobs import Pixels
from tests.deployments.ingress.playground.conftest import Visit
from tests.deployments.ingress.playground.visitor import Visitor
from tests.serving import Served


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """Named as the snippets name it."""
    file = tmp_path / "picture-1.png"
    image = Image.new("RGB", (64, 64), "green")
    image.paste("white", (16, 16, 48, 48))
    image.save(file)
    return file


@pytest.fixture(params=["plain", "control", "edit"])
def visitor(request: pytest.FixtureRequest, served: Served, visit: Visit, picture: Path) -> Visitor:
    """Who made a picture, and looks at it."""
    come = visit(served.url + "/")
    come.choose("sd15")
    come.field("prompt").fill('it\'s a "red" ball')
    come.field("seed").fill("3")
    come.section("Styles").get_by_role("button", name="+ ink").click()
    if request.param == "control":
        come.section("Controls").get_by_role("button", name="Add canny").click()
        come.give("Picture for canny", picture)
    if request.param == "edit":
        come.section("Start picture")
        come.give("Start picture", picture)
    come.generate()
    come.opened()
    return come


def snippet(visitor: Visitor, name: str) -> str:
    """What is copied."""
    visitor.page.get_by_role("dialog").get_by_role("button", name=name, exact=True).click()
    visitor.page.get_by_text(f"{name.split(' ')[0]}", exact=False).first.wait_for()
    visitor.page.get_by_role("status").filter(has_text="copied").wait_for()
    text: str = visitor.page.evaluate("() => navigator.clipboard.readText()")
    assert text == visitor.page.get_by_label("The request", exact=True).inner_text()
    return text


def made(visitor: Visitor) -> Pixels:
    """The pixels that the page shows."""
    with visitor.page.expect_download() as started:
        visitor.page.get_by_role("dialog").get_by_role("link", name="Download").click()
    with Image.open(started.value.path()) as image:
        return np.asarray(image.convert("RGB"))


def test_curl_makes_the_same(visitor: Visitor, tmp_path: Path) -> None:
    text = snippet(visitor, "curl")
    answer = subprocess.run(
        ["bash", "-c", text], cwd=tmp_path, capture_output=True, check=True, timeout=120
    )
    (tmp_path / "made.png").write_bytes(
        base64.b64decode(json.loads(answer.stdout)["data"][0]["b64_json"])
    )
    with Image.open(tmp_path / "made.png") as image:
        assert np.array_equal(np.asarray(image), made(visitor))


def test_python_makes_the_same(visitor: Visitor, tmp_path: Path) -> None:
    text = snippet(visitor, "Python (openai)")
    subprocess.run([sys.executable, "-c", text], cwd=tmp_path, check=True, timeout=120)
    with Image.open(tmp_path / "picture.png") as image:
        assert np.array_equal(np.asarray(image), made(visitor))


def test_the_handle_makes_the_same(
    visitor: Visitor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (
        snippet(visitor, "Ray handle").replace("await ", "").replace("\n)  # ", "\n).result()  # ")
    )
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    with ThreadPoolExecutor(1) as thread:  # this one has the browser's event loop
        thread.submit(exec, text, names).result()
    image = Image.fromarray(names["result"].images[0])  # type: ignore[attr-defined]
    assert np.array_equal(np.asarray(image), made(visitor))


def test_a_video_by_python(served: Served, visit: Visit, tmp_path: Path) -> None:
    visitor = visit(served.url + "/")
    visitor.choose("sd15")
    visitor.field("prompt").fill("a red ball")
    visitor.button("Video").click()
    visitor.field("num_frames").fill("4")
    visitor.generate()
    visitor.opened()
    text = snippet(visitor, "Python (openai)")
    subprocess.run([sys.executable, "-c", text], cwd=tmp_path, check=True, timeout=120)
    assert (tmp_path / "video.mp4").read_bytes()[4:8] == b"ftyp"
