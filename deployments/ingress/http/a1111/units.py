"""Units of the ControlNet extension: controls, and pictures to resemble."""

import re
from collections.abc import Collection, Sequence

from deployments.contracts.errors import InvalidRequest, NotFound
from deployments.contracts.jobs import Control, ImageInput, IpAdapter
from deployments.ingress.http.a1111.bodies import NONE, UNITS, ControlUnit
from deployments.ingress.http.a1111.pictures import picture

PREPROCESSORS = ("depth", "canny")
RESEMBLING = "ip-adapter"
MODULES = ("none", *PREPROCESSORS, RESEMBLING)
OF_FACES = ("face", "pulid", "instant")
LEVELS = 255


def conditions(
    units: Sequence[ControlUnit], own: ImageInput | None, types: Collection[str]
) -> tuple[tuple[Control, ...], IpAdapter | None]:
    """What units ask for.

    Args:
        own: the picture that a unit without one takes; `None`: it needs one.
        types: of the model's controls.

    Raises `InvalidRequest` or `NotFound`.
    """
    controls: list[Control] = []
    resembled: IpAdapter | None = None
    for index, unit in enumerate(units):
        place = f"{UNITS}.{index}"
        if unit.empty:
            continue
        pictures: tuple[ImageInput, ...] = tuple(picture(one.image) for one in unit.image)
        if not pictures and own is not None:
            pictures = (own,)
        if not pictures:
            raise InvalidRequest(f"{place}.image is required", f"{place}.image")
        kind = module_kind(unit.module, f"{place}.module")
        if kind != RESEMBLING:
            controls.append(_control(unit, kind, pictures, types, place))
        elif resembled is not None:
            raise InvalidRequest(f"{place}: one unit may have an {RESEMBLING} module", place)
        else:
            resembled = IpAdapter(pictures, unit.weight)
    return tuple(controls), resembled


def module_kind(module: str, place: str) -> str | None:
    """What a module makes of a picture; `None`: nothing. Raises `InvalidRequest` for one that is
    not here."""
    name = module.lower()
    if name in NONE:
        return None
    if name.startswith(RESEMBLING) and not any(word in name for word in OF_FACES):
        return RESEMBLING
    for kind in PREPROCESSORS:
        if name.startswith(kind):
            return kind
    raise InvalidRequest(
        f"{place}: there is no module {module!r} here; modules: {', '.join(MODULES)}", place
    )


def thresholds(low: float, high: float) -> tuple[int | None, int | None]:
    """Canny's, as the extension reads them: outside their range they are the usual ones."""

    def level(value: float) -> int | None:
        return round(value) if 0 <= value <= LEVELS else None

    return level(low), level(high)


def _control(
    unit: ControlUnit,
    kind: str | None,
    pictures: Sequence[ImageInput],
    types: Collection[str],
    place: str,
) -> Control:
    if len(pictures) > 1:
        raise InvalidRequest(f"{place}.image: a control has one picture", f"{place}.image")
    named = _type(unit.model, kind, types, f"{place}.model")
    if kind not in (None, named):
        raise InvalidRequest(
            f"{place}.module: {unit.module!r} makes no maps for the model {named!r}",
            f"{place}.module",
        )
    low, high = thresholds(unit.threshold_a, unit.threshold_b)
    return Control(
        named,
        pictures[0],
        preprocessed=kind is None,
        conditioning_scale=unit.weight,
        start=unit.guidance_start,
        end=unit.guidance_end,
        low_threshold=low if kind == "canny" else None,
        high_threshold=high if kind == "canny" else None,
    )


def _type(model: str, kind: str | None, types: Collection[str], place: str) -> str:
    """The type of control that a unit's model means: the one that it names, or has among its words,
    as `control_v11f1p_sd15_depth [cfd03158]` has. Without a model, the module's."""
    if model.lower() in NONE and kind is not None:
        return kind
    words = re.split(r"[^a-z0-9]+", model.lower())
    found = [one for one in types if one == model] or [one for one in types if one in words]
    if len(found) == 1:
        return found[0]
    known = ", ".join(sorted(types)) or "none"
    raise NotFound(f"{place}: {model!r} is no control of this model; it has: {known}", place)
