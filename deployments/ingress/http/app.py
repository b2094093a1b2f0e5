"""The HTTP routes: bodies in, answers and event streams out."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Literal

from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from configs.app import ServiceArgs
from deployments.contracts.api import PreprocessForm
from deployments.contracts.batches import FileCard
from deployments.contracts.cards import ModelCard, ModelsBody, ReadyBody
from deployments.contracts.errors import NotFound, TcdError
from deployments.contracts.tokens import TokenizeBody, TokensBody
from deployments.ingress.answer.configured import make_storage
from deployments.ingress.answer.failures import failure, from_faults, http_failure
from deployments.ingress.answer.media import MEDIA_TYPES, encode
from deployments.ingress.answer.storage import FILES_PATH, NAME, FolderStore
from deployments.ingress.answer.temporary import TemporaryStore
from deployments.ingress.http.a1111.routes import a1111_routes
from deployments.ingress.http.batches import batch_routes, file_by_id
from deployments.ingress.http.bodies import Bodies
from deployments.ingress.http.cors import METHODS, Cors
from deployments.ingress.http.failures import answer_to
from deployments.ingress.http.images import Jobs, image_routes
from deployments.ingress.http.jobs import Shown, job_routes
from deployments.ingress.http.keys import caller_of, key_routes, may_see
from deployments.ingress.http.metrics import CONTENT_TYPE, Metrics
from deployments.ingress.http.middleware import (
    Authentication,
    BodyLimit,
    HeadAsGet,
    RequestCount,
    RequestLog,
    Unexpected,
)
from deployments.ingress.http.moderations import moderation_routes
from deployments.ingress.http.once import Once
from deployments.ingress.http.openapi import describe
from deployments.ingress.http.playground import playground_routes
from deployments.ingress.http.replicas import replica_routes
from deployments.ingress.http.videos import video_routes
from deployments.ingress.jobs.desk import Desk
from deployments.ingress.keys.keyring import make_keyring
from deployments.ingress.keys.quota import Quota
from deployments.ingress.request.course import stage
from deployments.ingress.request.service import Service
from deployments.ingress.request.workers import Workers

DESCRIPTION = """Stable Diffusion with TCD-LoRA. OpenAI's images API, plus the sampler's own
fields. Errors have OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`. Below
`/sdapi/v1/` and `/controlnet/`, AUTOMATIC1111's API for the same models."""

DOCS_ASSETS = "/docs/assets"
NO_FILE = (
    "this file does not exist, or no longer: where no storage is configured, files are kept for a "
    "while, on the node that made them"
)
# A name is never given to another file, and what is shown is a picture, whatever it holds.
FILE_HEADERS = {
    "cache-control": "private, max-age=31536000, immutable",
    "x-content-type-options": "nosniff",
}


def make_app(
    service: Service,
    desk: Desk,
    args: ServiceArgs,
    quota: Quota | None = None,
    name: str = "tcd",
) -> FastAPI:
    """The web application around a service, and the jobs beside it.

    Args:
        quota: the one that the service takes from; `None`: of the configured keys, for a service
            without.
        name: of the service, among all of this node.
    """
    storage = make_storage(args.storage, name, args.public_url)

    @asynccontextmanager
    async def lasting(_: FastAPI) -> AsyncGenerator[None]:
        if not isinstance(storage, TemporaryStore):
            yield
            return
        sweeping = asyncio.create_task(storage.keep_swept())
        try:
            yield
        finally:
            sweeping.cancel()

    app = FastAPIOffline(  # the scripts of its pages come from here, not from elsewhere
        static_url=DOCS_ASSETS,
        title="tcd",
        description=DESCRIPTION,
        version="1",
        redirect_slashes=False,
        lifespan=lasting,
        # Newer versions make spans of their own, beside Serve's and not below them.
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )
    quota = quota or Quota(make_keyring(args))
    metrics = Metrics()
    bodies = Bodies(args, Workers("work on bodies"))
    answers = Workers("work on answers", waiting=None)  # what is done already is not refused
    # The last one added is the outermost.
    app.add_middleware(Unexpected)
    app.add_middleware(Authentication, keys=quota.keys, protect=args.protect)
    app.add_middleware(BodyLimit, max_bytes=args.max_body_bytes, timeout_s=args.body_timeout_s)
    app.add_middleware(HeadAsGet)
    if args.cors_origins:
        app.add_middleware(Cors, origins=args.cors_origins)
    app.add_middleware(RequestLog, log_prompts=args.log_prompts)
    app.add_middleware(RequestCount, metrics=metrics)

    @app.exception_handler(RequestValidationError)
    async def refuse_parameter(request: Request, error: RequestValidationError) -> Response:
        # The first part of each place is "query" or "path".
        faults = [(tuple(f["loc"][1:]), f["msg"], f["type"]) for f in error.errors()]
        return answer_to(request.scope, failure(from_faults(faults)))

    @app.exception_handler(HTTPException)
    async def refuse_route(request: Request, error: HTTPException) -> Response:
        headers = {}
        if error.status_code == 405:
            headers["allow"] = ", ".join(allowed_methods(app.routes, request.scope))
            if request.method == "OPTIONS":
                return Response(status_code=204, headers=headers)
        refusal = http_failure(error.status_code, str(error.detail), headers)
        return answer_to(request.scope, refusal)

    @app.exception_handler(TcdError)
    async def refuse(request: Request, error: TcdError) -> Response:
        return answer_to(request.scope, failure(error))

    shown = Shown(desk, args.public_url, answers)
    jobs = Jobs(desk, shown, Once(service, desk, shown, answers))
    app.include_router(image_routes(service, storage, bodies, answers, jobs, args))

    @app.post("/v1/preprocess/{preprocessor}", response_class=Response)
    async def preprocess(preprocessor: Literal["depth", "canny"], request: Request) -> Response:
        """A control map of a picture's own size, as PNG; `x-map-id` names it in later requests.
        Multipart: `image`, and canny's `low_threshold` and `high_threshold`."""
        form = await bodies.form(request, PreprocessForm, "image")
        map_id, pixels = await service.preprocess(
            preprocessor, form.file("image"), form.fields, caller_of(request)
        )
        with stage("encode"):
            data = await answers.run(encode, pixels, "png")
        return Response(data, media_type="image/png", headers={"x-map-id": map_id})

    @app.post("/v1/tokenize", response_model=TokensBody)
    async def tokenize(request: Request) -> TokensBody:
        """How many tokens a prompt is, and in which windows a model reads it. Starts no replica."""
        body = await bodies.json(request, TokenizeBody)
        return await service.tokens(body, caller_of(request))

    @app.get(FILES_PATH + "{name}", response_model=FileCard)
    async def file(name: str, request: Request) -> Response:
        """A stored picture, by the URL that an answer gave; or what is known of a file of a batch,
        by its id."""
        if NAME.fullmatch(name) is None:
            return await file_by_id(desk, name, request)
        data = None
        if isinstance(storage, FolderStore):
            data = await asyncio.to_thread(storage.read, name)
        if data is None:
            raise NotFound(NO_FILE, "name")
        media_type = next(t for f, t in MEDIA_TYPES.items() if name.endswith(f".{f}"))
        return Response(data, media_type=media_type, headers=FILE_HEADERS)

    @app.get("/v1/models", response_model=ModelsBody)
    async def models(request: Request) -> ModelsBody:
        """The models that run, and that the caller's key may ask."""
        cards = await service.catalogue.cards()
        return ModelsBody(data=[card for card in cards if may_see(request, card.id)])

    @app.get("/v1/models/{model_id}", response_model=ModelCard)
    async def model(model_id: str, request: Request) -> Response:
        """One model, with all that is needed to repeat its images with diffusers alone."""
        cards = {card.id: card for card in await service.catalogue.cards()}
        for name in service.names.by_weight(model_id):
            if name in cards and may_see(request, name):
                return JSONResponse(cards[name].model_dump())
        raise NotFound(f"model {model_id!r} does not exist", "model")

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether this process answers."""
        return {"status": "ok"}

    @app.get("/readyz", response_model=ReadyBody)
    async def readyz(models: Annotated[str | None, Query()] = None) -> Response:
        """Whether this ingress can serve: 200, or 503; with what each model is doing. With
        `models`, names separated by commas: whether all of these can answer; a name of several
        models, whether one of them can."""
        catalogue = service.catalogue
        named = models.split(",") if models else []
        wanted = {name: service.names.shares(name) for name in named}
        known = catalogue.outlooks()
        unknown = [name for name, shares in wanted.items() if not shares.keys() & known.keys()]
        if unknown:
            raise NotFound(f"no such model: {', '.join(unknown)}", "models")
        ready = catalogue.ready(service.names.shares(None), list(wanted.values()))
        body = ReadyBody(
            status="ready" if ready else "not ready",
            models={name: model.state for name, model in known.items()},
            availability={name: model.availability for name, model in known.items()},
        )
        return JSONResponse(body.model_dump(), status_code=200 if ready else 503)

    @app.get("/metrics")
    async def metrics_text() -> Response:
        """Prometheus text: requests here, every replica's engine, and the jobs."""
        figures, maps, kept = await asyncio.gather(
            service.catalogue.figures(), service.assembler.maps.figures(), desk.figures()
        )
        keys = quota.usage()
        text = await asyncio.to_thread(
            metrics.render,
            figures,
            maps,
            kept,
            keys,
            quota.keys.faulty,
            service.moderator.counted,
            {name: model.availability for name, model in service.catalogue.outlooks().items()},
            names_faulty=service.catalogue.names_fault is not None,
        )
        return Response(text, media_type=CONTENT_TYPE)

    app.include_router(playground_routes(args.playground))
    app.include_router(moderation_routes(service, bodies, args.safety))
    app.include_router(key_routes(quota, desk))
    app.include_router(replica_routes(service))
    app.include_router(video_routes(desk, shown, bodies, args.metadata))
    app.include_router(job_routes(desk, shown))
    app.include_router(batch_routes(desk, shown, bodies, args))
    app.include_router(a1111_routes(service, args, bodies, answers))
    describe(app, keyed=quota.keys.closed)
    return app


def allowed_methods(routes: Sequence[BaseRoute], scope: Scope) -> list[str]:
    """The methods that the path of a request takes, whichever routes they belong to; HEAD as GET,
    and OPTIONS, which says these."""

    def takes(method: str) -> bool:
        asked = {**scope, "method": method}
        return any(route.matches(asked)[0] is Match.FULL for route in routes)

    taken = [method for method in METHODS if takes(method)]
    return [*(["HEAD"] if "GET" in taken else []), *taken, "OPTIONS"]
