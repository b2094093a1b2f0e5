"""The web application over a service that has no models: it draws, or fails, by the seed."""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from fastapi import FastAPI

from configs.app import ServiceArgs
from deployments.contracts.api import PreprocessForm
from deployments.contracts.cards import CardDefaults, CardLimits, ModelCard
from deployments.contracts.errors import (
    DeadlineExceeded,
    EngineFault,
    Forbidden,
    GenerationFailed,
    InvalidRequest,
    Moderated,
    NotFound,
    NotReady,
    QueueFull,
    RateLimited,
    StorageUnavailable,
    TcdError,
    TooLarge,
)
from deployments.contracts.figures import MapFigures
from deployments.contracts.jobs import (
    Caller,
    Completed,
    FinishedImage,
    ImageInput,
    ImageJob,
    ImageRequest,
    ImageResult,
    PartialImage,
    Pixels,
    Progress,
    StreamEvent,
    Usage,
    VideoRequest,
    VideoResult,
)
from deployments.contracts.recipe import Recipe
from deployments.contracts.tokens import TokenizeBody, TokensBody
from deployments.ingress.discovery.outlook import Outlook
from deployments.ingress.http.app import make_app
from deployments.ingress.request.assembly import Outline
from deployments.ingress.request.budget import check, pictures_of
from deployments.ingress.request.moderation import Moderator
from deployments.ingress.request.pictures import Pictures
from deployments.ingress.request.service import NOBODY, OnProgress, Service
from tests.deployments.ingress.fakes import knowing
from tests.deployments.ingress.local_jobs import local_desk

SIDE = 8
FAILURES: tuple[TcdError, ...] = (
    InvalidRequest("prompt is refused", "prompt"),
    NotFound("model 'x' does not exist", "model"),
    DeadlineExceeded("the request was not done within 1 s"),
    TooLarge("the picture is larger than 1 byte"),
    QueueFull("128 images wait already", 1200),
    RateLimited("the key has 4 images waiting already", 700),
    Forbidden("the key does not allow model 'x'"),
    NotReady("the model's replica went away; try again"),
    EngineFault("the engine broke"),
    StorageUnavailable("the storage did not take it"),
    GenerationFailed("not a number"),
    Moderated("blocked by the safety checker, which found concept 7 in the image of seed 0"),
)
USAGE = Usage(prompt_tokens=3, image_tokens=4, denoising_steps=4)
CARD = ModelCard(
    id="none",
    created=0,
    family="sd15",
    tasks=["text-to-image"],
    checkpoint="nowhere",
    dtype="float32",
    tcd_lora=None,
    loras={"ink": "nowhere/ink.safetensors"},
    defaults=CardDefaults(width=64, height=64, num_inference_steps=4, eta=0.3, guidance_scale=0.0),
    limits=CardLimits(
        min_side=64,
        max_side=64,
        max_pixels=4096,
        max_prompt_tokens=75,
        max_loras=8,
        max_frames=8,
        max_pending=8,
    ),
)
RECIPE = Recipe(
    model="none",
    prompt="a",
    negative_prompt=None,
    width=SIDE,
    height=SIDE,
    num_inference_steps=4,
    eta=0.3,
    guidance_scale=0.0,
    prompt_syntax="plain",
    clip_skip=0,
    loras=(),
)


class NoModels(Service):
    """Answers at once what is within the limits. Every fourth seed is refused, with each error of
    the tree in turn."""

    def __init__(self) -> None:
        self._args = ServiceArgs()
        self.moderator = Moderator()
        handle: Any = SimpleNamespace(options=lambda **_: handle)
        self.catalogue = knowing(Outlook("none", "RUNNING", "ready", CARD, handle))
        self.assembler: Any = SimpleNamespace(
            maps=SimpleNamespace(figures=_answering(MapFigures({}, {}, stored=0, stored_bytes=0))),
            pictures=Pictures(ServiceArgs()),
        )

    async def card(self, model: str | None, caller: Caller = NOBODY) -> ModelCard:
        if model not in (None, CARD.id):
            raise NotFound(f"model {model!r} does not exist", "model")
        return CARD

    async def generate(self, request: ImageRequest, caller: Caller = NOBODY) -> ImageResult:
        check(request, self._args)
        fail_by(request.seed)
        seeds = tuple(range(request.n))
        return ImageResult("none", (picture(),) * request.n, seeds, SIDE, SIDE, USAGE)

    async def stream(
        self, request: ImageRequest, caller: Caller = NOBODY, timeout_s: float | None = None
    ) -> AsyncGenerator[StreamEvent]:
        check(request, self._args)
        fail_by(request.seed)
        for index in range(request.n):
            yield Progress(index, 1, 4)
            if request.partial_images:
                yield PartialImage(index, 0, 1, picture())
            latents = np.zeros((4, 1, 1), np.float32)
            yield FinishedImage(index, 7 + index, picture(), latents, recipe=RECIPE)
        if request.num_inference_steps == 13:
            raise GenerationFailed("not a number")
        yield Completed("none", USAGE)

    async def preprocess(
        self, preprocessor: str, image: ImageInput, form: PreprocessForm, caller: Caller = NOBODY
    ) -> tuple[str, Pixels]:
        fail_by(len(image) + (form.low_threshold or 0))
        return f"map-{preprocessor}-0", picture()

    async def check_job(
        self, request: ImageRequest | VideoRequest, caller: Caller = NOBODY
    ) -> Outline:
        check(request, self._args)
        fail_by(request.seed)
        job = ImageJob("one", request.prompt, (request.seed or 0,), SIDE, SIDE)
        return Outline("none", job, await self.assembler.pictures.bring(pictures_of(request)))

    async def tokens(self, asked_for: TokenizeBody, caller: Caller = NOBODY) -> TokensBody:
        await self.card(asked_for.model)
        check(ImageRequest(asked_for.prompt), self._args)
        return TokensBody(model="none", count=1, max_model_len=77, windows=[asked_for.prompt])

    async def animate(
        self, request: VideoRequest, progress: OnProgress, caller: Caller = NOBODY
    ) -> VideoResult:
        progress(Progress(0, 1, 4))
        frames = np.zeros((2, 16, 16, 3), np.uint8)
        return VideoResult("none", frames, 7, request.fps, USAGE)


def picture() -> Pixels:
    return np.zeros((SIDE, SIDE, 3), np.uint8)


def fail_by(seed: int | None) -> None:
    if seed is not None and seed % 4 == 3:
        raise FAILURES[seed // 4 % len(FAILURES)]


def application(args: ServiceArgs) -> FastAPI:
    """The application as the ingress makes it. The worker of its jobs ends with its lifespan: the
    loop on which schemathesis calls it is that of all applications, until the interpreter ends."""
    service = NoModels()
    folder = tempfile.TemporaryDirectory()
    working: list[asyncio.Task[None]] = []
    desk = local_desk(service, args, Path(folder.name), tasks=working)
    app = make_app(service, desk, args)
    app.state.jobs = folder  # it goes with the application
    lasts = app.router.lifespan_context

    @asynccontextmanager
    async def lasting(app: FastAPI) -> AsyncGenerator[None]:
        async with lasts(app):
            yield
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)

    app.router.lifespan_context = lasting
    return app


def _answering(value: object) -> Callable[..., Coroutine[Any, Any, object]]:
    async def answer(*_: object, **__: object) -> object:
        await asyncio.sleep(0)
        return value

    return answer
