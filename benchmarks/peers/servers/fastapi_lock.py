"""FastAPI, one pipeline a worker, and a lock around it."""

import asyncio

import uvicorn
from fastapi import FastAPI

from benchmarks.peers.servers.drawer import Drawer
from benchmarks.peers.servers.options import call_this_process, parsed, published
from benchmarks.peers.servers.wire import Body, answer
from benchmarks.peers.traffic import PATH


def app() -> FastAPI:
    """The application of one worker."""
    call_this_process("worker")
    drawer = Drawer(published())
    lock = asyncio.Lock()
    web = FastAPI()

    @web.post(PATH)
    async def generate(body: Body) -> dict[str, object]:
        async with lock:
            (image,) = await asyncio.to_thread(drawer.draw, [body])
        return await asyncio.to_thread(answer, image)

    return web


def main() -> None:
    """Serves until it is interrupted."""
    options = parsed()
    options.publish()
    uvicorn.run(
        "benchmarks.peers.servers.fastapi_lock:app",
        factory=True,
        host="127.0.0.1",
        port=options.port,
        workers=options.workers,
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
