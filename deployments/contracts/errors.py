"""The errors that cross handles: one small tree, given status codes in `ingress/errors.py`.

Positional arguments equal `self.args`, or an error would fail to unpickle on the other
side of a handle.
"""

MAX_QUOTED = 100  # characters of what a client made up that an error repeats
UNMEASURED_RETRY_MS = 1000


class TcdError(Exception):
    """Base of everything that this service raises on purpose."""


class FieldError(TcdError):
    """Base of what a request is refused for by one of its fields. `param` names it."""

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message, param)
        self.message = message
        self.param = param

    def __str__(self) -> str:
        return self.message


class InvalidRequest(FieldError):
    """The request asks for something that is not allowed."""


class NotFound(InvalidRequest):
    """The request names a model or an adapter that does not exist."""


class Conflict(InvalidRequest):
    """The request says something else than one that it claims to be."""


class Moderated(FieldError):
    """A picture is not shown: the safety checker found in it what it looks for. `param` names the
    field that it came in, of one that the request brought."""


class QueueFull(TcdError):
    """No place is free, or none from which the request could be answered in time.

    Attributes:
        retry_after_ms: when one should be for this request, from the measured step time where
            there is one: whoever was refused before has one by then.
        full_ms: for how long the same caller need not ask for as much in as little time again; 0:
            nobody knows.
    """

    def __init__(
        self, message: str, retry_after_ms: int = UNMEASURED_RETRY_MS, full_ms: int = 0
    ) -> None:
        super().__init__(message, retry_after_ms, full_ms)
        self.message = message
        self.retry_after_ms = retry_after_ms
        self.full_ms = full_ms

    def __str__(self) -> str:
        return self.message


class RateLimited(QueueFull):
    """The caller's key has used up what it may have at a time or in a minute; others have not."""


class DeadlineExceeded(TcdError):
    """The request's own time limit passed before it was answered."""


class Cancelled(TcdError):
    """The request was cancelled by its sender."""


class GenerationFailed(TcdError):
    """This request failed by itself (its numbers left the finite range, or memory was short)."""


class NotReady(TcdError):
    """The model exists but no replica can answer now."""


class WentAway(NotReady):
    """What worked on the request died, more than once."""


class Unchecked(TcdError):
    """The work was done, and the safety checker does not say whether it may be shown."""


class StorageUnavailable(TcdError):
    """The storage of files or of jobs does not answer."""


class Unauthorized(TcdError):
    """The request carries no key, or one that is not accepted."""


class Forbidden(TcdError):
    """The caller's key is known, and does not allow this."""


class TooLarge(TcdError):
    """The request's body is larger than the service accepts."""


class EngineFault(TcdError):
    """The engine broke; the replica reports itself unhealthy and will be replaced."""
