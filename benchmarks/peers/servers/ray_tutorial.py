"""Ray Serve as its tutorial on Stable Diffusion has it."""

from PIL import Image

from benchmarks.peers.servers import ray_app
from benchmarks.peers.servers.drawer import Drawer
from benchmarks.peers.servers.options import Options, parsed
from benchmarks.peers.servers.wire import Body


class StableDiffusion:
    """A pipeline, one image a call."""

    def __init__(self, options: Options) -> None:
        self._drawer = Drawer(options)

    def generate(self, body: Body) -> Image.Image:
        """One image. Serve calls it in a thread; the pipeline takes one at a time."""
        return self._drawer.draw([body])[0]


def main() -> None:
    """Serves until it is interrupted."""
    ray_app.run(StableDiffusion, parsed())


if __name__ == "__main__":
    main()
