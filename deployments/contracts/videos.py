"""Videos over HTTP: OpenAI's job shape plus this service's own fields."""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, Field, ValidationInfo, field_validator
from pydantic_core import from_json

from deployments.contracts.api import (
    IMAGE,
    ORIGINAL,
    RANDOM,
    TARGET,
    WEBHOOK,
    ControlFields,
    Images,
    IpAdapterField,
    LoraBody,
    RequestBody,
    WireSeed,
    WireToldSize,
    readable_size,
    resembled,
    size_of,
)
from deployments.contracts.jobs import (
    MAX_ENTRIES,
    MAX_FRAMES,
    MAX_IP_ADAPTERS,
    ClipSkip,
    Control,
    Eta,
    Float,
    Fps,
    Frames,
    Guidance,
    LoraWeight,
    Name,
    Priority,
    PromptSyntax,
    Steps,
    Strength,
    Text,
    TimeoutS,
    VideoRequest,
)

VideoFormat = Literal["mp4", "gif", "webp"]
VideoVariant = Literal["video", "thumbnail", "spritesheet"]  # of what is made: which file
FRAMES, FPS = 16, 8  # of a request that does not say


def _said(reference: object) -> object:
    """A picture may be said by its text alone; in a form, JSON comes as text, too."""
    if not isinstance(reference, str | dict | ReferenceBody):
        raise ValueError('must be a picture, as text, or {"image_url": ...}')
    if not isinstance(reference, str):
        return reference
    return from_json(reference) if reference.startswith("{") else {"image_url": reference}


class ReferenceBody(RequestBody):
    """A picture that a video begins with, as OpenAI's clients say it."""

    file_id: object = Field(None, description="not taken: no files are kept here")
    image_url: str = Field(description="a data URL, an https:// URL or an s3:// URI")

    @field_validator("file_id")
    @classmethod
    def _no_file_is_known(cls, _: object) -> None:
        raise ValueError("is not taken: no files are kept here; send the picture, or image_url")


class VideoControlBody(ControlFields):
    """One ControlNet of a video."""

    image: Images = Field(
        min_length=1,
        max_length=MAX_FRAMES,
        description=IMAGE + "; all frames follow it. Or as many of them as frames, one of each",
    )

    def control(self) -> Control:
        """The same as other Ray applications would say it."""
        one = len(self.image) == 1
        return Control(**dict(self) | {"image": self.image[0] if one else self.image})


class VideoBody(RequestBody):
    """`POST /v1/videos`. OpenAI's fields first, then the extensions."""

    prompt: Text
    model: Name | None = Field(None, description="a model with the task video")
    seconds: Annotated[Float, Field(gt=0, le=60)] | None = Field(
        None, description="length; num_frames says it exactly"
    )
    size: Name | None = Field(None, description="WIDTHxHEIGHT in multiples of 8, or auto")

    input_reference: (
        Annotated[ReferenceBody, BeforeValidator(_said, json_schema_input_type=str | ReferenceBody)]
        | None
    ) = Field(
        None, description="the picture that each frame starts from; or a file of a multipart body"
    )
    strength: Strength | None = Field(
        None, description="of input_reference, how far it is noised; 0.8 by default"
    )
    num_frames: Frames | None = Field(None, description="16 by default")
    fps: Fps | None = Field(
        None, description="8 by default; with seconds, as many as 16 frames allow"
    )
    output_format: VideoFormat = "mp4"
    metadata: bool | None = Field(
        None, description="write into the file how it was made; by default as the service does"
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
    loras: list[LoraBody] = Field(default_factory=list, max_length=MAX_ENTRIES)
    motion_loras: list[LoraBody] = Field(default_factory=list, max_length=MAX_ENTRIES)
    controls: list[VideoControlBody] = Field(default_factory=list, max_length=MAX_ENTRIES)
    ip_adapter: IpAdapterField | None = Field(
        None, description=f"or up to {MAX_IP_ADAPTERS} of them, which act together, on each frame"
    )
    priority: Priority = -1
    timeout_s: TimeoutS | None = None
    webhook_url: str | None = Field(None, description=WEBHOOK)

    @field_validator("size")
    @classmethod
    def _size_is_readable(cls, size: str | None) -> str | None:
        return readable_size(size)

    @field_validator("num_frames")
    @classmethod
    def _is_the_only_length(cls, num_frames: int | None, fields: ValidationInfo) -> int | None:
        if num_frames is not None and fields.data.get("seconds") is not None:
            raise ValueError("says how long the video is, as seconds does; send one")
        return num_frames

    def to_request(self, reference: bytes | None = None) -> VideoRequest:
        """The same request as other Ray applications would make it.

        Args:
            reference: `input_reference`, if it came as a file.
        """
        image: bytes | str | None = reference
        if self.input_reference is not None:
            image = self.input_reference.image_url
        width, height = size_of(self.size)
        frames, fps = self.num_frames or FRAMES, self.fps or FPS
        if self.seconds is not None:
            most = FPS if self.seconds * FPS <= FRAMES else max(1, int(FRAMES / self.seconds))
            fps = self.fps or most
            frames = max(1, round(self.seconds * fps))
        return VideoRequest(
            prompt=self.prompt,
            model=self.model,
            negative_prompt=self.negative_prompt,
            width=width,
            height=height,
            num_frames=frames,
            fps=fps,
            num_inference_steps=self.num_inference_steps,
            eta=self.eta,
            guidance_scale=self.guidance_scale,
            prompt_syntax=self.prompt_syntax,
            clip_skip=self.clip_skip,
            original_size=self.original_size,
            target_size=self.target_size,
            seed=None if self.seed == RANDOM else self.seed,
            loras=tuple(LoraWeight(lora.name, lora.weight) for lora in self.loras),
            motion_loras=tuple(LoraWeight(lora.name, lora.weight) for lora in self.motion_loras),
            image=image,
            strength=self.strength,
            controls=tuple(control.control() for control in self.controls),
            ip_adapter=resembled(self.ip_adapter),
            priority=self.priority,
            timeout_s=self.timeout_s,
        )


class VideoError(BaseModel):
    """Why a video failed."""

    code: str
    message: str


class VideoCard(BaseModel):
    """A video job, as OpenAI shows it, with the sampler's numbers beside."""

    id: str
    object: Literal["video"] = "video"
    created_at: int
    completed_at: int | None = None
    expires_at: int | None = None
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    progress: int = 0
    error: VideoError | None = None
    model: str
    prompt: str
    size: str | None
    seconds: str
    num_frames: int
    fps: int
    output_format: VideoFormat
    seed: int | None = None


class VideosBody(BaseModel):
    """`GET /v1/videos`, the newest first."""

    object: Literal["list"] = "list"
    data: list[VideoCard]
    first_id: str | None
    last_id: str | None
    has_more: bool
