"""What A1111's clients send: fields that act here are typed, all others are kept by name.

Such clients send every field that there is. `ignored.py` tells what becomes of the others.
"""

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import AliasChoices, BeforeValidator, ConfigDict, Field, model_validator

from deployments.contracts.api import RANDOM, RequestBody, WireSeed
from deployments.contracts.jobs import (
    MAX_ENTRIES,
    MAX_SEEN,
    Count,
    Eta,
    Fraction,
    Guidance,
    Name,
    Scale,
    Side,
    Steps,
    Strength,
    Text,
)

ClipLayer = Annotated[
    int, Field(ge=1, le=32, description="1 is the last layer, 2 the one before it")
]
UNITS = "alwayson_scripts.controlnet.args"  # where the extension's units stand
NONE = frozenset(("none", ""))  # of modules and models of units
PICTURE = "a file in base64, a data URL, an https:// URL or an s3:// URI"


class A1111Body(RequestBody):
    """An object that may have any fields beside those that act here."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)
    MAX_FIELDS: ClassVar[int] = 128

    @property
    def others(self) -> Mapping[str, object]:
        """The fields that do not act here, as they were sent."""
        return self.model_extra or {}


class OverrideSettings(A1111Body):
    """Settings of one request."""

    sd_model_checkpoint: Name | None = Field(None, description="a title from `sd-models`")
    CLIP_stop_at_last_layers: ClipLayer | None = None


class UnitPicture(A1111Body):
    """A picture of a ControlNet unit."""

    image: str = Field(description=PICTURE)


def _pictures(sent: object) -> object:
    """Any of the shapes in which ControlNet's clients send the pictures of a unit."""
    if sent in (None, "", []):
        return []
    if isinstance(sent, list) and sent and not isinstance(sent[0], dict):
        picture, *mask = sent
        return [{"image": picture, "mask": mask}]
    listed = sent if isinstance(sent, list) else [sent]
    return [{"image": each} if isinstance(each, str) else each for each in listed]


class ControlUnit(A1111Body):
    """One unit of the ControlNet extension: a ControlNet, or with a module that begins with
    `ip-adapter`, pictures to resemble."""

    enabled: bool = True
    module: Name = Field("none", description="from `GET /controlnet/module_list`")
    model: Name = Field("None", description="from `GET /controlnet/model_list`")
    image: Annotated[
        list[UnitPicture],
        BeforeValidator(
            _pictures, json_schema_input_type=str | UnitPicture | list[UnitPicture] | None
        ),
    ] = Field(
        [],
        max_length=MAX_SEEN,
        validation_alias=AliasChoices("image", "input_image"),
        description="without, img2img takes its own picture",
    )
    weight: Scale = 1.0
    guidance_start: Fraction = 0.0
    guidance_end: Fraction = 1.0
    threshold_a: float = Field(-1, description="canny's lower threshold; outside 0-255: 100")
    threshold_b: float = Field(-1, description="canny's upper threshold; outside 0-255: 200")

    @property
    def empty(self) -> bool:
        """Whether it asks for nothing."""
        named = {self.module.lower(), self.model.lower()} - NONE
        return not self.enabled or not (self.image or named)


class ControlScript(A1111Body):
    """The ControlNet extension."""

    args: list[ControlUnit] = Field([], max_length=MAX_ENTRIES)


class Scripts(A1111Body):
    """Extensions, by name in any case."""

    controlnet: ControlScript = ControlScript()

    @model_validator(mode="before")
    @classmethod
    def _names_in_any_case(cls, sent: object) -> object:
        if not isinstance(sent, dict):
            return sent
        return {str(name).lower(): value for name, value in sent.items()}


class ProcessingBody(A1111Body):
    """What txt2img and img2img have in common. What is left out is the model's own."""

    prompt: Text = Field("", description="with weights; <lora:name:0.8> applies a style adapter")
    negative_prompt: Text = ""
    seed: WireSeed = RANDOM
    batch_size: Count = 1
    n_iter: Annotated[int, Field(ge=1, description="times batch_size")] = 1
    steps: Steps | None = None
    cfg_scale: Guidance | None = None
    width: Side | None = None
    height: Side | None = None
    eta: Eta | None = None
    clip_skip: ClipLayer | None = Field(None, description="SD.Next's CLIP_stop_at_last_layers")
    disable_extra_networks: bool = Field(False, description="tags in the prompt do not act")
    send_images: bool = True
    override_settings: OverrideSettings = OverrideSettings()
    alwayson_scripts: Scripts = Scripts()

    @property
    def count(self) -> int:
        """How many images are asked for."""
        return self.batch_size * self.n_iter

    @property
    def clip_layer(self) -> int | None:
        """A1111's clip skip, which counts from 1."""
        return self.override_settings.CLIP_stop_at_last_layers or self.clip_skip

    @property
    def units(self) -> list[ControlUnit]:
        """The units of the ControlNet extension."""
        return self.alwayson_scripts.controlnet.args


class Txt2ImgBody(ProcessingBody):
    """`POST /sdapi/v1/txt2img`."""


class Img2ImgBody(ProcessingBody):
    """`POST /sdapi/v1/img2img`."""

    init_images: list[str] = Field(min_length=1, max_length=1, description=PICTURE)
    mask: str | None = Field(None, description=PICTURE + "; white, or opaque, is made anew")
    inpainting_mask_invert: bool = Field(False, description="black is made anew")
    inpainting_fill: Annotated[int, Field(ge=0, le=3)] | None = Field(
        None, description="1: what is made anew begins as it was; ignored otherwise"
    )
    denoising_strength: Strength | None = None


class DetectBody(A1111Body):
    """`POST /controlnet/detect`."""

    controlnet_module: Name = "none"
    controlnet_input_images: list[str] = Field(
        min_length=1,
        max_length=MAX_SEEN,
        validation_alias=AliasChoices("controlnet_input_images", "controlnet_images"),
        description=PICTURE,
    )
    controlnet_threshold_a: float = -1
    controlnet_threshold_b: float = -1


class OptionsBody(A1111Body):
    """`POST /sdapi/v1/options`."""

    sd_model_checkpoint: Name | None = None
