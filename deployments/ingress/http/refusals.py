"""What an answer says went wrong: kept for who counts it, and for the request's line in the log."""

from dataclasses import dataclass
from typing import cast

from starlette.types import Scope

from deployments.contracts.api import ErrorBody
from deployments.ingress.request.course import current

UNKNOWN = "unknown"  # route, or code
STATE = "tcd_error"  # in a request's state


@dataclass(frozen=True)
class Said:
    """What an answer said went wrong: the error's status and code."""

    status: int
    code: str


def note_error(scope: Scope, status: int, error: ErrorBody | None) -> None:
    """An answer, or the last event of a stream, is an error.

    Args:
        status: of the answer, or, for an event, of the answer that the error would have been.
    """
    code = UNKNOWN if error is None or error.code is None else error.code
    scope["state"] = {**scope.get("state", {}), STATE: Said(status, code)}
    current().fails(status, error)


def said_of(scope: Scope) -> Said | None:
    """What a request's answer said went wrong; `None`: nothing."""
    return cast(Said | None, scope.get("state", {}).get(STATE))


def route_of(scope: Scope) -> str:
    """The path of a request's route, as the application declares it."""
    return getattr(scope.get("route"), "path", UNKNOWN)
