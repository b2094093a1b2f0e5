"""A replica of the model whose engine breaks when it is told to."""

from typing import Any, NoReturn

from deployments.diffusion.deployment import Diffusion
from graphs.model import DIFFUSION


class Breaking(Diffusion):
    """The same, with a switch."""

    async def break_down(self) -> None:
        """The next step of any row finds the device gone."""

        def gone(*_: Any, **__: Any) -> NoReturn:
            raise RuntimeError("the device is gone")

        self._engine.components.unet.forward = gone


BREAKING = DIFFUSION.options().func_or_class and DIFFUSION
