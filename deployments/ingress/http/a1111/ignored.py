"""What becomes of the fields that do not act here: passed over, named as ignored, or refused.

A field at a value that asks for nothing is passed over. So is one that only says more about
something that is off, or how A1111 keeps house.
"""

from collections.abc import Collection, Iterator, Mapping

from deployments.contracts.errors import MAX_QUOTED, InvalidRequest
from deployments.ingress.http.a1111.bodies import (
    UNITS,
    ControlUnit,
    Img2ImgBody,
    ProcessingBody,
    UnitPicture,
)

SAMPLER = "TCD"
SCHEDULERS = ("Automatic", "automatic")
UNASKED: Collection[object] = (None, False, 0, -1, "", "None", "none", [], {})
USUAL: Mapping[str, Collection[object]] = {
    "sampler_name": (SAMPLER,),
    "sampler_index": (SAMPLER,),
    "scheduler": SCHEDULERS,
    "s_noise": (1,),
    "initial_noise_multiplier": (1,),
}
SILENT = frozenset(
    (
        *("comments", "force_task_id", "override_settings_restore_afterwards"),
        *("seed_enable_extras", "subseed", "script_args", "refiner_switch_at"),
        *("image_cfg_scale", "include_init_images", "denoising_strength"),
        *("inpaint_full_res_padding", "mask_round"),
    )
)
SILENT_PREFIXES = ("hr_", "firstphase_", "do_not_save_")
OF_MASKS = frozenset(("mask_blur", "mask_blur_x", "mask_blur_y", "inpaint_full_res"))
REFUSED: Mapping[str, str] = {
    "enable_hr": "no second pass is made here; ask for the size itself",
    "tiling": "no seamless pictures are made here",
    "subseed_strength": "no variations between two seeds are made here",
    "refiner_checkpoint": "no second model takes over here",
    "script_name": "there are no scripts here",
    "infotext": "is not read; send the fields themselves",
    "firstpass_image": "no second pass is made here",
    "latent_mask": "send it as mask",
    "resize_mode": "pictures are resized as a whole (0); crop or fill them before",
}
USUAL_SETTINGS: Mapping[str, Collection[object]] = {
    "sd_vae": ("Automatic",),
    "samples_format": ("png",),
}
USUAL_OF_UNITS: Mapping[str, Collection[object]] = {
    "control_mode": ("Balanced", ["Balanced"]),
    "resize_mode": ("Just Resize",),
}
SILENT_OF_UNITS = frozenset(
    (
        *("guidance", "input_image", "low_vram", "lowvram", "pixel_perfect", "hr_option"),
        *("save_detected_map", "is_ui", "input_mode", "output_dir", "inpaint_crop_input_image"),
        *("threshold_a", "threshold_b", "pulid_mode"),
    )
)


def ignored(body: ProcessingBody) -> list[str]:
    """The fields that were sent, are understood, and change nothing. Raises `InvalidRequest` for
    one that asks for what is not made here."""
    _refuse(body)
    names = [name for name, value in body.others.items() if _named(name, value, body)]
    if isinstance(body, Img2ImgBody) and body.mask and body.inpainting_fill in (0, 2, 3):
        names.append("inpainting_fill")
    settings = _unusual(body.override_settings.others, USUAL_SETTINGS)
    names += [f"override_settings.{name}" for name in settings]
    for index, unit in enumerate(body.units):
        if not unit.empty:
            names += [f"{UNITS}.{index}.{name}" for name in _of_unit(unit)]
    return [name[:MAX_QUOTED] for name in names]


def _refuse(body: ProcessingBody) -> None:
    for name, reason in REFUSED.items():
        if body.others.get(name) not in UNASKED:
            raise InvalidRequest(f"{name}: {reason}", name)
    for name, script in body.alwayson_scripts.others.items():
        if _acts(script):
            place = f"alwayson_scripts.{name[:MAX_QUOTED]}"
            raise InvalidRequest(f"{place}: there is no such script here; controlnet is", place)


def _acts(script: object) -> bool:
    """Whether an extension is switched on, as far as extensions have this in common: the first of
    its `args` says so."""
    args = script.get("args") if isinstance(script, dict) else script
    return (args[:1] not in ([], [False])) if isinstance(args, list) else args not in UNASKED


def _named(name: str, value: object, body: ProcessingBody) -> bool:
    if name in SILENT or name in REFUSED or name.startswith(SILENT_PREFIXES):
        return False
    if name in OF_MASKS and not (isinstance(body, Img2ImgBody) and body.mask):
        return False
    return value not in UNASKED and value not in USUAL.get(name, ())


def _unusual(
    others: Mapping[str, object], usual: Mapping[str, Collection[object]]
) -> Iterator[str]:
    for name, value in others.items():
        if value not in UNASKED and value not in usual.get(name, ()):
            yield name


def _of_unit(unit: ControlUnit) -> Iterator[str]:
    for name in _unusual(unit.others, USUAL_OF_UNITS):
        if name not in SILENT_OF_UNITS:
            yield name
    if any(_masked(picture) for picture in unit.image):
        yield "image.mask"


def _masked(picture: UnitPicture) -> bool:
    return picture.others.get("mask") not in (*UNASKED, [None])
