"""What is said of errors: the one table of status codes."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from deployments.contracts.api import ErrorAnswer, ErrorBody
from deployments.contracts.errors import (
    MAX_QUOTED,
    Cancelled,
    Conflict,
    DeadlineExceeded,
    EngineFault,
    FieldError,
    Forbidden,
    GenerationFailed,
    InvalidRequest,
    Moderated,
    NotFound,
    NotReady,
    QueueFull,
    RateLimited,
    StorageUnavailable,
    TcdError,
    TooLarge,
    Unauthorized,
    Unchecked,
)

# Below Serve's own logger, whose handlers write to the replica's log, with the request's id.
log = logging.getLogger("ray.serve.tcd.ingress")


@dataclass(frozen=True)
class _Row:
    status: int
    type: str
    code: str
    retry: bool


# The first class that matches counts: subclasses stand before their bases.
_TABLE: tuple[tuple[type[TcdError], _Row], ...] = (
    (Unauthorized, _Row(401, "authentication_error", "invalid_api_key", retry=False)),
    (Forbidden, _Row(403, "permission_error", "forbidden", retry=False)),
    (NotFound, _Row(404, "invalid_request_error", "not_found", retry=False)),
    (Conflict, _Row(409, "invalid_request_error", "idempotency_key_reused", retry=False)),
    (InvalidRequest, _Row(400, "invalid_request_error", "invalid_value", retry=False)),
    (Moderated, _Row(400, "image_generation_user_error", "moderation_blocked", retry=False)),
    (TooLarge, _Row(413, "invalid_request_error", "request_too_large", retry=False)),
    (RateLimited, _Row(429, "rate_limit_error", "rate_limit_exceeded", retry=True)),
    (QueueFull, _Row(429, "rate_limit_error", "queue_full", retry=True)),
    (DeadlineExceeded, _Row(408, "timeout_error", "deadline_exceeded", retry=False)),
    (Cancelled, _Row(499, "cancelled_error", "cancelled", retry=False)),
    (NotReady, _Row(503, "server_error", "not_ready", retry=True)),
    (Unchecked, _Row(503, "server_error", "unchecked", retry=True)),
    (StorageUnavailable, _Row(503, "server_error", "storage_unavailable", retry=True)),
    (EngineFault, _Row(503, "server_error", "engine_fault", retry=True)),
    (GenerationFailed, _Row(500, "server_error", "generation_failed", retry=False)),
)
_UNEXPECTED = _Row(500, "server_error", "internal_error", retry=True)
# What is known of such an error once it was said is that it is ours, and no more.
_SAID: tuple[tuple[type[TcdError], _Row], ...] = (*_TABLE, (TcdError, _UNEXPECTED))
_BY_STATUS = {row.status: row for _, row in reversed(_TABLE)} | {
    400: _Row(400, "invalid_request_error", "invalid_value", retry=False),
    405: _Row(405, "invalid_request_error", "method_not_allowed", retry=False),
    429: _Row(429, "rate_limit_error", "queue_full", retry=True),
    500: _UNEXPECTED,
}


@dataclass(frozen=True)
class Failure:
    """An error as HTTP says it."""

    status: int
    body: ErrorAnswer
    headers: dict[str, str]


def failure(error: Exception) -> Failure:
    """The answer to an error. One that is not ours is logged, and says nothing of itself."""
    if isinstance(error, ValidationError):
        error = invalid(error)
    row = next((row for kind, row in _TABLE if isinstance(error, kind)), _UNEXPECTED)
    message = str(error)
    if row is _UNEXPECTED:
        if type(error) is not TcdError:  # that one was logged where it was first said
            log.error("unexpected error", exc_info=error)
        message = "the service failed unexpectedly"
    param = error.param if isinstance(error, FieldError) else None
    headers = {} if row.retry else {"x-should-retry": "false"}
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    if isinstance(error, QueueFull):
        headers["retry-after-ms"] = str(error.retry_after_ms)
        headers["retry-after"] = str(-(-error.retry_after_ms // 1000))
    body = ErrorBody(message=message, type=row.type, param=param, code=row.code)
    return Failure(row.status, ErrorAnswer(error=body), headers)


def error_of(code: str, message: str, param: str | None = None) -> TcdError:
    """An error of which no more is known than what was said of it."""
    kind = next((kind for kind, row in _SAID if row.code == code), GenerationFailed)
    return kind(message, param) if issubclass(kind, FieldError) else kind(message)


def passing(code: str) -> bool:
    """Whether what was so said may be otherwise at the next try."""
    return any(row.retry for _, row in _SAID if row.code == code)


def http_failure(status: int, message: str, headers: Mapping[str, str] | None = None) -> Failure:
    """The answer to what the web framework, or Serve's proxy, refuses by itself: unknown paths
    and methods, requests that cannot be read, and times when nobody answers."""
    row = _BY_STATUS.get(status, _Row(status, "invalid_request_error", "invalid_value", False))
    retry = {} if row.retry else {"x-should-retry": "false"}
    body = ErrorBody(message=message, type=row.type, code=row.code)
    return Failure(status, ErrorAnswer(error=body), {**retry, **(headers or {})})


def invalid(error: ValidationError, allowed: Sequence[str] = ()) -> InvalidRequest:
    """What is wrong with a body or a request object: the first fault, and how many more."""
    faults = error.errors(include_url=False, include_context=False, include_input=False)
    return from_faults([(tuple(f["loc"]), f["msg"], f["type"]) for f in faults], allowed)


def from_faults(
    faults: Sequence[tuple[tuple[int | str, ...], str, str]], allowed: Sequence[str] = ()
) -> InvalidRequest:
    """One error out of pydantic's list of (place, message, type)."""
    place, message, kind = faults[0]
    if kind == "json_invalid":
        return InvalidRequest(f"the body is not valid JSON: {message} at character {place[-1]}")
    param = ".".join(str(part)[:MAX_QUOTED] for part in place) or None
    message = message.removeprefix("Value error, ")
    if kind == "model_type":
        message = "must be an object" if place else "the body must be an object"
    if kind == "extra_forbidden":
        known = f"; fields: {', '.join(allowed)}" if allowed and len(place) == 1 else ""
        message = "unknown field" + known
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return InvalidRequest(f"{param}: {message}{more}" if param else message + more, param)
