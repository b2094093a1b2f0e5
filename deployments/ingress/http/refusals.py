"""The log of refusals: one line each, with what is known of the request."""

import json
import logging
from dataclasses import dataclass
from typing import cast

from starlette.datastructures import Headers
from starlette.types import Scope

from deployments.contracts.api import ErrorBody
from deployments.ingress.http.keys import key_of

UNKNOWN = "unknown"  # route, or code
STATE = "tcd_error"  # in a request's state
MAX_LOGGED = 300  # characters of what may quote the client
# Below Serve's own logger: its handlers write to the replica's log, with the request's id.
log = logging.getLogger("ray.serve.tcd.http")


@dataclass(frozen=True)
class Said:
    """What an answer said went wrong: the error's status and code."""

    status: int
    code: str


def log_refusal(scope: Scope, status: int, error: ErrorBody | None, what: str = "refused") -> None:
    """One line: route, status, code, field, key's name, reason. Neither prompts nor keys are in a
    reason. What was said is kept for who counts it.

    Args:
        status: of the answer, or, for an event, of the answer that the error would have been.
        what: became of the request.
    """
    # A name that the client made up may be anything, and must not break the line.
    code, param, reason = (error.code, error.param, error.message) if error else (None, None, "")
    route, key = route_of(scope), key_of(scope)
    asked = scope["path"] if route == UNKNOWN else route
    name = None if key is None else key.name
    scope["state"] = {**scope.get("state", {}), STATE: Said(status, code or UNKNOWN)}
    log.log(
        logging.WARNING if status >= 500 else logging.INFO,
        "%s: %s %s status=%d code=%s param=%s key=%s reason=%s",
        *(what, scope["method"], _quoted(asked), status),
        *(code, _quoted(param), name, _quoted(reason)),
        extra={"request_id": Headers(scope=scope).get("x-request-id", "")},
    )


def said_of(scope: Scope) -> Said | None:
    """What a request's answer said went wrong; `None`: nothing."""
    return cast(Said | None, scope.get("state", {}).get(STATE))


def route_of(scope: Scope) -> str:
    """The path of a request's route, as the application declares it."""
    return getattr(scope.get("route"), "path", UNKNOWN)


def _quoted(text: str | None) -> str:
    return json.dumps(text if text is None else text[:MAX_LOGGED])
