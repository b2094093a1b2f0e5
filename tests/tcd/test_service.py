"""Where the service is, and how long it may take, as people say it."""

import math

import pytest

from tcd.service import WRONG, Failed, Service


@pytest.mark.parametrize("url", ["http://here:8000", "http://here:8000/", "http://here:8000/v1/"])
def test_a_place_with_and_without_the_version(url: str) -> None:
    with Service(url) as service:
        assert str(service._web.base_url) == "http://here:8000/"


def test_a_host_may_be_called_so() -> None:
    with Service("HTTP://v1") as service:
        assert str(service._web.base_url) == "http://v1/"


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "here", "", "ftp://here", "http://here:port"])
def test_a_place_that_is_none(url: str) -> None:
    with pytest.raises(Failed, match="--url") as refused:
        Service(url)
    assert refused.value.code == WRONG


@pytest.mark.parametrize("seconds", [0.0, -1.0, math.inf, math.nan, 1e9])
def test_a_time_that_is_none(seconds: float) -> None:
    with pytest.raises(Failed, match=r"above 0, at most 604800") as refused:
        Service("http://here", timeout_s=seconds)
    assert refused.value.code == WRONG
