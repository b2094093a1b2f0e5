"""Where the page stands: below a prefix, behind a key, and with files that are its own alone."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Request
from starlette.applications import Starlette
from starlette.routing import Mount

from demo.service import free_port
from deployments.ingress.http.playground import FILES, FOLDER
from tests.deployments.ingress.keyed import entry
from tests.deployments.ingress.playground.visitor import Visitor
from tests.deployments.ingress.test_keys import app, client
from tests.http_server import running

PREFIX = "/pictures/tcd"


@pytest.fixture
def url() -> Iterator[str]:
    """A service with a key, below a prefix."""
    mounted = Starlette(routes=[Mount(PREFIX, app(entry("alice")))])
    config = uvicorn.Config(mounted, port=free_port(), log_level="warning", lifespan="off")
    with running(config) as base:
        yield base + PREFIX


@pytest.mark.parametrize("end", ["", "/"])
def test_below_a_prefix_behind_a_key(url: str, browser: Browser, end: str) -> None:
    visitor = Visitor(browser.new_context().new_page())
    asked: list[Request] = []
    visitor.page.on("request", lambda request: asked.append(request))
    visitor.page.goto(url + end)
    visitor.page.get_by_text("a valid key is needed").wait_for()
    visitor.page.get_by_label("API key").fill("alice")
    visitor.page.get_by_label("API key").press("Enter")
    visitor.page.locator("#composer").wait_for()
    visitor.page.reload()
    visitor.page.locator("#composer").wait_for()  # the key is kept while the tab is open
    visitor.page.context.close()
    assert visitor.told == []
    assert asked
    assert all(request.url.startswith(url) for request in asked)


def test_it_has_no_file_but_its_own() -> None:
    page = client()
    for name in FILES:
        assert page.get(f"/playground/{name}").status_code == 200, name
    for name in ("index.html", "vendor/README.md", "../app.py", "%2e%2e/app.py", "", "main.mjs"):
        assert page.get(f"/playground/{name}").status_code == 404, name


def test_every_file_that_is_named_is_there() -> None:
    named = {FOLDER / path for path in ("main.js", "style.css")}
    for file in FILES.values():
        imports = re.findall(r'from "(\./[^"]+)"', file.read_text())
        named |= {(file.parent / path).resolve() for path in imports}
    assert named == set(FILES.values())


def test_no_foreign_host_is_let_in() -> None:
    answer = client().get("/")
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    for file in FILES.values():
        if "vendor" not in file.parts:
            text = file.read_text()
            assert not re.search(r"(src|href|import|fetch)\W{1,3}https?:", text), file.name


def test_what_it_says_to_newcomers() -> None:
    told = {"about": "Balls.", "prompts": ["a ball", "two balls"]}
    assert client(playground=told).get("/playground/about").json() == told
    assert client().get("/playground/about").json() == {"about": "", "prompts": []}


def test_it_is_in_the_package() -> None:
    """The wheel takes these two folders."""
    text = Path("pyproject.toml").read_text()
    folders = {file.parent.relative_to(FOLDER.parent).as_posix() for file in FILES.values()}
    assert all(f"{folder}/*" in text or "playground/**" in text for folder in folders)
