"""A whole ingress without models, in a process of its own: `python -m tests.faults.front PORT`.

Requests that are not refused reach a stand-in of a model, which says so.
"""

import sys
from types import SimpleNamespace
from typing import Any, cast

import uvicorn

from configs.app import Limits, ServiceArgs
from deployments.contracts.cards import CardDefaults, CardIpAdapter, CardLimits, ModelCard
from deployments.contracts.errors import NotReady
from deployments.contracts.maps import MapRef, MapSpec
from deployments.contracts.refusal import Refusal
from deployments.ingress.discovery.outlook import Outlook
from deployments.ingress.http.app import make_app
from deployments.ingress.jobs.asked import VideoAsked
from deployments.ingress.request.assembly import Assembler
from deployments.ingress.request.pictures import Pictures
from deployments.ingress.request.service import Service
from graphs.routing import route
from tests.deployments.ingress.fakes import knowing

REACHED = "the request reached the model"
CARD = ModelCard(
    id="sd15",
    created=0,
    family="sd15",
    tasks=["text-to-image", "video"],
    checkpoint="none",
    dtype="float32",
    tcd_lora=None,
    loras={},
    controls={"canny": "none", "depth": "none"},
    ip_adapters={"default": CardIpAdapter(adapter="none", image_encoder="none", hidden=False)},
    defaults=CardDefaults(
        width=512, height=512, num_inference_steps=4, eta=0.3, guidance_scale=0.0
    ),
    limits=CardLimits(
        **Limits().model_dump(
            include={"min_side", "max_side", "max_pixels", "max_loras", "max_frames", "max_pending"}
        ),
        max_prompt_tokens=75,
    ),
)


class Call:
    """A handle's method."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def remote(self, *args: object) -> Any:
        return Response(self._answer(*args))


class Response:
    """What a handle's method gives."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __await__(self) -> Any:
        return self._answer.__await__()

    def cancel(self) -> None:
        """A handle's."""


async def reached(*_: object) -> Any:
    return Refusal(NotReady(REACHED))


async def known(spec: MapSpec) -> MapRef:
    return MapRef(spec.map_id, "a map")


async def unknown(map_id: str) -> MapRef:
    return MapRef(map_id, None)


def main(port: int) -> None:
    args = ServiceArgs(default_model="sd15")
    maps = SimpleNamespace(known=Call(known), find=Call(unknown))
    assembler = Assembler(Pictures(args), cast(Any, maps), route)
    handle = SimpleNamespace(submit=Call(reached), stream=Call(reached))
    handle.options = lambda **_: handle
    model = Outlook(CARD.id, "RUNNING", "ready", CARD, cast(Any, handle))
    service = Service(args, knowing(model), assembler)

    async def submit(asked: VideoAsked, *_: object) -> None:
        await service.animate(asked.request, lambda _: None)

    app = make_app(service, cast(Any, SimpleNamespace(submit=submit)), args)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


if __name__ == "__main__":
    main(int(sys.argv[1]))
