"""LitServe with dynamic batching."""

import litserve
from PIL import Image

from benchmarks.peers.servers.drawer import Drawer
from benchmarks.peers.servers.options import Options, call_this_process, parsed
from benchmarks.peers.servers.wire import Body, answer
from benchmarks.peers.traffic import PATH


class StableDiffusion(litserve.LitAPI):
    """One worker's model."""

    def __init__(self, options: Options) -> None:
        super().__init__(
            max_batch_size=options.batch, batch_timeout=options.wait_ms / 1e3, api_path=PATH
        )
        self._options = options

    def setup(self, device: str) -> None:
        """Called in each worker."""
        del device
        call_this_process("worker")
        self._drawer = Drawer(self._options)

    def decode_request(self, request: dict[str, object]) -> Body:
        """JSON to a row."""
        return Body.model_validate(request)

    def batch(self, inputs: list[Body]) -> list[Body]:
        """Rows stay a list."""
        return inputs

    def predict(self, x: list[Body] | Body) -> list[Image.Image] | Image.Image:
        """A batch; or one row, where batches are of one."""
        if isinstance(x, Body):
            return self._drawer.draw([x])[0]
        return self._drawer.draw(x)

    def unbatch(self, output: list[Image.Image]) -> list[Image.Image]:
        """Images are a list already."""
        return output

    def encode_response(self, output: Image.Image) -> dict[str, object]:
        """An image to JSON."""
        return answer(output)


def main() -> None:
    """Serves until it is interrupted."""
    options = parsed()
    server = litserve.LitServer(
        StableDiffusion(options),
        accelerator="cpu",
        devices=1,
        workers_per_device=options.workers,
        timeout=False,
    )
    server.run(
        host="127.0.0.1",
        port=options.port,
        num_api_servers=1,
        log_level="warning",
        generate_client_file=False,
        access_log=False,
    )


if __name__ == "__main__":
    main()
