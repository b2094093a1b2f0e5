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
        hidden: (B, tokens, width) prompt embeddings.
        added: sdxl's pooled embeddings and numbers.
        heeded: (B, tokens), 1 where a row has a token, 0 behind its last; `None`: all have as many.
    """

    sample: Tensor
    timesteps: Tensor
    hidden: Tensor
    added: AddedConditions
    heeded: Tensor | None = None


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
    """A net, rows that it acts on with their maps, and where their numbers are staged. All their
    prompts have so many tokens: ControlNets take no mask."""

    net: ControlNetModel
    tokens: int
    maps: tuple[Tensor, ...]
    rows: int
    scales: int


class ControlPlan:
    """Which nets act on which rows in a step. Made before the step's numbers are uploaded.

    Args:
        nets: the model's ControlNets, by type.
        controls: of each row of the call, those in force.
        tokens: of each row's prompt.
    """

    def __init__(
        self,
        nets: Mapping[str, ControlNetModel],
        controls: Sequence[Sequence[RowControl]],
        tokens: Sequence[int],
        numbers: Numbers,
    ) -> None:
        groups: dict[tuple[str, int], list[tuple[int, RowControl]]] = {}
        for index, row in enumerate(controls):
            for control in row:
                if control.scale > 0:
                    groups.setdefault((control.type, tokens[index]), []).append((index, control))
        self._uses = [
            _Use(
                nets[kind],
                length,
                tuple(control.map for _, control in chosen),
                numbers.put([index for index, _ in chosen]),
                numbers.put([control.scale for _, control in chosen]),
            )
            for (kind, length), chosen in sorted(groups.items(), key=lambda group: group[0])
        ]

    def residuals(self, call: UNetInput, numbers: Numbers) -> Residuals | None:
        """Runs each net on its rows. `None` if no row is controlled in this step."""
        total: Residuals | None = None
        for use in self._uses:
            rows = numbers[use.rows].long()
            down, mid = use.net(
                call.sample.index_select(0, rows),
                call.timesteps.index_select(0, rows),
                encoder_hidden_states=call.hidden[:, : use.tokens].index_select(0, rows),
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
