"""The catalogue's entries: what `GET /v1/models` says of each model."""

from typing import Literal, get_args

from pydantic import BaseModel, Field

from deployments.contracts.jobs import MAX_STEPS, PromptSyntax

Availability = Literal["ready", "silent", "asleep", "starting", "failed"]
AVAILABILITIES: tuple[Availability, ...] = get_args(Availability)
ControlKind = Literal["controlnet", "controlnet-union", "t2i-adapter"]


class CardDefaults(BaseModel):
    """What a request gets for a field that it leaves out."""

    width: int
    height: int
    num_inference_steps: int
    eta: float
    guidance_scale: float
    prompt_syntax: PromptSyntax = "plain"
    clip_skip: int = 0


class CardLimits(BaseModel):
    """What the model accepts."""

    min_side: int
    max_side: int
    max_pixels: int
    max_prompt_tokens: int
    max_steps: int = MAX_STEPS
    max_loras: int
    max_frames: int
    max_pending: int


class CardIpAdapter(BaseModel):
    """An IP-Adapter of a model.

    Attributes:
        adapter: its source.
        image_encoder: the encoder whose embeddings it reads.
        hidden: it reads the encoder's last but one states.
    """

    adapter: str
    image_encoder: str
    hidden: bool


class ModelCard(BaseModel):
    """One model of the catalogue, with all that is needed to repeat its images elsewhere."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "tcd"
    family: str
    tasks: list[str]
    checkpoint: str
    dtype: str
    tcd_lora: str | None
    loras: dict[str, str]
    loras_from: str | None = Field(
        None, description="where further ones are looked for, by the name that a request says"
    )
    embeddings: dict[str, str] = Field({}, description="words that prompts may use")
    controls: dict[str, str] = {}
    control_kinds: dict[str, ControlKind] = Field({}, description="what each of `controls` is")
    ip_adapters: dict[str, CardIpAdapter] = Field(
        {}, description="by the names that requests use; the first is that of requests without"
    )
    ip_adapter: str | None = Field(None, description="the first of them")
    image_encoder: str | None = Field(None, description="the encoder that the first one reads")
    image_encoder_hidden: bool = False
    motion_adapter: str | None = None
    motion_loras: dict[str, str] = {}
    defaults: CardDefaults
    limits: CardLimits
    config_error: str | None = Field(
        None, description="why its newest user_config is refused; the last good one is in force"
    )


class ModelsBody(BaseModel):
    """`GET /v1/models`."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class ReadyBody(BaseModel):
    """`GET /readyz`: what Serve says of each model, and what that comes to."""

    status: Literal["ready", "not ready"]
    models: dict[str, str]
    availability: dict[str, Availability]
