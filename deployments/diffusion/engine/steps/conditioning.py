"""What steers rows beside their prompts and the UNet's own inputs: controls, row by row.

A row that names none gets zeros where the others get residuals.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deployments.diffusion.engine.models.controls.controls import Controls
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
    """What a control has of its map, on the device, and its scale in this step.

    Attributes:
        seen: a ControlNet's map alone, (3, height, width) in [0, 1]; or a T2I-Adapter's features,
            (C, h, w) at each level.
    """

    type: str
    seen: tuple[Tensor, ...]
    scale: float


@dataclass(frozen=True)
class Residuals:
    """What controls add to the UNet, each (B, C, h, w).

    Attributes:
        down, mid: ControlNets: behind each layer of the down blocks, and in the middle; `None`: no
            net acts.
        inside: T2I-Adapters: within the down blocks; `None`: no adapter acts.
    """

    down: list[Tensor] | None
    mid: Tensor | None
    inside: list[Tensor] | None


Chosen = list[tuple[int, RowControl]]  # rows of a call by number, with a control of each


class _Part:
    """A network's part in a step: what it sees for each of its rows, and where the numbers of these
    rows are staged."""

    def __init__(self, chosen: Chosen, numbers: Numbers) -> None:
        self._seen = tuple(control.seen for _, control in chosen)
        self._rows = numbers.put([index for index, _ in chosen])
        self._scales = numbers.put([control.scale for _, control in chosen])

    def stacked(self) -> list[Tensor]:
        """All that it sees, (rows, ...) each."""
        return [torch.stack(tensors) for tensors in zip(*self._seen, strict=True)]

    def rows(self, numbers: Numbers) -> Tensor:
        """Its rows' indexes in the call."""
        return numbers[self._rows].long()

    def placed(self, parts: Sequence[Tensor], count: int, numbers: Numbers) -> list[Tensor]:
        """What its rows get, by their scales, among the `count` rows of the call."""
        rows, scales = self.rows(numbers), numbers[self._scales].view(-1, 1, 1, 1)
        zeros = [part.new_zeros(count, *part.shape[1:]) for part in parts]
        for all_, part in zip(zeros, parts, strict=True):
            all_.index_add_(0, rows, part * scales.to(part.dtype))
        return zeros


class _NetPart(_Part):
    """A ControlNet's. The prompts of its rows have `tokens` tokens each: it takes no mask."""

    def __init__(self, known: Controls, tokens: int, chosen: Chosen, numbers: Numbers) -> None:
        super().__init__(chosen, numbers)
        nets = [known.nets[control.type] for _, control in chosen]
        self._net, self._tokens = nets[0].net, tokens
        self._modes: tuple[int, int] | None = None
        modes = [net.mode for net in nets if net.mode is not None]
        if modes:
            table = torch.eye(int(self._net.config.num_control_type))
            self._modes = numbers.put(modes), numbers.put(table[modes])

    def run(self, call: UNetInput, numbers: Numbers) -> list[Tensor]:
        """What it says of its rows: behind each layer of the down blocks, and in the middle."""
        rows, (maps,) = self.rows(numbers), self.stacked()
        given: dict[str, object] = {"controlnet_cond": maps}
        if self._modes is not None:
            modes, among_all = (numbers[place] for place in self._modes)
            # As if the map of one image: of each row its own mode's embedding is taken.
            given = {
                "controlnet_cond": [maps],
                "control_type": among_all,
                "control_type_idx": [modes.long()],
            }
        down, mid = self._net(
            call.sample.index_select(0, rows),
            call.timesteps.index_select(0, rows),
            encoder_hidden_states=call.hidden[:, : self._tokens].index_select(0, rows),
            added_cond_kwargs=_rows(call.added, rows),
            return_dict=False,
            **given,
        )
        return [*down, mid]


class ControlPlan:
    """Which controls act on which rows in a step. Made before the step's numbers are uploaded.

    A row that names several modes of a ControlNet-Union counts as several rows of that net.

    Args:
        known: the model's controls.
        controls: of each row of the call, those in force.
        tokens: of each row's prompt.
        twins: from which row on they are the unconditional twins of others. A net that pools its
            maps leaves these alone, as diffusers has it.
    """

    def __init__(
        self,
        known: Controls,
        controls: Sequence[Sequence[RowControl]],
        tokens: Sequence[int],
        twins: int,
        numbers: Numbers,
    ) -> None:
        nets: dict[tuple[str, int], Chosen] = {}
        adapters: dict[str, Chosen] = {}
        for index, row in enumerate(controls):
            for control in row:
                if control.scale <= 0:
                    continue
                if control.type in known.adapters:
                    adapters.setdefault(control.type, []).append((index, control))
                    continue
                kind = known.nets[control.type]
                if index < twins or not kind.net.config.global_pool_conditions:
                    nets.setdefault((kind.source, tokens[index]), []).append((index, control))
        self._nets = [
            _NetPart(known, length, nets[source, length], numbers)
            for source, length in sorted(nets)
        ]
        self._adapters = [_Part(adapters[kind], numbers) for kind in sorted(adapters)]

    def residuals(self, call: UNetInput, numbers: Numbers) -> Residuals | None:
        """Runs each net on its rows. `None` if no row is controlled in this step."""
        count = len(call.sample)
        outside = [part.placed(part.run(call, numbers), count, numbers) for part in self._nets]
        inside = [part.placed(part.stacked(), count, numbers) for part in self._adapters]
        if not outside and not inside:
            return None
        down: list[Tensor] | None = None
        mid: Tensor | None = None
        if outside:
            *down, mid = _summed(outside)
        return Residuals(down, mid, _summed(inside) if inside else None)


def _summed(parts: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """What all of them add, place by place."""
    total, *others = parts
    for other in others:
        total = [sum_ + more for sum_, more in zip(total, other, strict=True)]
    return list(total)


def _rows(added: AddedConditions, rows: Tensor) -> AddedConditions:
    if added is None:
        return None
    return {name: tensor.index_select(0, rows) for name, tensor in added.items()}
