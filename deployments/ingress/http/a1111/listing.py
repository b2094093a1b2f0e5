"""Routes of A1111's API that say what there is: models, style adapters, samplers, options."""

from collections.abc import Sequence

from fastapi import APIRouter, Request
from pydantic import BaseModel

from deployments.contracts.cards import ModelCard
from deployments.contracts.errors import InvalidRequest, NotFound
from deployments.ingress.http.a1111.bodies import OptionsBody
from deployments.ingress.http.a1111.ignored import SAMPLER, SCHEDULERS
from deployments.ingress.http.bodies import Bodies
from deployments.ingress.http.keys import may_see
from deployments.ingress.request.service import Service


class SdModel(BaseModel):
    """A model. `title` is its name, `filename` its source."""

    title: str
    model_name: str
    hash: None = None
    sha256: None = None
    filename: str
    config: None = None


class SdLora(BaseModel):
    """A style adapter. `path` is its source."""

    name: str
    alias: str
    path: str
    metadata: dict[str, list[str]]


class Sampler(BaseModel):
    """A sampler."""

    name: str
    aliases: list[str] = []
    options: dict[str, str] = {}


class SdScheduler(BaseModel):
    """A schedule of steps."""

    name: str
    label: str
    aliases: list[str] | None = None
    default_rho: float = -1
    need_inner_model: bool = False


class Upscaler(BaseModel):
    """An upscaler."""

    name: str
    model_name: str | None = None
    model_path: str | None = None
    model_url: str | None = None
    scale: float = 1


class SdEmbedding(BaseModel):
    """A textual inversion; what A1111 knows of its file is not known here."""

    step: None = None
    sd_checkpoint: None = None
    sd_checkpoint_name: str
    shape: None = None
    vectors: None = None


class Embeddings(BaseModel):
    """Words that prompts may use."""

    loaded: dict[str, SdEmbedding]
    skipped: dict[str, SdEmbedding] = {}


class Options(BaseModel):
    """What is in force, of the options that clients read."""

    sd_model_checkpoint: str | None
    sd_checkpoint_hash: str | None = None
    sd_vae: str = "Automatic"
    CLIP_stop_at_last_layers: int = 1
    samples_format: str = "png"


class IgnoredOptions(BaseModel):
    """Options that change nothing here."""

    ignored: list[str]


class ScriptNames(BaseModel):
    """Extensions."""

    txt2img: list[str] = ["controlnet"]
    img2img: list[str] = ["controlnet"]


class Memory(BaseModel):
    """In A1111's shape for figures that cannot be had."""

    ram: dict[str, str] = {"error": "see /metrics"}
    cuda: dict[str, str] = {"error": "see /metrics"}


REFRESHED = ("checkpoints", "loras", "vae")
EMPTY = ("sd-vae", "prompt-styles", "latent-upscale-modes", "hypernetworks", "face-restorers")


def listing_routes(service: Service, bodies: Bodies) -> APIRouter:
    """Routes over what the service knows of its models."""
    router = APIRouter(prefix="/sdapi/v1")

    async def cards(request: Request) -> list[ModelCard]:
        return [card for card in await service.catalogue.cards() if may_see(request, card.id)]

    @router.get("/sd-models")
    async def sd_models(request: Request) -> list[SdModel]:
        """The models that the caller's key may ask."""
        return [
            SdModel(title=card.id, model_name=card.id, filename=card.checkpoint)
            for card in await cards(request)
        ]

    @router.get("/loras")
    async def loras(request: Request) -> list[SdLora]:
        """The style adapters of these models; `metadata.models` names those that have each."""
        having: dict[tuple[str, str], list[str]] = {}
        for card in await cards(request):
            for lora in card.loras.items():
                having.setdefault(lora, []).append(card.id)
        return [
            SdLora(name=name, alias=name, path=path, metadata={"models": models})
            for (name, path), models in having.items()
        ]

    @router.get("/embeddings")
    async def embeddings(request: Request) -> Embeddings:
        """The textual inversions of these models."""
        return Embeddings(
            loaded={
                word: SdEmbedding(sd_checkpoint_name=card.id)
                for card in await cards(request)
                for word in card.embeddings
            }
        )

    @router.get("/options")
    async def options(request: Request) -> Options:
        """What holds for a request that says nothing else."""
        return Options(sd_model_checkpoint=usual(await cards(request)))

    @router.post("/options")
    async def set_options(request: Request) -> IgnoredOptions:
        """Changes nothing: options would be for all callers. Another model than the usual one is
        refused; each request names its own, in `override_settings.sd_model_checkpoint`."""
        sent = await bodies.json(request, OptionsBody)
        known = await cards(request)
        named = sent.sd_model_checkpoint
        if named is not None and service.names.main(named) != usual(known):
            raise unchangeable(named, known)
        return IgnoredOptions(ignored=list(sent.others))

    def usual(known: Sequence[ModelCard]) -> str | None:
        """The model of a request that names none."""
        names = [card.id for card in known]
        default = service.names.main(None)
        if default is None and len(names) == 1:
            return names[0]
        return default if default in names else None

    def unchangeable(named: str, known: Sequence[ModelCard]) -> InvalidRequest:
        names = [card.id for card in known]
        if service.names.main(named) not in names:
            listed = ", ".join(names) or "none"
            return NotFound(
                f"model {named!r} does not exist; models: {listed}", "sd_model_checkpoint"
            )
        return InvalidRequest(
            f"no model is in force for all callers: name {named!r} in each request, as "
            "override_settings.sd_model_checkpoint",
            "sd_model_checkpoint",
        )

    @router.get("/samplers")
    async def samplers() -> list[Sampler]:
        """The one sampler that there is."""
        return [Sampler(name=SAMPLER)]

    @router.get("/schedulers")
    async def schedulers() -> list[SdScheduler]:
        """The one schedule that there is."""
        label, name = SCHEDULERS
        return [SdScheduler(name=name, label=label)]

    @router.get("/upscalers")
    async def upscalers() -> list[Upscaler]:
        """None."""
        return [Upscaler(name="None")]

    @router.get("/scripts")
    async def scripts() -> ScriptNames:
        """The extensions that are understood."""
        return ScriptNames()

    @router.get("/cmd-flags")
    async def cmd_flags() -> dict[str, bool]:
        """As of an A1111 that was started with its API alone."""
        return {"api": True, "nowebui": True}

    @router.get("/memory")
    async def memory() -> Memory:
        """Nothing: models run in processes of their own, on machines of their own."""
        return Memory()

    for name in EMPTY:
        router.add_api_route(f"/{name}", nothing, methods=["GET"], name=name)
    for name in REFRESHED:
        router.add_api_route(f"/refresh-{name}", fresh, methods=["POST"], name=f"refresh-{name}")
    return router


async def fresh() -> dict[str, str]:
    """Lists are always as the models are."""
    return {}


async def nothing() -> list[str]:
    """There are none here."""
    return []
