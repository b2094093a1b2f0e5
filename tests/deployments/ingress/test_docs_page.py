"""`/docs` and `/redoc` where there is no internet."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from fastapi import FastAPI

from configs.app import ServiceArgs
from demo.service import free_port
from deployments.ingress.http.app import make_app
from tests.deployments.ingress.local_jobs import NO_JOBS, local_desk
from tests.deployments.ingress.playground.visitor import CHROMIUM, QUIET
from tests.fuzz.application import NoModels
from tests.http_server import running

NOWHERE_ELSE = "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"


@pytest.fixture(params=["", "/tcd"], ids=["at the root", "below a prefix"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    args = ServiceArgs(default_model="sd15")
    app = make_app(NoModels(), local_desk(NoModels(), args, NO_JOBS), args)
    if request.param:
        outer = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        outer.mount(request.param, app)
        app = outer
    with running(uvicorn.Config(app, port=free_port(), log_level="warning")) as url:
        yield url + request.param


@pytest.mark.parametrize("page", ["docs", "redoc"])
def test_all_that_a_page_wants_is_here(url: str, page: str) -> None:
    html = httpx.get(f"{url}/{page}", timeout=60).text
    wanted = re.findall(r'(?:src|href)="([^"]+)"', html) + re.findall(r"spec-url=.(/[^'\"]+)", html)
    assert len(wanted) >= 2
    host = re.match(r"http://[^/]+", url)
    assert host is not None
    for path in wanted:
        assert path.startswith("/"), path
        answer = httpx.get(host[0] + path, timeout=60)
        assert answer.status_code == 200, path
        assert len(answer.content) > 1000, path


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("page", "shows"), [("docs", "opblock-summary"), ("redoc", "operation/")])
def test_it_is_drawn_without_internet(url: str, page: str, shows: str, tmp_path: Path) -> None:
    assert CHROMIUM is not None
    words = (f"--user-data-dir={tmp_path}", NOWHERE_ELSE, "--virtual-time-budget=20000")
    seen = subprocess.run(
        [CHROMIUM, "--headless", *QUIET, *words, "--dump-dom", f"{url}/{page}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    assert shows in seen
    assert "/v1/images/generations" in seen
