"""The typed configuration tree: what the `args` and `user_config` of a Serve config may say.

Every model is frozen and refuses unknown keys, so that a misspelt line stops the deploy
with its name instead of being ignored. Ray's own options (replicas, autoscaling, GPUs)
are not here: they stay under `deployments:` in the Serve config, where Ray reads them.
"""

from typing import Annotated, Final, Literal, Protocol

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    ValidationInfo,
    field_validator,
    model_validator,
)

from configs.collection import check_root
from configs.families import FAMILIES, FamilyName
from configs.frozen import Frozen, Host
from configs.jobs import JobsArgs
from configs.names import Alias, ModelName, Names, Shares, check_aliases
from configs.provenance import ProvenanceArgs
from configs.union_modes import UnionMode

Word = Annotated[str, Field(pattern=r"^\S+$", max_length=100)]  # of a prompt
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[^\s/?#]+)$")]
Dtype = Literal["float32", "bfloat16", "float16"]
PredictionType = Literal["epsilon", "v_prediction"]


class Defaults(Frozen):
    """What a request gets for a field that it leaves out. `None` size: the family's own."""

    width: int | None = Field(None, ge=8, multiple_of=8)
    height: int | None = Field(None, ge=8, multiple_of=8)
    num_inference_steps: int = Field(4, ge=1, le=50)
    eta: float = Field(0.3, ge=0, le=1)
    guidance_scale: float = Field(0.0, ge=0, le=30)
    prompt_syntax: Literal["plain", "weighted"] = "plain"
    clip_skip: int = Field(0, ge=0, le=31)


# Of the devices of torch, those that models run on; "auto" takes what Ray assigned.
Device = Annotated[str, Field(pattern=r"^(auto|(cpu|cuda|hpu|meta|mps|npu|xpu)(:\d+)?)$")]
# Without scheme, port and path.


class SizeLimits(Protocol):
    """Pixels a side, and of the whole image: of a model's limits, and of what its card says."""

    @property
    def min_side(self) -> int: ...

    @property
    def max_side(self) -> int: ...

    @property
    def max_pixels(self) -> int: ...


def size_allowed(limits: SizeLimits, width: int, height: int) -> bool:
    """Whether an image may be so large. That sides are multiples of 8 is for others to see."""
    least, most = sorted((width, height))
    within = limits.min_side <= least and most <= limits.max_side
    return within and width * height <= limits.max_pixels


# What no request may have, whatever a configuration says: see `deployments/contracts/jobs.py`.
PROMPT_CHARS = 100_000
TIMEOUT_S = 3600.0
MAX_FRAMES = 256


def _at_most(most: float) -> AfterValidator:
    """More than is possible counts as what is."""
    return AfterValidator(lambda value: min(value, most))


class Limits(Frozen):
    """What one diffusion replica accepts and how much it works on at once.

    Attributes:
        min_side, max_side: pixels a side; both multiples of 8.
        max_pixels: width x height of one image.
        max_batch: most rows in one UNet call; a row with guidance above 1 counts twice. More than
            8 share a call only where that is measured to do more a second.
        max_step_ms: milliseconds that one UNet call may last, by those that were timed: fewer rows
            share it where they are large. Who comes anew waits for at most one call, and on a
            GPU for the two that are launched ahead. The first calls of a size, a single row and
            the frames of a video may take longer. `.inf`: as long as they like, with
            all rows that wait, up to `max_batch`, whether that pays or not.
        max_running: rows that hold device memory (latents, embeddings, what controls have of
            their maps) at once: two full batches, so that one is made ready while the other runs.
            Beside a caller who has them all, others get their share, up to twice as many in all.
        max_pending: images accepted and not yet answered; above it a request gets 429. Shared
            between callers in the same way.
        max_loras: style adapters in one request.
        max_frames: of one video, at most 256. Its frames share one UNet call: memory and time of a
            call grow with them.
        lora_budget_mb: MiB of style adapters kept on the device; the least recently used
            go first, those in use never.
        lora_disk_mb: MiB that a node's copies of what all models' `loras_from` name in S3 may take
            together; the least recently used go first, those of the last minute never.
        prompt_cache_mb: MiB of prompt embeddings kept on the device.
        aging_steps: an image gains one priority level whenever, for each step of its own, so many
            steps as large were taken for others: little work ages fast.
        background_share: of the time while others ask, what requests of the lowest priority
            (`priority: -10`, lines of batches) have at most: calls of the UNet for them take no
            more. While nobody else asks they have it all.
        hang_s: seconds for which one step, one VAE call or the preparation of one image may
            last; longer, and the replica ends and is replaced. The first steps on a GPU may
            compile for minutes; a CPU may need longer than this for a full-size image.
    """

    min_side: int = Field(64, ge=8, multiple_of=8)
    max_side: int = Field(2048, ge=8, multiple_of=8)
    max_pixels: int = Field(2048 * 2048, ge=64)
    max_batch: int = Field(16, ge=2, le=256)
    max_step_ms: float = Field(500.0, gt=0)
    max_running: int = Field(32, ge=1, le=1024)
    max_pending: int = Field(128, ge=1)
    max_loras: int = Field(8, ge=0)
    max_frames: Annotated[int, _at_most(MAX_FRAMES)] = Field(32, ge=1)
    lora_budget_mb: int = Field(2048, ge=1)
    lora_disk_mb: int = Field(20480, ge=1)
    prompt_cache_mb: int = Field(256, ge=0)
    aging_steps: int = Field(16, ge=1)
    background_share: float = Field(0.02, gt=0, le=1)
    hang_s: float = Field(300.0, ge=1)

    @model_validator(mode="after")
    def _sides_in_order(self) -> "Limits":
        if self.min_side > self.max_side:
            raise ValueError(f"min_side {self.min_side} is above max_side {self.max_side}")
        return self


class ControlArgs(Frozen):
    """What one control type of a model is: a ControlNet, a mode of a ControlNet-Union, or a
    T2I-Adapter; the file says which. A source alone may stand for it.

    Attributes:
        source: a diffusers folder or a single safetensors file. Types of one source share it.
        mode: of a union; `None`: the type's own name is one.
    """

    source: str
    mode: UnionMode | None = None


def _as_source(value: object) -> object:
    return {"source": value} if isinstance(value, str) else value


ControlSource = Annotated[ControlArgs, BeforeValidator(_as_source)]


DEFAULT_IP_ADAPTER = "default"  # the name of the one that stands under `ip_adapter`


class IpAdapterArgs(Frozen):
    """An IP-Adapter of a model: its weights, and the CLIP vision encoder they were made for.

    Attributes:
        adapter: source of one safetensors file in the layout of h94/IP-Adapter.
        image_encoder: name of the encoder among the service's `image_encoders`.
    """

    adapter: str
    image_encoder: str


class VaeArgs(Frozen):
    """The VAE of a model, where it is not simply the checkpoint's own.

    Attributes:
        source: a diffusers folder (or one with a `vae` in it), or a single safetensors file;
            `None`: the checkpoint's.
        dtype: what it encodes and decodes in; `None`: the model's dtype where that is safe. A
            float16 model whose VAE says `force_upcast` has it in bfloat16 on a GPU that
            computes in it, else in float32.
    """

    source: str | None = None
    dtype: Dtype | None = None


class MotionSchedule(Frozen):
    """What the schedule of a model's videos has otherwise than that of its images: few-step motion
    adapters say it of themselves.

    Attributes:
        beta_schedule: how betas rise; `None`: as the checkpoint says.
        timestep_spacing: "leading": the timesteps that TCD was distilled from; "trailing": evenly
            over all, as adversarial distillation has them.
    """

    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] | None = None
    timestep_spacing: Literal["leading", "trailing"] = "leading"


CompileMode = Literal["off", "blocks", "graphs"]


class WarmSize(Frozen):
    """A size that is drawn before a replica is ready.

    Attributes:
        width, height: pixels.
        rows: with `compile: graphs`, most UNet rows of a call for which there is a graph; as many
            as `limits.max_batch` allows is what makes sense.
    """

    width: int = Field(ge=8, multiple_of=8)
    height: int = Field(ge=8, multiple_of=8)
    rows: int = Field(8, ge=1, le=64)


class ModelArgs(Frozen):
    """`args` of one `model-<name>` application: what cannot change without a restart.

    Attributes:
        checkpoint, tcd_lora: sources (see `configs.sources`). `tcd_lora: null` serves a
            checkpoint that needs none, because it was fused before it was saved.
        config: with a single-file checkpoint: the source of a diffusers folder whose
            configurations and tokenizers it shares; `None`: the family's base.
        controls: ControlNets and T2I-Adapters by the type that requests name (`depth`, `canny`,
            ...).
        motion_adapter: AnimateDiff's motion modules, a diffusers folder or one safetensors file;
            with it the model makes videos too.
        motion_schedule: of videos, where it is not that of images.
        ip_adapters: IP-Adapters by the name that requests use; the first is that of requests that
            name none. `ip_adapter` is one that needs no name; a model has the one or the others.
        vae: another VAE than the checkpoint's, or another precision of it.
        embeddings: textual inversions by the words that prompts use, each a source of one
            safetensors file.
        prediction_type, rescale_betas_zero_snr: what the checkpoint's UNet was trained to say, and
            whether its last timestep is noise alone, as in diffusers' schedulers; `None`: what a
            single file says of itself, else its scheduler's configuration.
        preview_vae: source of a tiny autoencoder (diffusers' `AutoencoderTiny`), which decodes
            partial images at a fraction of the VAE's cost; `None`: the VAE decodes them.
        variant: which weights of a diffusers folder, as in `from_pretrained` ("fp16").
        device: a torch device; "auto" takes the GPU that Ray assigned, else the CPU.
        compile: "off"; "blocks": the repeated blocks of UNet and ControlNets are compiled by
            inductor, for any size and mix of adapters, each kind of call when it first comes;
            "graphs": the same, and on a CUDA device calls of a `warmup` size, up to its `rows`,
            are replayed as CUDA graphs where no row has adapters, controls or pictures to
            resemble. What cannot be compiled or captured runs as without, and says so in the log
            and the figures. Videos are not compiled.
        warmup: sizes that are drawn before a replica is ready, so that no request waits for what
            is compiled, captured or tuned at first use. `None`: the default size of requests
            where something is compiled, else none.
        log_prompts: whether tracebacks in its replicas' logs hold what errors say, which may quote
            prompts.
    """

    name: ModelName
    family: FamilyName
    checkpoint: str
    config: str | None = None
    tcd_lora: str | None
    controls: dict[ModelName, ControlSource] = Field({})
    motion_adapter: str | None = None
    motion_schedule: MotionSchedule = MotionSchedule()
    ip_adapter: IpAdapterArgs | None = None
    ip_adapters: dict[ModelName, IpAdapterArgs] = Field({})
    vae: VaeArgs = VaeArgs()
    embeddings: dict[Word, str] = Field({})
    preview_vae: str | None = None
    prediction_type: PredictionType | None = None
    rescale_betas_zero_snr: bool | None = None
    dtype: Dtype = "float16"
    variant: str | None = None
    device: Device = "auto"
    defaults: Defaults = Defaults()
    compile: CompileMode = "off"
    warmup: tuple[WarmSize, ...] | None = None
    log_prompts: bool = False

    @model_validator(mode="after")
    def _noise_can_be_read(self) -> "ModelArgs":
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr needs prediction_type: v_prediction: at zero SNR nothing "
                "can be read out of predicted noise"
            )
        return self

    @model_validator(mode="after")
    def _graphs_have_a_device(self) -> "ModelArgs":
        if self.compile == "graphs" and self.device.partition(":")[0] not in ("auto", "cuda"):
            raise ValueError(f"compile: graphs needs a CUDA device; device is {self.device}")
        if self.compile == "graphs" and self.warmup == ():
            raise ValueError("compile: graphs needs a warmup size: there are graphs of these alone")
        return self

    @model_validator(mode="after")
    def _ip_adapters_stand_in_one_place(self) -> "ModelArgs":
        if self.ip_adapter is not None and self.ip_adapters:
            raise ValueError(
                "ip_adapter and ip_adapters are both given; put all of them into ip_adapters, the "
                "one that requests need not name first"
            )
        return self

    @model_validator(mode="after")
    def _words_differ_in_more_than_case(self) -> "ModelArgs":
        seen: dict[str, str] = {}
        for word in self.embeddings:
            if (other := seen.setdefault(word.lower(), word)) != word:
                raise ValueError(
                    f"embeddings: {other!r} and {word!r} are one word: prompts name it in any case"
                )
        return self

    @model_validator(mode="after")
    def _a_schedule_is_of_videos(self) -> "ModelArgs":
        if self.motion_adapter is None and self.motion_schedule != MotionSchedule():
            raise ValueError("motion_schedule is of videos, and the model has no motion_adapter")
        return self

    @property
    def named_ip_adapters(self) -> dict[str, IpAdapterArgs]:
        """All IP-Adapters by name; the first is that of requests that name none."""
        if self.ip_adapter is not None:
            return {DEFAULT_IP_ADAPTER: self.ip_adapter}
        return dict(self.ip_adapters)

    @property
    def default_size(self) -> tuple[int, int]:
        """Width and height of a request that names none."""
        side = FAMILIES[self.family].default_size
        return self.defaults.width or side, self.defaults.height or side

    @property
    def warm_sizes(self) -> tuple[WarmSize, ...]:
        """The sizes of `warmup`, or what it is where it is left out."""
        if self.warmup is not None:
            return self.warmup
        width, height = self.default_size
        return () if self.compile == "off" else (WarmSize(width=width, height=height),)

    def never_asked_for(self, limits: Limits) -> tuple[WarmSize, ...]:
        """Sizes of `warmup` that these limits allow no request."""
        return tuple(s for s in self.warmup or () if not size_allowed(limits, s.width, s.height))


class ModelUserConfig(Frozen):
    """`user_config` of a diffusion deployment: what changes while it serves.

    Attributes:
        loras: style adapters by the name that requests use, each a source.
        loras_from: where further ones are looked for by name when they are first asked for: a
            folder, or `s3://bucket/prefix/` (see `configs.collection`).
        motion_loras: the same for camera motions of videos.
    """

    loras: dict[ModelName, str] = Field({})
    loras_from: Annotated[str, AfterValidator(check_root)] | None = None
    motion_loras: dict[ModelName, str] = Field({})
    limits: Limits = Limits()


class PreprocessorArgs(Frozen):
    """A preprocessor that runs a model: where its weights come from, and where it runs.

    Attributes:
        checkpoint: source of a DPT or of a CLIP vision checkpoint.
    """

    checkpoint: str
    device: Device = "auto"
    dtype: Dtype = "float32"


class SafetyArgs(PreprocessorArgs):
    """The safety checker, which sees every picture before anybody else does: see docs/safety.md.

    Attributes:
        checkpoint: source of a folder of diffusers' `StableDiffusionSafetyChecker`.
        moderation: how strictly pictures are checked whose request does not say. "auto": as
            diffusers does; "low": less strictly; "off": not at all.
        allow_low: whether requests may ask for "low" where "auto" is usual.
        timeout_s: for what is to be said of one picture, the wait for its turn included; a request
            whose picture it is not said of is refused.
    """

    moderation: Literal["auto", "low", "off"] = "auto"
    allow_low: bool = True
    timeout_s: float = Field(120.0, gt=0)


class TemporaryStorage(Frozen):
    """Files are kept for a while in a folder of the node that runs the ingress, below the system's
    temporary folder, and shown by the ingress, as `GET /v1/files/{name}`.

    Attributes:
        keep_s: until a file is no longer shown, and soon deleted.
        budget_mb: MiB of all files; above it the oldest go first.
    """

    kind: Literal["temporary"] = "temporary"
    keep_s: float = Field(3600.0, gt=0)
    budget_mb: int = Field(1024, ge=1)


class FolderStorage(Frozen):
    """Files are kept in a folder: of the one node that runs the ingress, or shared by all.

    Attributes:
        path: absolute, or relative to the project's root.
        public_url: where a web server of your own shows that folder; `None`: the ingress
            shows the files itself, as `GET /v1/files/{name}`.
    """

    kind: Literal["folder"]
    path: str
    public_url: str | None = Field(None, pattern=r"^https?://\S+$")


class S3Storage(Frozen):
    """Files are kept in an S3 bucket, and shown by presigned URLs.

    Credentials and region come from boto3's usual places.

    Attributes:
        prefix: put before the name of every file, such as "images/".
        presign_s: seconds for which a URL is valid; S3 allows seven days.
        endpoint_url: of an S3 that is not Amazon's; `None`: `AWS_ENDPOINT_URL_S3`,
            `AWS_ENDPOINT_URL`, or Amazon's.
    """

    kind: Literal["s3"]
    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]+$")
    prefix: str = ""
    presign_s: int = Field(3600, ge=1, le=7 * 24 * 3600)
    endpoint_url: str | None = Field(None, pattern=r"^https?://\S+$")


StorageArgs = Annotated[TemporaryStorage | FolderStorage | S3Storage, Field(discriminator="kind")]


class KeysArgs(Frozen):
    """Where the named keys are: a list of `configs.keys.KeyEntry`, as YAML or JSON.

    Attributes:
        file: its path, absolute or relative to the project's root; read again when it changes.
        env: name of the environment variable that holds the same text.
    """

    file: str | None = None
    env: str | None = None

    @model_validator(mode="after")
    def _one_place(self) -> "KeysArgs":
        if (self.file is None) == (self.env is None):
            raise ValueError("names either file or env")
        return self


Guarded = Literal["metrics", "readyz", "docs", "playground"]

# Limits that follow another key where they are left out: that key, and their least value.
FOLLOWING: Final = {
    "max_request_bytes": ("max_image_bytes", 40 * 2**20),
    "max_request_pixels": ("max_image_pixels", 2 * 4096 * 4096),
    "max_decoding_pixels": ("max_request_pixels", 4 * 4096 * 4096),
    "max_timeout_s": ("request_timeout_s", 300.0),
}


class PlaygroundArgs(Frozen):
    """What the page at `/` says to those who see it for the first time.

    Attributes:
        about: what these models know, in a sentence or two.
        prompts: to begin with; the first stands in the form.
    """

    about: str = Field("", max_length=2000)
    prompts: tuple[Annotated[str, Field(max_length=1000)], ...] = Field((), max_length=24)


class ServiceArgs(Frozen):
    """`args` of the `tcd` application.

    `max_request_bytes`, `max_request_pixels`, `max_decoding_pixels` and `max_timeout_s`, left out,
    are 40 MiB, two and four times 4096 x 4096, and 300 s, or more if another key asks for it.

    Attributes:
        depth: the depth estimator; `None`: depth maps must come ready-made.
        image_encoders: encoders for IP-Adapters, by the name that models use.
        safety: the safety checker; `None`: no picture is checked.
        map_cache_mb: MiB of control maps and embeddings remembered across requests.
        allowed_url_hosts: hosts from which `https://` pictures may be fetched, by name alone.
        allowed_s3_buckets: buckets from which `s3://` pictures may be fetched.
        storage: where files go that requests want by URL (`response_format: "url"`): left out, for
            an hour into a folder of the node; `None`: such requests are refused.
        metadata: whether files say how they were made (see docs/clients.md); a request may leave
            it out of its own.
        provenance: what files are signed with, to say that a machine made them; `None`: they are
            not.
        max_image_bytes, max_image_pixels: of one picture in a request.
        max_request_pictures, max_request_bytes, max_request_pixels: pictures of one request (those
            of a video's frames, of one control, count as one), and what all may have together;
            refused by their headers, before any is decoded.
        max_request_entries: of each list of a request (loras, motion_loras, controls).
        max_decoding_pixels: of all pictures that one process decodes at a time; further ones wait.
        max_fetches: pictures that one process fetches from S3 at a time; further ones are refused.
        fetch_timeout_s: until a picture has come from where its URL says.
        default_model: the model of a request that names none; `None`: naming one is required.
        aliases: further names of models, such as `gpt-image-1: sdxl`, for clients whose model
            cannot be chosen; or of several, with the weight of each, such as
            `sdxl: {sdxl-1: 9, sdxl-2: 1}`. Answers name the model itself. What changes while the
            service runs belongs to the `user_config` of `Directory`: see `NamesConfig`.
        max_images: highest `n` of one request.
        max_prompt_chars: characters of `prompt` and of `negative_prompt`; a longer one is refused
            before tokenising. 100,000 is the most; more counts as that.
        max_body_bytes: of one HTTP request.
        body_timeout_s: a request whose body is not all there by then is refused with 408.
        public_url: where clients reach the service, such as "https://pictures.example/tcd";
            `None`: the URLs in its answers begin as the client's request says (`Host`).
        cors_origins: origins of web pages that may call the service from a browser, such as
            "https://app.example"; "*": all. None by default: only the playground's own.
        max_videos: unfinished at a time; shared between callers as `Limits.max_pending` is.
        video_ttl_s, video_cache_mb: how long, and in how many MiB, finished videos are kept.
        jobs: where videos and asynchronous images are kept, and who makes them.
        request_timeout_s: a request without `timeout_s` of its own is given up after this; 3600
            is the most; more counts as that.
        max_timeout_s: longest `timeout_s` of a request for images; a video, which is made in the
            background, may have 3600. What carries requests must last longer than this: see
            `graphs/limits.py`.
        discovery_period_s: how often the directory looks for model applications.
        keys: the named keys that are accepted below `/v1/`, `/sdapi/` and `/controlnet/`, each with
            its limits; `None`, and no `api_keys_env`: no authentication.
        api_keys_env: name of the environment variable with further bearer keys in plain text,
            separated by commas; they have no limits, and are called `key-1`, `key-2`, ...
        log_prompts: whether the log's line of a request holds its prompts, too, and its tracebacks
            what errors say, which may quote them; of models' replicas, see `ModelArgs`.
        playground: what the page at `/` says to newcomers.
        protect: pages that ask for a key with `admin: true`, too; "docs" is the description of
            the API, "playground" the page at `/`.
    """

    default_model: ModelName | None = None
    aliases: dict[Alias, Shares] = Field({})
    depth: PreprocessorArgs | None = None
    image_encoders: dict[ModelName, PreprocessorArgs] = Field({})
    safety: SafetyArgs | None = None
    map_cache_mb: int = Field(512, ge=0)
    allowed_url_hosts: tuple[Host, ...] = ()
    allowed_s3_buckets: tuple[str, ...] = ()
    storage: StorageArgs | None = TemporaryStorage()
    metadata: bool = True
    provenance: ProvenanceArgs | None = None
    max_image_bytes: int = Field(20 * 2**20, ge=1024)
    max_image_pixels: int = Field(4096 * 4096, ge=64)
    max_request_pictures: int = Field(16, ge=1, le=64)
    max_request_bytes: int = Field(None, ge=1024, validate_default=True)
    max_request_pixels: int = Field(None, ge=64, validate_default=True)
    max_request_entries: int = Field(16, ge=1, le=64)
    max_decoding_pixels: int = Field(None, ge=64, validate_default=True)
    max_fetches: int = Field(8, ge=1, le=256)
    fetch_timeout_s: float = Field(20.0, gt=0)
    max_images: int = Field(10, ge=1, le=64)
    max_prompt_chars: Annotated[int, _at_most(PROMPT_CHARS)] = Field(4000, ge=1)
    max_body_bytes: int = Field(64 * 2**20, ge=1024)
    body_timeout_s: float = Field(60.0, gt=0)
    public_url: str | None = Field(None, pattern=r"^https?://[^\s/?#]+(/[^\s?#]*)?$")
    cors_origins: tuple[Origin, ...] = ()
    max_videos: int = Field(32, ge=1)
    video_ttl_s: float = Field(3600.0, gt=0)
    video_cache_mb: int = Field(512, ge=1)
    jobs: JobsArgs = JobsArgs()
    request_timeout_s: Annotated[float, _at_most(TIMEOUT_S)] = Field(300.0, gt=0)
    max_timeout_s: float = Field(None, gt=0, le=TIMEOUT_S, validate_default=True)
    discovery_period_s: float = Field(2.0, gt=0)
    keys: KeysArgs | None = None
    api_keys_env: str | None = None
    protect: tuple[Guarded, ...] = ()
    log_prompts: bool = False
    playground: PlaygroundArgs = PlaygroundArgs()

    @field_validator(*FOLLOWING, mode="before")
    @classmethod
    def _followed(cls, value: object, info: ValidationInfo) -> object:
        if value is not None or info.field_name is None:
            return value
        followed, least = FOLLOWING[info.field_name]
        return max(least, info.data.get(followed, least))

    @model_validator(mode="after")
    def _a_picture_fits(self) -> "ServiceArgs":
        if self.max_request_pixels > self.max_decoding_pixels:
            raise ValueError(
                f"max_decoding_pixels {self.max_decoding_pixels} is below max_request_pixels "
                f"{self.max_request_pixels}: such a request could never be decoded"
            )
        for name in ("pixels", "bytes"):
            one, all_ = getattr(self, f"max_image_{name}"), getattr(self, f"max_request_{name}")
            if one > all_:
                raise ValueError(f"max_image_{name} {one} is above max_request_{name} {all_}")
        return self

    @model_validator(mode="after")
    def _times_in_order(self) -> "ServiceArgs":
        if self.request_timeout_s > self.max_timeout_s:
            raise ValueError(
                f"request_timeout_s {self.request_timeout_s:g} is above "
                f"max_timeout_s {self.max_timeout_s:g}"
            )
        return self

    @property
    def names(self) -> Names:
        """Of its models."""
        return Names(self.aliases, self.default_model)

    @model_validator(mode="after")
    def _aliases_name_models(self) -> "ServiceArgs":
        check_aliases(self.aliases)
        return self

    @model_validator(mode="after")
    def _an_admin_can_be_named(self) -> "ServiceArgs":
        if self.protect and self.keys is None:
            raise ValueError("protect asks for the key of an admin, which only keys can name")
        return self
