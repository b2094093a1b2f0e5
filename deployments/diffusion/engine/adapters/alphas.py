"""The alphas that stand beside an adapter's tensors: in its header (diffusers) or in
`adapter_config.json` (PEFT)."""

from collections.abc import Iterator, Mapping
from math import sqrt

import regex
from pydantic import AliasChoices, BaseModel, Field, TypeAdapter

from deployments.diffusion.engine.adapters.names import Place

DIFFUSERS_METADATA = "lora_adapter_metadata"
PATTERN_S = 0.1  # for one look at a layer's name: files come from strangers
_FIELDS = TypeAdapter(dict[str, object])


class _Config(BaseModel):
    """What matters here of PEFT's LoraConfig, LoHaConfig and LoKrConfig. Ranks are those of the
    tensors, where they show one."""

    lora_alpha: float | None = Field(None, validation_alias=AliasChoices("lora_alpha", "alpha"))
    r: int | None = Field(None, gt=0)
    alpha_pattern: dict[str, float] = Field(default_factory=dict)
    use_rslora: bool = False


class Alphas:
    """Alphas of layers that have none among their tensors.

    Args:
        configs: fields of PEFT's LoraConfig by model; "" for the models without their own.

    Raises `ValueError` if a field that matters is not what it should be.
    """

    def __init__(self, configs: Mapping[str, Mapping[str, object]]) -> None:
        self._models = {name: _Model(_Config.model_validate(c)) for name, c in configs.items()}

    def scale(self, place: Place, rank: int | None) -> float:
        """By what a layer's change is to be multiplied: 1 where nothing is said.

        Args:
            rank: `None`: its tensors show none, but PEFT's configuration may.

        Raises `TimeoutError` if a pattern takes too long.
        """
        name = "unet" if place.model == "motion_unet" else place.model
        model = self._models.get(name, self._models.get(""))
        return 1.0 if model is None else model.scale(place.module, rank)


def recorded_alphas(described: bytes | None, header: Mapping[str, str] | None) -> Alphas:
    """What stands in a file's header and in PEFT's file beside it.

    Raises `ValueError` if that cannot be read.
    """
    configs: dict[str, dict[str, object]] = {}
    if described is not None:
        configs[""] = _FIELDS.validate_json(described)
    text = (header or {}).get(DIFFUSERS_METADATA)
    if text:
        # "unet.lora_alpha" of a pipeline's file, "lora_alpha" of one model's.
        for field, value in _FIELDS.validate_json(text).items():
            model, _, name = field.rpartition(".")
            configs.setdefault(model, {})[name] = value
    return Alphas(configs)


class _Model:
    """The alphas of one model's layers.

    A pattern stands for the layer of that name and for all whose names end in it, behind a dot;
    with "^" for the first alone. It may be a regular expression. The first that fits counts.
    """

    def __init__(self, config: _Config) -> None:
        self._config = config
        self._exact: dict[str, tuple[int, float]] = {}  # with the pattern's position
        self._ends: dict[str, tuple[int, float]] = {}
        self._others: list[tuple[regex.Pattern[str], tuple[int, float]]] = []
        for position, (pattern, alpha) in enumerate(config.alpha_pattern.items()):
            name = pattern.removeprefix("^")
            if regex.fullmatch(r"[\w.]+", name):
                kind = self._exact if pattern.startswith("^") else self._ends
                kind.setdefault(name.removeprefix("text_model."), (position, alpha))
            else:
                self._others.append((_compiled(pattern), (position, alpha)))

    def scale(self, layer: str, rank: int | None) -> float:
        alpha = min(self._matches(layer), default=(0, self._config.lora_alpha))[1]
        rank = self._config.r if rank is None else rank
        if alpha is None or rank is None:
            return 1.0
        return alpha / (sqrt(rank) if self._config.use_rslora else rank)

    def _matches(self, layer: str) -> Iterator[tuple[int, float]]:
        layer = layer.removeprefix("text_model.")
        if layer in self._exact:
            yield self._exact[layer]
        for pattern, alpha in self._others:
            if any(
                pattern.match(name, timeout=PATTERN_S, concurrent=True)
                for name in (layer, f"text_model.{layer}")
            ):
                yield alpha
        end = layer
        while end:
            if end in self._ends:
                yield self._ends[end]
            end = end.partition(".")[2]


def _compiled(pattern: str) -> regex.Pattern[str]:
    try:
        return regex.compile(rf"(.*\.)?({pattern})$")
    except regex.error as error:
        raise ValueError(f"{pattern!r} is no pattern of layers") from error
