"""Errors that are said, kept in a record, and said again."""

import logging

import pytest

from deployments.contracts.errors import EngineFault, InvalidRequest, NotFound, QueueFull, TcdError
from deployments.ingress.answer.failures import error_of, failure, passing

PROMPT = "a dragon asleep"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("a secret"),
        EngineFault("it broke"),
        QueueFull("full", 1),
        NotFound("no such map", "control"),
        InvalidRequest("n: too many", "n"),
    ],
)
def test_what_is_said_again_is_the_same(error: Exception) -> None:
    first = failure(error)
    said = first.body.error
    again = failure(error_of(said.code or "", said.message, said.param))
    assert (again.status, again.body) == (first.status, first.body)
    assert ("x-should-retry" in again.headers) == ("x-should-retry" in first.headers)
    assert passing(said.code or "") is ("x-should-retry" not in first.headers)


def test_what_nobody_expected_is_logged_where_it_is_first_said(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    said = failure(RuntimeError("a secret")).body.error
    assert "a secret" in caplog.text
    caplog.clear()
    again = error_of("internal_error", said.message)
    assert type(again) is TcdError
    assert passing("internal_error")
    assert failure(again).body.error.code == "internal_error"
    assert not caplog.text


def test_a_prompt_in_it_is_logged_only_if_it_may_be(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    monkeypatch.setattr(logging.getLogger("ray.serve"), "propagate", True)
    with pytest.raises(LookupError) as raised:
        raise LookupError(f"no token for {PROMPT!r}")
    assert PROMPT not in failure(raised.value).body.error.message
    assert "unexpected error" in caplog.text
    assert "LookupError" in caplog.text
    assert "test_failures.py" in caplog.text
    assert (PROMPT in caplog.text) is whole


def test_a_code_that_nobody_knows_does_not_pass() -> None:
    assert not passing("attempts_exhausted")
    assert failure(error_of("attempts_exhausted", "three went away")).status == 500
