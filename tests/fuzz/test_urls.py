"""Nobody is reached but the hosts that the configuration names, however a URL is written."""

import asyncio
from typing import Any

import httpcore
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.app import ServiceArgs
from deployments.contracts.errors import InvalidRequest
from deployments.ingress.request.pictures import Pictures
from tests.fuzz.urls import DISGUISES, INSIDE, hostile

ALLOWED = "pictures.example"


@pytest.fixture(scope="module")
def reached() -> Any:
    """The hosts to which a connection was tried; none is made."""
    hosts: list[str] = []

    async def connect(_: object, host: str, *__: object, **___: object) -> None:
        hosts.append(host)
        raise httpcore.ConnectError("the test connects to nobody")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("httpcore._backends.auto.AutoBackend.connect_tcp", connect)
        yield hosts


PICTURES = Pictures(ServiceArgs(allowed_url_hosts=(ALLOWED,)))


def refuse(url: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        asyncio.run(PICTURES.bring({"controls.0.image": url}))
    assert refusal.value.param == "controls.0.image"


def test_hostile_urls(reached: list[str]) -> None:
    urls = hostile(ALLOWED)
    assert len(urls) > 300
    for url in urls:
        refuse(url)
    assert set(reached) <= {ALLOWED}


def test_the_host_that_is_allowed_is_asked(reached: list[str]) -> None:
    before = len(reached)
    refuse(f"https://{ALLOWED}/a.png")
    assert reached[before:] == [ALLOWED]


PIECES = (
    *INSIDE,
    ALLOWED,
    "@",
    ":",
    "/",
    "\\",
    "#",
    "?",
    ".",
    "%",
    "%40",
    "\t",
    "\n",
    " ",
    "[",
    "]",
)


@settings(max_examples=300)
@given(
    form=st.sampled_from(DISGUISES),
    pieces=st.lists(st.sampled_from(PIECES) | st.text(max_size=2), max_size=6),
)
def test_urls_put_together(reached: list[str], form: str, pieces: list[str]) -> None:
    refuse(form.format(allowed=ALLOWED, inside="".join(pieces)))
    assert set(reached) <= {ALLOWED}
