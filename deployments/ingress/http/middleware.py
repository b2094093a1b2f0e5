"""What every HTTP request passes: a count, a size limit, a key check."""

import time
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.app import Guarded
from deployments.contracts.errors import Forbidden, TcdError, TooLarge, Unauthorized
from deployments.ingress.answer.storage import FILES_PATH
from deployments.ingress.http.failures import failure
from deployments.ingress.http.keys import noted_key
from deployments.ingress.http.metrics import Metrics
from deployments.ingress.request.keyring import Keyring


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
        status = 499  # unless an answer starts, the client has gone

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noted)
        finally:
            route = getattr(scope.get("route"), "path", "unknown")
            self._metrics.count(route, status, time.perf_counter() - started)


class BodyLimit:
    """Refuses bodies above a size, whether they announce it or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await _refuse(self._too_large(), scope, receive, send)
            return
        received = 0
        answered = False

        async def counted() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self._max_bytes:
                raise self._too_large()
            return message

        async def noted(message: Message) -> None:
            nonlocal answered
            answered = True
            await send(message)

        try:
            await self._app(scope, counted, noted)
        except TooLarge as error:
            if answered:
                raise
            await _refuse(error, scope, receive, send)

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the request's body is larger than {self._max_bytes} bytes")


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
    """Asks for a bearer key below `/v1/`, if there are any, and for that of an `admin` on pages
    that are protected. What the request carries is noted for the routes and logs behind it.

    Stored files are shown without one: their names are secrets themselves, as in a presigned URL.
    """

    def __init__(self, app: ASGIApp, keys: Keyring, protect: Sequence[Guarded] = ()) -> None:
        self._app = app
        self._keys = keys
        self._protect = protect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and self._keys.closed:
            # Below a route prefix, `path` has the prefix in front.
            path: str = scope["path"].removeprefix(scope.get("root_path", ""))
            guarded = PAGES.get(path) in self._protect
            if guarded or (path.startswith("/v1/") and not path.startswith(FILES_PATH)):
                await self._keys.renew()
                error = self._refusal(scope, guarded)
                if error is not None:
                    await _refuse(error, scope, receive, send)
                    return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope, guarded: bool) -> TcdError | None:
        scheme, _, presented = Headers(scope=scope).get("authorization", "").partition(" ")
        key = self._keys.find(presented.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            return Unauthorized("a valid key is needed: Authorization: Bearer KEY")
        noted_key(scope, key)
        if guarded and not key.admin:
            return Forbidden(f"this page asks for the key of an admin; {key.name!r} is none")
        return None


async def _refuse(error: TcdError, scope: Scope, receive: Receive, send: Send) -> None:
    refusal = failure(error)
    response = JSONResponse(refusal.body.model_dump(), refusal.status, refusal.headers)
    await response(scope, receive, send)
