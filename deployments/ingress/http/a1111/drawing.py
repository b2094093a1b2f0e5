"""Routes of A1111's API that draw, and that tell of what is drawn."""

import asyncio
import math
from dataclasses import replace

from fastapi import APIRouter, Request, Response

from configs.app import ServiceArgs
from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import ImageInput
from deployments.ingress.answer.media import Encoding
from deployments.ingress.answer.provenance import make_provenance
from deployments.ingress.http.a1111.answers import SdImagesBody, answer_text
from deployments.ingress.http.a1111.bodies import Img2ImgBody, ProcessingBody, Txt2ImgBody
from deployments.ingress.http.a1111.pictures import mask_file, picture, start_file
from deployments.ingress.http.a1111.progress import ProgressBody, progress_of
from deployments.ingress.http.a1111.runs import Runs
from deployments.ingress.http.a1111.translation import Translated, as_sent, translated
from deployments.ingress.http.bodies import JSON, Bodies
from deployments.ingress.http.idempotency import idempotency_key, seeded
from deployments.ingress.http.keys import caller_of
from deployments.ingress.request.course import stage
from deployments.ingress.request.service import Service
from deployments.ingress.request.workers import Workers


def drawing_routes(
    service: Service, args: ServiceArgs, bodies: Bodies, workers: Workers
) -> APIRouter:
    """Routes over the service; `workers`: threads that encode."""
    router = APIRouter()
    runs = Runs()
    encoding = Encoding("png", None, args.metadata, make_provenance(args.provenance))

    @router.post("/sdapi/v1/txt2img", response_model=SdImagesBody)
    async def txt2img(request: Request) -> Response:
        """Text to image, with the ControlNet extension's units."""
        return await draw(request, await bodies.json(request, Txt2ImgBody, bare=True))

    @router.post("/sdapi/v1/img2img", response_model=SdImagesBody)
    async def img2img(request: Request) -> Response:
        """A picture made anew, inside a mask or as a whole."""
        return await draw(request, await bodies.json(request, Img2ImgBody, bare=True))

    @router.get("/sdapi/v1/progress", response_model=ProgressBody)
    async def progress(request: Request) -> ProgressBody:
        """How far the caller's own requests on these routes are, at the ingress that is asked."""
        return progress_of(runs.of(caller_of(request).name))

    @router.post("/sdapi/v1/interrupt")
    async def interrupt(request: Request) -> dict[str, str]:
        """Stops the caller's own requests on these routes, at the ingress that is asked. They are
        answered with the images that are done, or with 499."""
        for run in runs.of(caller_of(request).name):
            run.interrupt()
        return {}

    async def draw(request: Request, body: ProcessingBody) -> Response:
        caller = caller_of(request)
        key = idempotency_key(request)
        try:
            asked = await ready(request, body)
            with runs.begun(caller.name, body.count) as run:
                await run.draw(service.stream(seeded(asked.request, key), caller))
        except InvalidRequest as error:
            raise as_sent(error) from error
        with stage("encode"):
            text = await answer_text(body, run, asked.ignored, workers, encoding)
        return Response(text, media_type=JSON)

    async def ready(request: Request, body: ProcessingBody) -> Translated:
        """What a body asks for, with what is left of its time: it may have waited for its model."""
        clock = asyncio.get_running_loop().time
        until = clock() + args.request_timeout_s
        named = body.override_settings.sd_model_checkpoint
        card = await service.card(named, caller_of(request))
        start, mask = await pictures_of(body)
        asked = translated(body, card, start, mask)
        left_s = min(max(1, math.ceil(until - clock())), args.request_timeout_s)
        return replace(asked, request=replace(asked.request, timeout_s=left_s))

    async def pictures_of(body: ProcessingBody) -> tuple[ImageInput | None, bytes | None]:
        """The picture to start from, and the mask."""
        if not isinstance(body, Img2ImgBody):
            return None, None
        (image,), pictures = body.init_images, service.assembler.pictures
        if not body.mask:
            return await start_file(pictures, image), None
        mask = await mask_file(pictures, body.mask, body.inpainting_mask_invert)
        return picture(image), mask

    return router
