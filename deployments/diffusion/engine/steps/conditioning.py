"""What steers rows beside their prompts and the UNet's own inputs: ControlNets, row by row.

A row that names no net gets zeros where the others get residuals.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from diffusers import ControlNetModel
from torch import Tensor

from deployments.diffusion.engine.steps.staging import Numbers

AddedConditions = dict[str, Tensor] | None


@dataclass(frozen=True)
class UNetInput:
    """One call of the UNet: every tensor has one row per row of the call.

    Attributes:
        sample: (B, 4, h, w) latents.
        timesteps: (B,).
        hidden: (B, 77, width) prompt embeddings.
        added: sdxl's pooled embeddings and numbers.
    """

    sample: Tensor
    timesteps: Tensor
    hidden: Tensor
    added: AddedConditions


@dataclass(frozen=True)
class RowControl:
    """A control map on the device, (3, height, width) in [0, 1], and its scale in this step."""

    type: str
    map: Tensor
    scale: float


@dataclass(frozen=True)
class Residuals:
    """What ControlNets add to the UNet: per down block, and in the middle."""

    down: list[Tensor]
    mid: Tensor


@dataclass(frozen=True)
class _Use:
    """A net, the rows that it acts on with their maps, and where their numbers are staged."""

    net: ControlNetModel
    maps: tuple[Tensor, ...]
    rows: int
    scales: int


class ControlPlan:
    """Which nets act on which rows in a step. Made before the step's numbers are uploaded.

    Args:
        nets: the model's ControlNets, by type.
        controls: of each row of the call, those in force.
    """

    def __init__(
        self,
        nets: Mapping[str, ControlNetModel],
        controls: Sequence[Sequence[RowControl]],
        numbers: Numbers,
    ) -> None:
        self._uses: list[_Use] = []
        for kind in sorted({c.type for row in controls for c in row if c.scale > 0}):
            chosen = [
                (index, control)
                for index, row in enumerate(controls)
                for control in row
                if control.type == kind and control.scale > 0
            ]
            self._uses.append(
                _Use(
                    nets[kind],
                    tuple(control.map for _, control in chosen),
                    numbers.put([index for index, _ in chosen]),
                    numbers.put([control.scale for _, control in chosen]),
                )
            )

    def residuals(self, call: UNetInput, numbers: Numbers) -> Residuals | None:
        """Runs each net on its rows. `None` if no row is controlled in this step."""
        total: Residuals | None = None
        for use in self._uses:
            rows = numbers[use.rows].long()
            down, mid = use.net(
                call.sample.index_select(0, rows),
                call.timesteps.index_select(0, rows),
                encoder_hidden_states=call.hidden.index_select(0, rows),
                controlnet_cond=torch.stack(use.maps),
                added_cond_kwargs=_rows(call.added, rows),
                return_dict=False,
            )
            scales = numbers[use.scales].to(mid.dtype).view(-1, 1, 1, 1)
            if total is None:
                count = len(call.sample)
                total = Residuals(
                    [t.new_zeros(count, *t.shape[1:]) for t in down],
                    mid.new_zeros(count, *mid.shape[1:]),
                )
            for sum_, part in zip([*total.down, total.mid], [*down, mid], strict=True):
                sum_.index_add_(0, rows, part * scales)
        return total


def _rows(added: AddedConditions, rows: Tensor) -> AddedConditions:
    if added is None:
        return None
    return {name: tensor.index_select(0, rows) for name, tensor in added.items()}
