"""The time that models spend in their forwards, measured inside a pipeline's own run."""

from collections.abc import Sequence
from time import perf_counter
from types import TracebackType
from typing import Self

from torch import nn
from torch.utils.hooks import RemovableHandle


class Forwards:
    """Adds up the forwards of some models while it is entered; none may be inside another.

    Attributes:
        seconds: the sum so far; may be set back.
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        self.seconds = 0.0
        self._models = models
        self._started = 0.0
        self._hooks: list[RemovableHandle] = []

    def __enter__(self) -> Self:
        for model in self._models:
            self._hooks.append(model.register_forward_pre_hook(self._start))
            self._hooks.append(model.register_forward_hook(self._stop))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()

    def _start(self, *_: object) -> None:
        self._started = perf_counter()

    def _stop(self, *_: object) -> None:
        self.seconds += perf_counter() - self._started
