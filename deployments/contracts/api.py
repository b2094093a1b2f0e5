"""What the HTTP API says and hears: OpenAI's images API plus this service's own fields."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    TypeAdapter,
    ValidationInfo,
    field_validator,
    model_validator,
)

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import (
    MAX_ENTRIES,
    MAX_IP_ADAPTERS,
    MAX_SEED,
    MAX_SEEN,
    MAX_TOLD,
    AdapterWeight,
    ClipSkip,
    Control,
    Count,
    Eta,
    Fraction,
    Guidance,
    ImageRequest,
    Int,
    IpAdapter,
    LoraWeight,
    Moderation,
    Name,
    PartialImages,
    Priority,
    PromptSyntax,
    Quality,
    Scale,
    Steps,
    Strength,
    Text,
    Threshold,
    TimeoutS,
    ToldSize,
)

OutputFormat = Literal["png", "jpeg", "webp"]
RANDOM = -1  # as a seed: any
WireSeed = Annotated[Int, Field(ge=RANDOM, le=MAX_SEED, description="-1: any, as without")]
# What other servers act on. What they mean by it stands in `docs/clients.md`.
IGNORED = (
    "complexity",
    "frame_count",
    "frame_duration_ms",
    "style",
    "input_fidelity",
    "user",
    "safety_identifier",
)
URL_MODELS = ("dall-e-2", "dall-e-3")  # aliases of models whose images OpenAI answers by URL
MAX_USER = 256  # characters of OpenAI's `user`
PICTURE = "a data URL, an https:// URL, an s3:// URI"
WEBHOOK = "of a job: whom to tell when it begins and when it has ended, as Standard Webhooks has it"
IMAGE = PICTURE + ", or the id of a control map"
_SIZE = re.compile(r"([0-9]{1,5})x([0-9]{1,5})")


def readable_size(size: str | None) -> str | None:
    """`size` as it came; `ValueError` if it is neither WIDTHxHEIGHT in multiples of 8 nor auto."""
    if size in (None, "auto"):
        return size
    found = _SIZE.fullmatch(size)
    if found is None:
        raise ValueError("must be WIDTHxHEIGHT in pixels, such as 512x768, or auto")
    if any(int(side) % 8 or int(side) == 0 for side in found.groups()):
        raise ValueError("width and height must be multiples of 8")
    return size


def size_of(size: str | None) -> tuple[int, int] | tuple[None, None]:
    """(width, height) of a readable size; (None, None) where the model's default is meant."""
    found = _SIZE.fullmatch(size or "")
    return (None, None) if found is None else (int(found[1]), int(found[2]))


def _told(size: object) -> ToldSize:
    found = _SIZE.fullmatch(size) if isinstance(size, str) else None
    if found is None or not all(1 <= int(side) <= MAX_TOLD for side in found.groups()):
        raise ValueError(f"must be WIDTHxHEIGHT, each from 1 to {MAX_TOLD} pixels, such as 512x768")
    width, height = map(int, found.groups())
    return height, width


_Text = Annotated[str, Field(pattern=f"^{_SIZE.pattern}$")]
WireToldSize = Annotated[ToldSize, PlainValidator(_told, json_schema_input_type=_Text)]
ORIGINAL = "WIDTHxHEIGHT that sdxl is told the picture had before it was scaled; its own by default"
TARGET = "WIDTHxHEIGHT that sdxl is told the picture has; its own by default"


def wire_names(model: type[BaseModel]) -> list[str]:
    """The fields of a body, as they are sent."""
    return [field.alias or name for name, field in model.model_fields.items()]


class RequestBody(BaseModel):
    """What a caller sends, in whole or in part: a misspelt field is refused, and a null means
    what leaving the field out means."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    MAX_FIELDS: ClassVar[int] = 64  # of one object; the largest of OpenAI's has half as many

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, sent: object) -> object:
        if not isinstance(sent, dict):
            return sent
        if len(sent) > cls.MAX_FIELDS:
            raise ValueError(f"an object of {len(sent)} fields; {cls.MAX_FIELDS} at most are read")
        return {
            name: value
            for name, value in sent.items()
            if value is not None or name not in wire_names(cls)
        }


class LoraBody(RequestBody):
    """One style adapter of a request."""

    name: Name = Field(description="from the model's `loras`, or in its `loras_from`")
    weight: AdapterWeight = 1.0


class ControlFields(RequestBody):
    """How a ControlNet follows its picture."""

    type: Name = Field(description="a type from the model's `controls`")
    preprocessed: bool = Field(False, description="the image is the control map itself")
    conditioning_scale: Scale = 0.5
    start: Fraction = 0.0
    end: Fraction = 1.0
    low_threshold: Threshold | None = None
    high_threshold: Threshold | None = None


class ControlBody(ControlFields):
    """One ControlNet of a request."""

    image: str = Field(description=IMAGE)


def _listed(image: object) -> object:
    if not isinstance(image, str | list | tuple):
        raise ValueError("must be a picture, as text, or a list of them")
    return [image] if isinstance(image, str) else image


Images = Annotated[  # one may be said without a list
    list[str], BeforeValidator(_listed, json_schema_input_type=str | list[str])
]


class IpAdapterBody(RequestBody):
    """What the image should resemble, all of it or a part."""

    image: Images = Field(
        min_length=1, max_length=MAX_SEEN, description=IMAGE + f"; or up to {MAX_SEEN} of them"
    )
    scale: Scale = 0.5
    name: Name | None = Field(
        None, description="a name from the model's `ip_adapters`; by default the first"
    )
    mask: str | None = Field(
        None, description="white is where it acts; by default everywhere; " + PICTURE
    )


IpAdapterBodies = Annotated[list[IpAdapterBody], Field(max_length=MAX_IP_ADAPTERS)]
_SEVERAL = TypeAdapter[list[IpAdapterBody]](IpAdapterBodies)


def _one_or_several(given: object) -> IpAdapterBody | list[IpAdapterBody]:
    """What is wrong is named by its place (`ip_adapter.scale`, `ip_adapter.1.scale`), as pydantic
    does not do for a choice of two."""
    if isinstance(given, list):
        return _SEVERAL.validate_python(given)
    return IpAdapterBody.model_validate(given)


IpAdapterField = Annotated[
    IpAdapterBody | list[IpAdapterBody],
    PlainValidator(_one_or_several, json_schema_input_type=IpAdapterBody | IpAdapterBodies),
]


def resembled(field: IpAdapterField | None) -> IpAdapter | tuple[IpAdapter, ...] | None:
    """What `ip_adapter` says, as other Ray applications would say it."""
    if isinstance(field, list):
        return tuple(map(_ip_adapter, field))
    return None if field is None else _ip_adapter(field)


def _ip_adapter(body: IpAdapterBody) -> IpAdapter:
    return IpAdapter(tuple(body.image), body.scale, body.name, body.mask)


def _still(output_format: object) -> object:
    if output_format == "gif":
        raise ValueError("gif is made of videos alone (POST /v1/videos): png, jpeg or webp")
    if output_format == "svg":
        raise ValueError("no svg is made here: png, jpeg or webp")
    return output_format


def _opaque(background: object) -> object:
    if background == "transparent":
        raise ValueError("pictures made here have no transparency: auto or opaque")
    return background


class ImagesRequestBody(RequestBody):
    """What the images routes have in common. OpenAI's fields first, then the extensions."""

    EVENTS: ClassVar[str] = "image_generation"  # how the route's server-sent events begin

    model: Name | None = Field(None, description="a name from `GET /v1/models`")
    n: Count = 1
    size: Name | None = Field(None, description="WIDTHxHEIGHT in multiples of 8, or auto")
    response_format: Literal["b64_json", "url"] | None = Field(
        None,
        description="url needs a service with storage, and does not go with stream; b64_json by "
        "default, but for models asked for as dall-e-2 or dall-e-3 where there is storage",
    )
    output_format: Annotated[OutputFormat, BeforeValidator(_still)] = "png"
    output_compression: Annotated[Int, Field(ge=0, le=100)] | None = Field(
        None, description="quality of jpeg and webp, 0-100; 100 by default; ignored with png"
    )
    stream: bool = False
    later: bool = Field(
        False,
        alias="async",
        description="answer at once, with a job whose images are made in the background",
    )
    webhook_url: str | None = Field(None, description=WEBHOOK)
    partial_images: PartialImages | None = None
    quality: Quality | None = Field(
        None,
        description="steps beside what is usual: low half, high and hd twice, xhigh and max four "
        "times; num_inference_steps wins",
    )
    background: Annotated[Literal["auto", "opaque"], BeforeValidator(_opaque)] | None = None
    moderation: Moderation | None = Field(
        None,
        description="how strictly pictures are checked; ignored where no safety checker is "
        "configured",
    )
    complexity: Literal["low", "medium", "high"] | None = Field(None, description="ignored")
    frame_count: Annotated[Int, Field(ge=1, le=1)] | None = Field(
        None, description="ignored; see `POST /v1/videos`"
    )
    frame_duration_ms: Annotated[Int, Field(ge=0)] | None = Field(None, description="ignored")
    svg: object = Field(None, description="not taken: pictures here are no drawings")
    style: Literal["vivid", "natural"] | None = Field(None, description="ignored; see loras")
    input_fidelity: Literal["low", "high"] | None = Field(
        None, description="ignored; see strength and ip_adapter"
    )
    user: str | None = Field(None, max_length=MAX_USER, description="ignored")
    safety_identifier: str | None = Field(None, max_length=MAX_USER, description="ignored")

    metadata: bool | None = Field(
        None, description="write into each file how it was made; by default as the service does"
    )
    seed: WireSeed | None = None
    num_inference_steps: Steps | None = None
    eta: Eta | None = None
    guidance_scale: Guidance | None = None
    negative_prompt: Text | None = None
    prompt_syntax: PromptSyntax | None = Field(
        None, description="weighted: (word:1.3), (word), [word] say how strongly words act"
    )
    clip_skip: ClipSkip | None = None
    original_size: WireToldSize | None = Field(None, description=ORIGINAL)
    target_size: WireToldSize | None = Field(None, description=TARGET)
    loras: list[LoraBody] = Field([], max_length=MAX_ENTRIES)
    controls: list[ControlBody] = Field([], max_length=MAX_ENTRIES)
    ip_adapter: IpAdapterField | None = Field(
        None, description=f"or up to {MAX_IP_ADAPTERS} of them, which act together"
    )
    priority: Priority = 0
    timeout_s: TimeoutS | None = None

    @field_validator("size")
    @classmethod
    def _size_is_readable(cls, size: str | None) -> str | None:
        return readable_size(size)

    @field_validator("svg")
    @classmethod
    def _is_no_drawing(cls, _: object) -> None:
        raise ValueError("is not taken: no svg is made here")

    @field_validator("partial_images")
    @classmethod
    def _has_a_stream(cls, partial_images: int | None, fields: ValidationInfo) -> int | None:
        # Of a field that is wrong itself there is nothing to look up.
        if partial_images and not any(fields.data.get(name, True) for name in ("stream", "later")):
            raise ValueError("needs stream: true, or async: true")
        return partial_images

    @field_validator("webhook_url")
    @classmethod
    def _has_a_job(cls, webhook_url: str | None, fields: ValidationInfo) -> str | None:
        if webhook_url is not None and not fields.data.get("later", True):
            raise ValueError("needs async: true")
        return webhook_url

    @field_validator("later")
    @classmethod
    def _is_not_followed(cls, later: bool, fields: ValidationInfo) -> bool:
        if later and fields.data.get("stream"):
            raise ValueError("does not go with stream; follow the job's /events")
        return later

    def by_url(self, stored: bool) -> bool:
        """Whether images are wanted by URL, if they can be `stored`: those of DALL-E are, where
        nothing else is said."""
        if self.response_format is None:
            return stored and not self.stream and self.model in URL_MODELS
        return self.response_format == "url"

    def ignored(self, *, moderated: bool) -> list[str]:
        """The fields that were sent, are understood, and change nothing. `moderated`: there is a
        safety checker."""
        known = IGNORED if moderated else ("moderation", *IGNORED)
        sent = [name for name in known if name in self.model_fields_set]
        if self.output_compression is not None and self.output_format == "png":
            sent.append("output_compression")
        return sent

    def _request(
        self,
        prompt: str,
        *,
        image: bytes | str | None = None,
        mask: bytes | str | None = None,
        strength: float | None = None,
        preserve_unmasked: bool = True,
        ip_adapter: IpAdapter | tuple[IpAdapter, ...] | None = None,
    ) -> ImageRequest:
        width, height = size_of(self.size)
        return ImageRequest(
            prompt=prompt,
            model=self.model,
            negative_prompt=self.negative_prompt,
            n=self.n,
            width=width,
            height=height,
            quality=self.quality,
            num_inference_steps=self.num_inference_steps,
            eta=self.eta,
            guidance_scale=self.guidance_scale,
            prompt_syntax=self.prompt_syntax,
            clip_skip=self.clip_skip,
            original_size=self.original_size,
            target_size=self.target_size,
            seed=None if self.seed == RANDOM else self.seed,
            loras=tuple(LoraWeight(lora.name, lora.weight) for lora in self.loras),
            image=image,
            mask=mask,
            strength=strength,
            preserve_unmasked=preserve_unmasked,
            controls=tuple(Control(**dict(control)) for control in self.controls),
            ip_adapter=ip_adapter or resembled(self.ip_adapter),
            partial_images=self.partial_images or 0,
            priority=self.priority,
            timeout_s=self.timeout_s,
            moderation=self.moderation,
        )


class GenerationsBody(ImagesRequestBody):
    """`POST /v1/images/generations`."""

    prompt: Text

    def to_request(self) -> ImageRequest:
        """The same request as other Ray applications would make it."""
        return self._request(self.prompt)


class EditsForm(ImagesRequestBody):
    """`POST /v1/images/edits`, without its files. Nested fields come as JSON text."""

    EVENTS: ClassVar[str] = "image_edit"

    prompt: Text
    strength: Strength | None = None
    preserve_unmasked: bool = Field(
        True, description="keep the pixels outside the mask as they are"
    )

    def to_request(self, images: Sequence[bytes | str], mask: bytes | str | None) -> ImageRequest:
        """The same request as other Ray applications would make it.

        Args:
            images: the picture to edit, and further ones to resemble.
        """
        return self._request(
            self.prompt,
            image=images[0],
            mask=mask,
            strength=self.strength,
            preserve_unmasked=self.preserve_unmasked,
            ip_adapter=_with_further(resembled(self.ip_adapter), images[1:]),
        )


def _with_further(
    given: IpAdapter | tuple[IpAdapter, ...] | None, images: Sequence[bytes | str]
) -> IpAdapter | tuple[IpAdapter, ...] | None:
    """An edit's further pictures beside its `ip_adapter`: seen together with those of one object,
    else by the model's first adapter, with the usual scale."""
    if not images:
        return given
    if given is None:
        return IpAdapter(tuple(images))
    if isinstance(given, tuple):
        if len(given) == MAX_IP_ADAPTERS:
            raise InvalidRequest(
                f"ip_adapter has {len(given)} objects, and further images would be one more; "
                f"{MAX_IP_ADAPTERS} at most",
                "image",
            )
        return (*given, IpAdapter(tuple(images)))
    count = len(given.images) + len(images)
    if count > MAX_SEEN:
        raise InvalidRequest(
            f"{count} pictures to resemble are given, as image and in ip_adapter; "
            f"{MAX_SEEN} at most",
            "image",
        )
    return replace(given, images=(*given.images, *images))


class VariationsForm(ImagesRequestBody):
    """`POST /v1/images/variations`, without its file."""

    prompt: Text = Field("", description="beside the picture; empty by default")
    scale: Scale = Field(1.0, description="how strongly the picture acts")

    @field_validator("ip_adapter")
    @classmethod
    def _picture_is_the_file(cls, _: IpAdapterBody | None) -> None:
        raise ValueError("is not taken here: the picture is image, its strength is scale")

    def to_request(self, image: bytes) -> ImageRequest:
        """The same request as other Ray applications would make it."""
        return self._request(self.prompt, ip_adapter=IpAdapter((image,), self.scale))


class PreprocessForm(RequestBody):
    """`POST /v1/preprocess/{depth,canny}`, without its file."""

    low_threshold: Threshold | None = None
    high_threshold: Threshold | None = None


class InputTokens(BaseModel):
    """Part of OpenAI's usage figures."""

    text_tokens: int
    image_tokens: int = 0


class UsageBody(BaseModel):
    """OpenAI's usage figures; an output token is a patch of 16 x 16 pixels."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    total_tokens: int
    denoising_steps: int


class ErrorBody(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ImageBody(BaseModel):
    """One image of an answer: itself, or where it is, or why it could not be made.

    An answer with an image in it has status 200, and `error` names what failed beside it; if
    none could be made, the request itself fails.
    """

    b64_json: str | None = None
    url: str | None = None
    error: ErrorBody | None = None
    seed: int


class ImagesBody(BaseModel):
    """The answer of the images routes."""

    created: int
    model: str
    background: Literal["opaque"] = "opaque"
    quality: Quality = "auto"
    output_format: OutputFormat
    size: str
    ignored: list[str] = Field([], description="fields that were understood and change nothing")
    data: list[ImageBody]
    usage: UsageBody


class ErrorAnswer(BaseModel):
    """The body of every answer that is not a success."""

    error: ErrorBody
