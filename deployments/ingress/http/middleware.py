"""What every HTTP request passes: a count, a line of the log, a limit of its body, a key check."""

import asyncio
import re
import time
from collections.abc import Sequence
from contextlib import suppress

from pydantic import ValidationError
from ray.exceptions import TaskCancelledError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.app import Guarded
from deployments.contracts.api import ErrorAnswer
from deployments.contracts.errors import (
    Cancelled,
    DeadlineExceeded,
    Forbidden,
    TcdError,
    TooLarge,
    Unauthorized,
)
from deployments.ingress.answer.failures import failure
from deployments.ingress.answer.storage import FILES_PATH, NAME
from deployments.ingress.http.failures import answer_to
from deployments.ingress.http.keys import key_of, noted_key, presented_key
from deployments.ingress.http.metrics import Metrics
from deployments.ingress.http.paths import A1111, path_of
from deployments.ingress.http.refusals import UNKNOWN, note_error, route_of, said_of
from deployments.ingress.keys.keyring import Keyring
from deployments.ingress.request.course import Course, Outcome, begin

GONE = 499  # the status of a request whose client has gone


class RequestCount:
    """Counts every answer and how long it took. (Its `x-request-id` comes from Serve.)"""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = GONE  # unless an answer starts

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            seconds = time.perf_counter() - started
            self._metrics.count(route_of(scope), status, seconds, said_of(scope))


class RequestLog:
    """One line for every request that is work, and for every answer that is a refusal."""

    def __init__(self, app: ASGIApp, *, log_prompts: bool) -> None:
        self._app = app
        self._log_prompts = log_prompts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        course = Course(Headers(scope=scope).get("x-request-id", ""), log_prompts=self._log_prompts)
        begin(course)
        status, whole, gone, body = 0, False, False, b""

        async def read(message: Message) -> None:
            nonlocal status, whole, gone, body
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                whole = not message.get("more_body", False)
                if status >= 400:
                    body += message.get("body", b"")
            try:
                await send(message)
            except OSError:  # as ASGI has it
                gone = True
                raise

        try:
            await self._app(scope, receive, read)
        except Exception as fault:
            if not (gone or whole):
                broken = failure(fault)
                note_error(scope, broken.status, broken.body.error)
                # Serve's proxy logs what is raised, in its own words: no more than the client saw.
                raise TcdError(broken.body.error.message) from None
            raise
        finally:
            if status >= 400:
                error = None
                with suppress(ValidationError):
                    error = ErrorAnswer.model_validate_json(body).error
                note_error(scope, status, error)
            failed = said_of(scope) is not None
            if course.work or failed:
                key, route = key_of(scope), route_of(scope)
                course.key = None if key is None else key.name
                course.tell(
                    f"{scope['method']} {path_of(scope) if route == UNKNOWN else route}",
                    _outcome(status, whole=whole, failed=failed),
                    status or GONE,
                )


def _outcome(status: int, *, whole: bool, failed: bool) -> Outcome:
    """What became of a request whose answer had this status; `failed`: it ended with an error."""
    if status == GONE:
        return "cancelled"
    if status >= 400:
        return "refused"
    if failed:
        return "broken_off"
    return "completed" if whole else "cancelled"


class HeadAsGet:
    """Answers HEAD as GET, without the body."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def bodiless(message: Message) -> None:
            await send({**message, "body": b""} if "body" in message else message)

        # A server reads its own scope again, to tell an answer that is too short.
        await self._app({**scope, "method": "GET"}, receive, bodiless)


class BodyLimit:
    """Refuses bodies above a size, whether they announce it or not, and those that are not there
    in time. Whoever reads the body is interrupted, and what it says of that is not sent."""

    def __init__(self, app: ASGIApp, max_bytes: int, timeout_s: float) -> None:
        self._app = app
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await _refuse(_too_large(self._max_bytes), scope, receive, send)
            return
        body = _Body(receive, self._max_bytes, self._timeout_s)
        answered = False

        async def unless_refused(message: Message) -> None:
            nonlocal answered
            if answered or body.refusal is None:
                answered = True
                await send(message)

        await self._app(scope, body.receive, unless_refused)
        if body.refusal is not None and not answered:
            await _refuse(body.refusal, scope, receive, send)


class _Body:
    """The body of one request as it comes. `refusal`: why it was not read to its end."""

    def __init__(self, receive: Receive, max_bytes: int, timeout_s: float) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._until = asyncio.get_running_loop().time() + timeout_s
        self._received = 0
        self._whole = False
        self.refusal: TcdError | None = None

    async def receive(self) -> Message:
        """ASGI. Raises `TooLarge`, `DeadlineExceeded`, or `Cancelled` if the client goes."""
        if self._whole:
            return await self._next()  # a disconnect, whenever it comes
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._next()
        except TimeoutError:
            late = f"the request's body was not there within {self._timeout_s:g} s"
            raise self._refused(DeadlineExceeded(late)) from None
        if message["type"] == "http.disconnect":
            raise self._refused(Cancelled("the client went away"))
        self._received += len(message.get("body", b""))
        if self._received > self._max_bytes:
            raise self._refused(_too_large(self._max_bytes))
        self._whole = not message.get("more_body", False)
        return message

    async def _next(self) -> Message:
        """Of a client that has gone, Serve may end the call before it says so."""
        try:
            return await self._receive()
        except TaskCancelledError:
            return {"type": "http.disconnect"}

    def _refused(self, error: TcdError) -> TcdError:
        self.refusal = error
        return error


class Unexpected:
    """Answers what no route expected: closest to the routes, so that everything around them sees
    an answer like any other."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        answered = False

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except Exception as error:
            if answered or scope["type"] != "http":
                raise
            await _refuse(error, scope, receive, send)


KEYED = ("/v1/", *A1111)
JOB_FILE = re.compile(r"/v1/jobs/[^/]+/files/[^/]+")
PAGES: dict[str, Guarded] = {
    "/metrics": "metrics",
    "/readyz": "readyz",
    "/docs": "docs",
    "/docs/oauth2-redirect": "docs",
    "/redoc": "docs",
    "/openapi.json": "docs",
    "/": "playground",
}


class Authentication:
    """Asks for a key below `KEYED`, if there are any, and for that of an `admin` on pages that are
    protected. What the request carries is noted for the routes and logs behind it.

    Files are shown without one: their names are secrets themselves, as in a presigned URL.
    """

    def __init__(self, app: ASGIApp, keys: Keyring, protect: Sequence[Guarded] = ()) -> None:
        self._app = app
        self._keys = keys
        self._protect = protect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and self._keys.closed:
            path = path_of(scope)
            guarded = _page_of(path) in self._protect
            if guarded or (path.startswith(KEYED) and not _is_secret(path)):
                await self._keys.renew()
                error = self._refusal(scope, guarded)
                if error is not None:
                    await _refuse(error, scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, guarded: bool) -> TcdError | None:
        presented = presented_key(scope)
        key = None if presented is None else self._keys.find(presented)
        if key is None:
            return Unauthorized("a valid key is needed: Authorization: Bearer KEY")
        noted_key(scope, key)
        if guarded and not key.admin:
            return Forbidden(f"this page asks for the key of an admin; {key.name!r} is none")
        return None


def _page_of(path: str) -> Guarded | None:
    """The page that a path belongs to, with its files."""
    return "playground" if path.startswith("/playground/") else PAGES.get(path)


def _is_secret(path: str) -> bool:
    """Whether a path is a key by itself: the URL of a file."""
    stored = path.startswith(FILES_PATH) and NAME.fullmatch(path.removeprefix(FILES_PATH))
    return bool(stored or JOB_FILE.fullmatch(path))


def _too_large(max_bytes: int) -> TooLarge:
    return TooLarge(f"the request's body is larger than {max_bytes} bytes")


async def _refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    await answer_to(scope, failure(error))(scope, receive, send)
