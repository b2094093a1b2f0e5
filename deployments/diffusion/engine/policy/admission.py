"""A job against what this model can do: every reason to refuse it, before it costs anything."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from configs.app import Limits, ModelUserConfig, size_allowed
from configs.collection import NAME, NAMES, Held
from deployments.contracts.errors import InvalidRequest, NotFound
from deployments.contracts.jobs import (
    MAX_STEPS,
    Asset,
    ControlUse,
    ImageJob,
    IpAdapterUse,
    PromptSyntax,
    real_steps,
)
from deployments.diffusion.engine.policy.capabilities import Capabilities, ImageEmbeds
from deployments.diffusion.engine.policy.spec import (
    LATENT_SCALE,
    Control,
    ImagePrompt,
    LoraSource,
    PromptIds,
    RowSpec,
    Source,
    partial_steps,
)

# A text, the field that it came in, and how it is written.
Tokenize = Callable[[str, str, PromptSyntax], PromptIds]
MIB = 2**20
READ_BUDGETS = 2  # a file of float32 is twice as large as what a half-precision model keeps of it


class Origin(Protocol):
    """Where adapters come from. All of it may wait, and raises `NotReady`."""

    def look(self, source: LoraSource) -> str:
        """What tells an adapter's file from the one before it."""

    def find(self, root: str, disk_mb: int, names: Sequence[str]) -> Mapping[str, Held | None]:
        """The adapters of these names in a `loras_from`, where there is one."""

    def knows(self, root: str, disk_mb: int, name: str) -> bool:
        """Whether `find` need not wait for a name."""


class Admitted(NamedTuple):
    """What a job comes to.

    Attributes:
        specs: its rows, in order of its seeds.
        loras: sources of its adapters, by key.
        prompt_tokens: text tokens of its prompts, for the usage figures.
    """

    specs: list[RowSpec]
    loras: dict[str, LoraSource]
    prompt_tokens: int


class Checked(NamedTuple):
    """The texts of a job, and its adapters by key, with their weights."""

    prompt: PromptIds
    negative: PromptIds | None
    loras: dict[str, tuple[LoraSource, float]]


class Named(NamedTuple):
    """An adapter as a job names it.

    Attributes:
        source: what the configuration lists; `None`: it is to be looked for in its `loras_from`.
    """

    name: str
    unet: str
    source: str | None


class Admission:
    """Turns jobs into rows. Thread-safe.

    Args:
        tokenize: raises `InvalidRequest` for a text that is too long.
        origin: is asked about adapters.

    Attributes:
        config: the adapters and limits in force; may be replaced at any time.
    """

    def __init__(
        self,
        capabilities: Capabilities,
        tokenize: Tokenize,
        origin: Origin,
        config: ModelUserConfig,
    ) -> None:
        self.config = config
        self._origin = origin
        self._can = capabilities
        self._tokenize = tokenize

    def check(self, job: ImageJob) -> Checked:
        """What a job says beside its arrays.

        Raises `InvalidRequest` or `NotFound` naming the field, or `NotReady`.
        """
        config = self.config
        _check_size(job, config.limits)
        if len(job.seeds) > config.limits.max_pending:
            raise InvalidRequest(
                f"n is {len(job.seeds)}; this model accepts at most {config.limits.max_pending}",
                "n",
            )
        if (job.negative_prompt or "").strip() and job.guidance_scale <= 1:
            raise InvalidRequest(
                "negative_prompt has no effect unless guidance_scale is above 1 "
                f"(it is {job.guidance_scale:g})",
                "negative_prompt",
            )
        if job.num_inference_steps > self._can.max_steps:
            raise InvalidRequest(
                f"num_inference_steps is {job.num_inference_steps}; this model's schedule has "
                f"{self._can.max_steps} steps",
                "num_inference_steps",
            )
        if job.clip_skip > self._can.max_clip_skip:
            raise InvalidRequest(
                f"clip_skip is {job.clip_skip}; of this model's text encoders at most "
                f"{self._can.max_clip_skip} layers can be passed over",
                "clip_skip",
            )
        for name, told in (("original_size", job.original_size), ("target_size", job.target_size)):
            if told is not None and not self._can.told_size:
                raise InvalidRequest(
                    f"{name} is given; this model is told no size: leave it out, or ask an sdxl "
                    "model",
                    name,
                )
        steps = real_steps(job.num_inference_steps, job.strength)
        if steps < 1:
            raise InvalidRequest(_no_step(job.num_inference_steps, job.strength), "strength")
        self._check_video(job)
        self._check_source(job)
        self._check_controls(job)
        for use in job.ip_adapters:
            self._reads(use)
        asked = _loras(job, config)
        prompt = self._tokenize(job.prompt, "prompt", job.prompt_syntax)
        negative = None
        if job.guidance_scale > 1:
            text = job.negative_prompt or ""
            negative = self._tokenize(text, "negative_prompt", job.prompt_syntax)
        loras: dict[str, tuple[LoraSource, float]] = {}
        held = self._held(asked, config)
        for named, weight in asked.items():
            source = _source_of(named, held, config)
            loras[source.key(self._origin.look(source))] = (source, weight)
        return Checked(prompt, negative, loras)

    def seeks(self, job: ImageJob) -> bool:
        """Whether adapters of a job are to be looked for first."""
        config = self.config
        root, disk_mb = config.loras_from, config.limits.lora_disk_mb
        return root is not None and any(
            not self._origin.knows(root, disk_mb, lora.name)
            for lora in job.loras
            if lora.name not in config.loras and NAME.fullmatch(lora.name)
        )

    def _held(self, asked: Iterable[Named], config: ModelUserConfig) -> Mapping[str, Held | None]:
        """Those that are not listed, as far as they are there."""
        names = [named.name for named in asked if named.source is None]
        if config.loras_from is None or not names:
            return {}
        return self._origin.find(config.loras_from, config.limits.lora_disk_mb, names)

    def admit(self, job: ImageJob, assets: Sequence[Asset]) -> Admitted:
        """The rows of a job with the arrays it names. Raises what `check` does."""
        prompt, negative, loras = self.check(job)
        controls = tuple(_control(use, job, assets) for use in job.controls)
        image_prompts = tuple(self._image_prompt(use, job, assets) for use in job.ip_adapters)
        source = _source(job, assets)
        steps = real_steps(job.num_inference_steps, job.strength)
        weights = tuple((key, weight) for key, (_, weight) in loras.items())
        specs = [
            RowSpec(
                prompt=prompt,
                seed=seed,
                height=job.height,
                width=job.width,
                num_inference_steps=job.num_inference_steps,
                eta=job.eta,
                guidance_scale=job.guidance_scale,
                negative=negative,
                negative_given=job.negative_prompt is not None,
                loras=weights,
                partial_steps=partial_steps(steps, job.partial_images),
                source=source,
                strength=job.strength,
                controls=controls,
                image_prompts=image_prompts,
                frames=job.num_frames,
                clip_skip=job.clip_skip,
                original_size=job.original_size,
                target_size=job.target_size,
            )
            for seed in job.seeds
        ]
        tokens = prompt.tokens + (negative.tokens if negative is not None else 0)
        return Admitted(specs, {key: source for key, (source, _) in loras.items()}, tokens)

    @property
    def max_frames(self) -> int:
        """Most frames of a video; 0: this model makes none."""
        return self.config.limits.max_frames if self._can.makes_videos else 0

    def _check_video(self, job: ImageJob) -> None:
        if job.num_frames is None:
            if job.motion_loras:
                raise InvalidRequest("motion_loras need num_frames: a video", "motion_loras")
            return
        if not self._can.makes_videos:
            raise InvalidRequest("this model makes no videos: it has no motion adapter", "model")
        if job.num_frames > self.max_frames:
            raise InvalidRequest(
                f"num_frames is {job.num_frames}; this model makes at most {self.max_frames}",
                "num_frames",
            )
        for param, given in (
            ("mask", job.mask is not None),
            ("partial_images", job.partial_images > 0),
        ):
            if given:
                raise InvalidRequest(f"{param} cannot be used with videos", param)

    def _check_source(self, job: ImageJob) -> None:
        if job.image is not None:
            if job.mask is None and self._can.takes_mask:
                raise InvalidRequest("this model only inpaints: a mask is needed", "mask")
            return
        if self._can.takes_mask:
            raise InvalidRequest("this model only inpaints: image and mask are needed", "image")
        for param, given in (("mask", job.mask is not None), ("strength", job.strength != 1)):
            if given:
                raise InvalidRequest(f"{param} needs an image", param)

    def _check_controls(self, job: ImageJob) -> None:
        types = self._can.controls
        seen: set[str] = set()
        steps = real_steps(job.num_inference_steps, job.strength)
        for use in job.controls:
            if use.type not in types:
                known = ", ".join(sorted(types)) or "none"
                raise InvalidRequest(
                    f"control type {use.type!r}: this model has {known}", "controls"
                )
            if use.type in seen:
                raise InvalidRequest(f"control type {use.type!r} is named twice", "controls")
            if use.start >= use.end:
                raise InvalidRequest("a control's start must be before its end", "controls")
            seen.add(use.type)
            if job.num_frames is not None and types[use.type] == "t2i-adapter":
                raise InvalidRequest(
                    f"control {use.type!r} is a T2I-Adapter here, which videos cannot have; a "
                    "ControlNet they can",
                    "controls",
                )
            if len(use.maps) not in (1, job.num_frames or 1):
                raise InvalidRequest(
                    f"control {use.type!r} has {len(use.maps)} maps; one is needed, or of a video "
                    "one a frame",
                    "controls",
                )
            control = Control(use.type, (), use.conditioning_scale, use.start, use.end)
            if use.conditioning_scale and not any(control.scale_at(i, steps) for i in range(steps)):
                raise InvalidRequest(
                    f"control {use.type!r}: none of the {steps} steps lies within {use.start:g} to "
                    f"{use.end:g}",
                    "controls",
                )

    def _reads(self, use: IpAdapterUse) -> ImageEmbeds:
        """Which embeddings the adapter reads that is meant."""
        if not self._can.image_prompts:
            raise InvalidRequest("this model has no IP-Adapter", "ip_adapter")
        reads = self._can.image_prompts.get(use.name)
        if reads is None:
            raise InvalidRequest(
                f"IP-Adapter {use.name!r}: this model has {', '.join(self._can.image_prompts)}",
                "ip_adapter",
            )
        return reads

    def _image_prompt(
        self, use: IpAdapterUse, job: ImageJob, assets: Sequence[Asset]
    ) -> ImagePrompt:
        reads = self._reads(use)
        embeds = tuple(assets[index] for index in use.embeds)
        dims = 3 if reads.hidden else 2
        for pair in embeds:
            # Anything else would break the call that this row shares with its neighbours.
            if pair.ndim != dims or len(pair) != 2 or pair.shape[-1] != reads.width:
                needed = f"(2, {'tokens, ' if reads.hidden else ''}{reads.width})"
                raise InvalidRequest(
                    f"IP-Adapter {use.name!r} reads embeddings of {needed}; these have "
                    f"{pair.shape}: its image encoder is another one",
                    "ip_adapter",
                )
        mask = None
        if use.mask is not None:
            mask = _array(assets[use.mask], (job.height, job.width), "ip_adapter")
        pairs = tuple(np.asarray(pair, dtype=np.float32) for pair in embeds)
        return ImagePrompt(use.name, pairs, use.scale, mask)


def _source_of(
    named: Named, held: Mapping[str, Held | None], config: ModelUserConfig
) -> LoraSource:
    """`held`: those that are not listed, by name."""
    if named.source is not None:
        return LoraSource(named.name, named.source, named.unet)
    found = held[named.name]
    if found is None:
        raise _unknown("loras", named.name, config.loras, config.loras_from)
    most = READ_BUDGETS * config.limits.lora_budget_mb
    if found.nbytes > most * MIB:
        raise InvalidRequest(
            f"lora {named.name!r} is a file of {found.nbytes / MIB:.1f} MiB; of at most "
            f"{most} MiB this model reads one",
            "loras",
        )
    return LoraSource(named.name, found.where, named.unet, found)


def _control(use: ControlUse, job: ImageJob, assets: Sequence[Asset]) -> Control:
    for index in use.maps:
        height, width = assets[index].shape[:2]
        if (height, width) != (job.height, job.width):
            raise InvalidRequest(
                f"the control map {use.type!r} is {width}x{height} pixels; it must have the "
                f"image's size, {job.width}x{job.height}",
                "controls",
            )
    shape = (job.height, job.width, 3)
    maps = tuple(_array(assets[index], shape, "controls") for index in use.maps)
    return Control(use.type, maps, use.conditioning_scale, use.start, use.end)


def _source(job: ImageJob, assets: Sequence[Asset]) -> Source | None:
    if job.image is None:
        return None
    pixels = _array(assets[job.image], (job.height, job.width, 3), "image")
    if job.mask is None:
        return Source(pixels)
    return Source(pixels, _array(assets[job.mask], (job.height, job.width), "mask"))


def _no_step(steps: int, strength: float) -> str:
    """Why a strength is refused, and what would be enough."""
    ways = []
    least = math.ceil(1000 / steps) / 1000
    if least < 1:
        ways.append(f"strength must be at least {least:g}")
    enough = next((n for n in range(1, MAX_STEPS + 1) if real_steps(n, strength)), None)
    if enough is not None:
        ways.append(f"num_inference_steps must be at least {enough}")
    text = f"strength {strength:g} of {steps} steps leaves no step"
    return f"{text}; {', or '.join(ways) or 'both must be higher'}"


def _array(asset: Asset, shape: tuple[int, ...], param: str) -> NDArray[np.uint8]:
    if asset.shape != shape or asset.dtype != np.uint8:
        raise InvalidRequest(
            f"{param} is an array of {asset.shape} {asset.dtype}; {shape} uint8 is needed", param
        )
    return np.asarray(asset, dtype=np.uint8)


def _check_size(job: ImageJob, limits: Limits) -> None:
    allowed = (
        f"each side must be a multiple of {LATENT_SCALE} from {limits.min_side} to "
        f"{limits.max_side} pixels, and the area at most {limits.max_pixels} pixels"
    )
    sides = (job.width, job.height)
    if any(side % LATENT_SCALE for side in sides) or not size_allowed(limits, *sides):
        raise InvalidRequest(f"size {job.width}x{job.height} is not allowed: {allowed}", "size")


def _loras(job: ImageJob, config: ModelUserConfig) -> dict[Named, float]:
    """Adapters and their weights; of a video both kinds go to the motion UNet."""
    unet = "unet" if job.num_frames is None else "motion_unet"
    loras: dict[Named, float] = {}
    for param, asked, known, root in (
        ("loras", job.loras, config.loras, config.loras_from),
        ("motion_loras", job.motion_loras, config.motion_loras, None),
    ):
        if len(asked) > config.limits.max_loras:
            raise InvalidRequest(
                f"{len(asked)} {param} asked for; this model mixes at most "
                f"{config.limits.max_loras}",
                param,
            )
        for lora in asked:
            source = known.get(lora.name)
            if source is None and (root is None or not NAME.fullmatch(lora.name)):
                raise _unknown(param, lora.name, known, root)
            named = Named(lora.name, unet, source)
            if named in loras:
                raise InvalidRequest(f"{param} {lora.name!r} is named twice", param)
            loras[named] = lora.weight
    return loras


def _unknown(param: str, name: str, known: Collection[str], root: str | None) -> NotFound:
    """`root`: where it was looked for, beside those that are `known`."""
    has = ", ".join(sorted(known)) or "none"
    if root is None:
        return NotFound(f"{param} {name!r} does not exist; this model has: {has}", param)
    return NotFound(
        f"{param} {name!r} does not exist; this model has: {has}, and others that are looked for "
        f"by name ({NAMES})",
        param,
    )
