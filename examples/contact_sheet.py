"""Another Ray application that calls the service through its handle: a prompt in several styles,
side by side on one sheet.

A block in the same Serve config as the application `tcd`:

    - name: contact-sheet
      route_prefix: /sheet
      import_path: examples.contact_sheet:build
      args: {model: sd15, styles: [papercut, ink, neon]}

and then

    curl -G http://127.0.0.1:8000/sheet --data-urlencode 'prompt=a red ball' -o sheet.png

The types of requests, results and errors need neither torch nor the service's own packages.
"""

import asyncio
import io

import numpy as np
from PIL import Image
from pydantic import BaseModel, ConfigDict, ValidationError
from ray import serve
from ray.exceptions import RayTaskError
from ray.serve import Application
from ray.serve.handle import DeploymentHandle
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from deployments.contracts.errors import InvalidRequest, QueueFull, TcdError
from deployments.contracts.jobs import ImageRequest, ImageResult, LoraWeight


class SheetArgs(BaseModel):
    """`args` of the application. `styles`: names from the model's `loras`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    styles: tuple[str, ...]


class ContactSheet:
    """Answers with PNG sheets."""

    def __init__(self, args: SheetArgs) -> None:
        self._args = args
        self._tcd: DeploymentHandle[object] | None = None

    async def __call__(self, request: Request) -> Response:
        """`GET ?prompt=...&seed=...`"""
        prompt, seed = request.query_params.get("prompt"), request.query_params.get("seed", "0")
        if not prompt or not seed.isdecimal():
            return PlainTextResponse("a prompt is needed, and seed is a number", 400)
        try:
            sheet = await self.sheet(prompt, int(seed))
        except ValidationError as error:  # a seed that is too large
            return PlainTextResponse(error.errors()[0]["msg"], 400)
        except TcdError as error:
            # Of an error from the other side, the text is a traceback; `cause` is the error itself.
            return refused(error.cause if isinstance(error, RayTaskError) else error)
        return Response(sheet, media_type="image/png")

    async def sheet(self, prompt: str, seed: int) -> bytes:
        """The same prompt and seed, plain and in every style; made side by side in one batch."""
        tcd = await self._service()
        plain = ImageRequest(prompt, model=self._args.model, seed=seed)
        styled = [
            ImageRequest(prompt, model=self._args.model, seed=seed, loras=(LoraWeight(style),))
            for style in self._args.styles
        ]
        # If the caller leaves, Serve cancels these calls too, and the work behind them.
        results: list[ImageResult] = await asyncio.gather(
            *(tcd.generate.remote(request) for request in (plain, *styled))
        )
        file = io.BytesIO()
        tiles = np.concatenate([result.images[0] for result in results], axis=1)
        await asyncio.to_thread(Image.fromarray(tiles).save, file, "PNG")
        return file.getvalue()

    async def _service(self) -> DeploymentHandle[object]:
        if self._tcd is not None:
            return self._tcd
        # Not in the constructor: the other application may be starting at the same time.
        tcd: DeploymentHandle[object] = await asyncio.to_thread(serve.get_app_handle, "tcd")
        self._tcd = tcd
        return tcd


def refused(error: TcdError) -> PlainTextResponse:
    """An answer that says what is wrong."""
    if isinstance(error, InvalidRequest):  # an unknown style, a prompt that is too long
        return PlainTextResponse(str(error), 400)
    if isinstance(error, QueueFull):
        wait = {"retry-after": str(-(-error.retry_after_ms // 1000))}
        return PlainTextResponse(str(error), 429, wait)
    return PlainTextResponse(str(error), 503)


def build(args: SheetArgs) -> Application:
    """`import_path: examples.contact_sheet:build`."""
    deployment = serve.deployment(ray_actor_options={"num_cpus": 0.1})(ContactSheet)
    return deployment.bind(args)
