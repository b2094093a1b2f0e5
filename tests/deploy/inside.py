"""A small server in place of Serve's proxy: says what reached it.

    python -m tests.deploy.inside PORT [ADDRESS]

`/seen`: how many requests began and how many were left by their client; `/slow`: an answer after
`?s=` seconds; `/events`: one event now and one after a second; anything else: the headers and how
long the body was.
"""

import asyncio
import json
import sys
from contextlib import suppress
from urllib.parse import parse_qs

import uvicorn
from starlette.types import Receive, Scope, Send

seen = {"requests": 0, "left": 0}


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """ASGI."""
    path = scope["path"]
    if path == "/-/healthz":
        await _answer(send, b"success")
    elif path == "/seen":
        await _answer(send, json.dumps(seen).encode())
    elif path == "/slow":
        seen["requests"] += 1
        seconds = float(parse_qs(scope["query_string"])[b"s"][0])
        await _body(receive)
        with suppress(TimeoutError):
            await asyncio.wait_for(receive(), seconds)  # what comes next is that the client leaves
            seen["left"] += 1
        await _answer(send, b"done")
    elif path == "/events":
        kind = (b"content-type", b"text/event-stream")
        await send({"type": "http.response.start", "status": 200, "headers": [kind]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        await asyncio.sleep(1)
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})
    else:
        seen["requests"] += 1
        headers = [(name.decode(), value.decode("latin-1")) for name, value in scope["headers"]]
        told = {"headers": headers, "bytes": await _body(receive)}
        await _answer(send, json.dumps(told).encode())


async def _body(receive: Receive) -> int:
    count, more = 0, True
    while more:
        message = await receive()
        count += len(message.get("body", b""))
        more = message.get("more_body", False)
    return count


async def _answer(send: Send, body: bytes) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": 200, "headers": [length]})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    address = sys.argv[2] if len(sys.argv) > 2 else "127.0.0.1"
    uvicorn.run(app, host=address, port=int(sys.argv[1]), log_level="error", lifespan="off")
