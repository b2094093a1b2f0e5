"""Routes of A1111's ControlNet extension."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from deployments.contracts.api import PreprocessForm
from deployments.contracts.errors import InvalidRequest
from deployments.ingress.answer.media import Encoding
from deployments.ingress.http.a1111.bodies import DetectBody
from deployments.ingress.http.a1111.pictures import picture
from deployments.ingress.http.a1111.units import MODULES, PREPROCESSORS, module_kind, thresholds
from deployments.ingress.http.bodies import JSON, Bodies
from deployments.ingress.http.keys import caller_of, may_see
from deployments.ingress.request.service import Service
from deployments.ingress.request.workers import Workers

MAP = Encoding("png", None, metadata=False)


class ControlVersion(BaseModel):
    """Of the extension's API."""

    version: int = 2


class ControlModels(BaseModel):
    """Names that a unit's `model` may have."""

    model_list: list[str]


class ControlModules(BaseModel):
    """Names that a unit's `module` may have."""

    module_list: list[str] = list(MODULES)


class DetectedBody(BaseModel):
    """Control maps: PNG files in base64."""

    images: list[str]
    info: str = "Success"


def controlnet_routes(service: Service, bodies: Bodies, workers: Workers) -> APIRouter:
    """Routes over the service; `workers`: threads that encode."""
    router = APIRouter(prefix="/controlnet")

    @router.get("/version")
    async def version() -> ControlVersion:
        """The version of the extension's API that is spoken."""
        return ControlVersion()

    @router.get("/model_list")
    async def model_list(request: Request) -> ControlModels:
        """The types of control that the caller's models have."""
        cards = await service.catalogue.cards()
        types = {name for card in cards if may_see(request, card.id) for name in card.controls}
        return ControlModels(model_list=sorted(types))

    @router.get("/module_list")
    async def module_list() -> ControlModules:
        """What is made of a unit's picture here."""
        return ControlModules()

    @router.post("/detect", response_model=DetectedBody)
    async def detect(request: Request) -> Response:
        """Control maps of pictures, of each one's own size."""
        body = await bodies.json(request, DetectBody, bare=True)
        kind = module_kind(body.controlnet_module, "controlnet_module")
        if kind not in PREPROCESSORS:
            raise InvalidRequest(
                f"controlnet_module: {body.controlnet_module!r} makes no maps; modules that do: "
                f"{', '.join(PREPROCESSORS)}",
                "controlnet_module",
            )
        low, high = thresholds(body.controlnet_threshold_a, body.controlnet_threshold_b)
        canny = kind == "canny"
        form = PreprocessForm(
            low_threshold=low if canny else None, high_threshold=high if canny else None
        )
        maps: list[str] = []
        for index, sent in enumerate(body.controlnet_input_images):
            try:
                _, pixels = await service.preprocess(kind, picture(sent), form, caller_of(request))
            except InvalidRequest as error:
                raise _as_sent(error, index) from error
            maps.append(await workers.run(MAP.text, pixels))
        return Response(DetectedBody(images=maps).model_dump_json(), media_type=JSON)

    return router


def _as_sent(error: InvalidRequest, index: int) -> InvalidRequest:
    """An error of the picture of this index, or of its thresholds, by the field as it was sent."""
    sent = {
        "image": f"controlnet_input_images.{index}",
        "low_threshold": "controlnet_threshold_a",
    }.get(error.param or "")
    return error if sent is None else type(error)(f"{sent}: {error.message}", sent)
