"""What Serve's HTTP proxy must not take from outside; it is imported by the proxy's own process:

    RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=deployments.ingress.http.proxy:guards

In the environment of every node before Ray starts there. See docs/adr/0006.
"""

import asyncio
import logging
import os
import re

import h11
import uvicorn.config
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from deployments.ingress.answer.failures import Failure, http_failure
from deployments.ingress.http.failures import answer_to
from deployments.replica import own_name
from deployments.tracebacks import leave_out_messages

HEAD_S = 20.0  # for the request line and all headers of a request; their size h11 bounds by 64 KiB
REQUEST_ID = re.compile(rb"[!-~]{1,128}")
# What Serve 2.60 obeys in any request: time limit, whether a disconnect cancels, and routing.
CONTROL = re.compile(
    rb"x-request-timeout-seconds|x-request-disconnect-disabled"
    rb"|serve[-_]multiplexed[-_]model[-_]id|x[-_]session[-_]id|x-serve-router-.*"
)
SAID_BY_SERVE = {
    404: "there is nothing here, or not yet",
    408: "the request was not done within the time limit of Serve's proxy",
    429: "the service has too many requests already; try again",
    503: "the service went away, or is not there yet; try again",
}
LOG_PROMPTS = "TCD_LOG_PROMPTS"  # in the environment, as 1: for proxies, which read no `args`
log = logging.getLogger("ray.serve.tcd.proxy")


def guards() -> list[Middleware]:
    """Called by the proxy before it listens. Serve lets nobody choose uvicorn's protocol, so the
    one that uvicorn chooses by itself is changed, in this process."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:{BoundedHead.__name__}"
    # Behind Serve's own HAProxy replicas call for guards, too; their `args` say what is logged.
    if own_name() is None and os.environ.get(LOG_PROMPTS) != "1":
        leave_out_messages()
    # The last one is the outermost.
    return [Middleware(OneShape), Middleware(ControlHeaders), Middleware(OneLength)]


class OneLength:
    """Refuses a request that says in two ways where it ends, and closes the connection: what comes
    next may be a part of it. (h11 goes by the chunks, others by the length: RFC 9112, 6.3.)"""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        names = {name for name, _ in scope.get("headers", ())}
        if names >= {b"content-length", b"transfer-encoding"}:
            message = "content-length and transfer-encoding both say where the body ends; send one"
            refusal = answer_to(scope, http_failure(400, message))
            refusal.headers["connection"] = "close"
            await refusal(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class ControlHeaders:
    """Drops the headers by which Serve is controlled, and an `x-request-id` that is not 1 to 128
    printable characters of ASCII: Serve makes a new one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if "headers" in scope:
            kept = [header for header in scope["headers"] if _harmless(*header)]
            scope = {**scope, "headers": kept}
        await self._app(scope, receive, send)


def _harmless(name: bytes, value: bytes) -> bool:
    if name == b"x-request-id":
        return REQUEST_ID.fullmatch(value) is not None
    return CONTROL.fullmatch(name) is None


class OneShape:
    """Says in OpenAI's shape what Serve says in plain text, or not at all: no application at this
    path, no ingress that answers, too many requests, too late."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] != "http" or scope["path"].startswith("/-/"):
            await self._app(scope, receive, send)
            return
        started = replaced = False

        async def shaped(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started, replaced = True, _is_of_serve(message)
                if replaced:
                    await _refusal_of_serve(scope, message["status"])(scope, receive, send)
            if not replaced:
                await send(message)

        try:
            await self._app(scope, receive, shaped)
        except Exception:
            if started:
                raise
            log.exception("a request failed in Serve's proxy")
        if not started:  # the ingress died under the request
            await _refusal_of_serve(scope, 503)(scope, receive, send)


def _is_of_serve(start: Message) -> bool:
    """Serve says no length of what it says itself; applications do."""
    headers = Headers(raw=start.get("headers", []))
    plain = headers.get("content-type", "").startswith("text/plain")
    return start["status"] in SAID_BY_SERVE and plain and "content-length" not in headers


def _refusal_of_serve(scope: Scope, status: int) -> JSONResponse:
    return answer_to(scope, http_failure(status, SAID_BY_SERVE[status]))


class BoundedHead(H11Protocol):
    """HTTP/1.1 that waits only so long for a request's head, and reads only so much of it. A
    connection on which nothing was asked yet is closed without a word: some are opened ahead.

    (httptools, which uvicorn prefers, reads a header without end, and the longer the slower.)
    """

    _unused: asyncio.TimerHandle
    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first byte is awaited."""
        super().connection_made(transport)
        self._unused = self.loop.call_later(HEAD_S, transport.close)

    def data_received(self, data: bytes) -> None:
        """A part of a head, or of a body."""
        self._unused.cancel()
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self._late is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is awaited any more."""
        self._unused.cancel()
        self._stop_waiting()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP, in OpenAI's shape."""
        self._refuse(http_failure(400, msg))

    def _wait(self) -> None:
        late = http_failure(408, f"the request's head took more than {HEAD_S:g} s")
        self._late = self.loop.call_later(HEAD_S, self._refuse, late)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _refuse(self, refusal: Failure) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = refusal.body.model_dump_json().encode()
            headers = refusal.headers | {
                "content-type": "application/json",
                "content-length": str(len(body)),
                "connection": "close",
            }
            for event in (
                h11.Response(status_code=refusal.status, headers=list(headers.items())),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
