"""What every HTTP request passes: a count, a size limit, a key check."""

import os
import secrets
import time

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.contracts.errors import TcdError, TooLarge, Unauthorized
from deployments.ingress.answer.storage import FILES_PATH
from deployments.ingress.http.failures import failure
from deployments.ingress.http.metrics import Metrics


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


class Authentication:
    """Asks for a bearer key below `/v1/`, if the named environment variable holds any.

    Stored files are shown without one: their names are secrets themselves, as in a presigned URL.
    """

    def __init__(self, app: ASGIApp, env_name: str | None) -> None:
        self._app = app
        listed = os.environ.get(env_name, "") if env_name else ""
        self._keys = [key.strip().encode() for key in listed.split(",") if key.strip()]
        if env_name and not self._keys:
            raise ValueError(f"api_keys_env is {env_name}, but that variable holds no key")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "http" and self._keys and _needs_key(scope):
            scheme, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
            known = [secrets.compare_digest(key.strip().encode(), k) for k in self._keys]
            if scheme.lower() != "bearer" or not any(known):
                error = Unauthorized("a valid key is needed: Authorization: Bearer KEY")
                await _refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


def _needs_key(scope: Scope) -> bool:
    # Below a route prefix, `path` has the prefix in front.
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.startswith("/v1/") and not path.startswith(FILES_PATH)


async def _refuse(error: TcdError, scope: Scope, receive: Receive, send: Send) -> None:
    refusal = failure(error)
    response = JSONResponse(refusal.body.model_dump(), refusal.status, refusal.headers)
    await response(scope, receive, send)
