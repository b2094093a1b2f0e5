"""The application of Ray's tutorial with `@serve.batch`."""

import asyncio

from PIL import Image
from ray import serve

from benchmarks.peers.servers import ray_app
from benchmarks.peers.servers.drawer import Drawer
from benchmarks.peers.servers.options import Options, parsed
from benchmarks.peers.servers.wire import Body


class StableDiffusion:
    """A pipeline, and batches of what waits for it."""

    def __init__(self, options: Options) -> None:
        drawer = Drawer(options)

        @serve.batch(max_batch_size=options.batch, batch_wait_timeout_s=options.wait_ms / 1e3)
        async def draw(bodies: list[Body]) -> list[Image.Image]:
            return await asyncio.to_thread(drawer.draw, bodies)

        self._draw = draw

    async def generate(self, body: Body) -> Image.Image:
        """One image."""
        image: Image.Image = await self._draw(body)
        return image


def main() -> None:
    """Serves until it is interrupted."""
    ray_app.run(StableDiffusion, parsed())


if __name__ == "__main__":
    main()
