"""What models are called by those who ask for them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import SystemRandom
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from configs.frozen import Frozen

ModelName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", max_length=64)]
Alias = Annotated[str, Field(min_length=1, max_length=100)]
Weight = Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]


def _shared(target: object) -> object:
    return {target: 1.0} if isinstance(target, str) else target


Shares = Annotated[
    dict[ModelName, Weight], Field(min_length=1, max_length=16), BeforeValidator(_shared)
]


class NamesConfig(Frozen):
    """`user_config` of `Directory`: names that change while everything runs on.

    Attributes:
        aliases, default_model: as in `ServiceArgs`, of which they replace those that they name.
    """

    aliases: dict[Alias, Shares] = Field({})
    default_model: ModelName | None = None

    @model_validator(mode="after")
    def _name_models(self) -> "NamesConfig":
        check_aliases(self.aliases)
        return self


@dataclass(frozen=True)
class Names:
    """All names of models beside their own.

    Attributes:
        aliases: the models that each stands for, with the weight of each.
        default_model: of a request that names none; `None`: it must.
    """

    aliases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    default_model: str | None = None

    def changed(self, config: NamesConfig) -> "Names":
        """With what `config` says. Raises `ValueError` for an alias of an alias."""
        aliases = {**self.aliases, **config.aliases}
        check_aliases(aliases)
        return Names(aliases, config.default_model or self.default_model)

    def shares(self, name: str | None) -> Mapping[str, float]:
        """The models that a request means, with their weights; without any, if it names none and
        there is no default."""
        name = self.default_model if name is None else name
        return {} if name is None else self.aliases.get(name, {name: 1.0})

    def by_weight(self, name: str | None) -> Sequence[str]:
        """These models, the one first that most requests go to."""
        shares = self.shares(name)
        return sorted(shares, key=lambda model: shares[model], reverse=True)

    def main(self, name: str | None) -> str | None:
        """The first of these."""
        return next(iter(self.by_weight(name)), None)

    def drawn(self, name: str | None, *may: Callable[[str], bool]) -> str | None:
        """One of these at random, as the weights say; of those alone that `may` be, if there are
        such, the first condition before the others."""
        shares = self.shares(name)
        models: Sequence[str] = list(shares)
        for fits in may:
            models = [model for model in models if fits(model)] or models
        if len(models) < 2:
            return next(iter(models), None)
        return SystemRandom().choices(models, [shares[model] for model in models])[0]


def check_aliases(aliases: Mapping[str, Mapping[str, float]]) -> None:
    """Raises `ValueError` for an alias of an alias: what a request meant once, it means again."""
    for alias, models in aliases.items():
        for model in models:
            if model in aliases:
                raise ValueError(f"the alias {alias!r} names {model!r}, which is an alias itself")
