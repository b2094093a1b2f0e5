"""Style adapters from disk: changes by layer, read by name, each scaled by its own alpha / rank.

Everything happens on the CPU and no model is touched: reading does not disturb the steps.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deployments.diffusion.engine.adapters.changes import Change
from deployments.diffusion.engine.adapters.contents import Contents, check_finite
from deployments.diffusion.engine.adapters.files import LoraError, LoraFile, lora_file, read_file
from deployments.diffusion.engine.adapters.kinds import PIECE

__all__ = ["LoraError", "LoraReader", "LoraWeights", "lora_file"]


@dataclass(frozen=True)
class LoraWeights:
    """An adapter's numbers.

    Attributes:
        flat: (n,), all numbers of all layers, so that one copy takes them to a device.
        layers: views of `flat`, by model (each of the checkpoint, maybe without layers) and by
            module name.
    """

    flat: Tensor
    layers: dict[str, dict[str, Change]]

    @property
    def nbytes(self) -> int:
        """The size of its numbers."""
        return self.flat.nbytes

    def to(self, device: torch.device, non_blocking: bool = False) -> "LoraWeights":
        """The same on a device."""
        flat = self.flat.to(device, non_blocking=non_blocking)

        def there(view: Tensor) -> Tensor:
            return flat.as_strided(view.shape, view.stride(), view.storage_offset())

        layers = {
            model: {name: change.mapped(there) for name, change in layers.items()}
            for model, layers in self.layers.items()
        }
        return LoraWeights(flat, layers)


class LoraReader:
    """Reads adapters for one checkpoint, on the CPU. Several threads may read at once.

    Args:
        models: by name: "unet", "text_encoder", for sdxl "text_encoder_2", and "motion_unet"
            where there is one. Only names and shapes of their layers are kept.
        dtype: of what `read` returns.
        words: of the models' textual inversions.
        pin: whether that is in pinned memory, for a GPU.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        dtype: torch.dtype,
        *,
        words: Collection[str] = (),
        pin: bool = False,
    ) -> None:
        self._contents = Contents(models, words)
        self._models = tuple(models)
        self._dtype = dtype
        self._pin = pin

    def read(self, path: Path, unet: str = "unet") -> LoraWeights:
        """Reads an adapter from a safetensors file, or a folder with one. Raises `LoraError`."""
        return self.make(read_file(path), unet)

    def make(self, file: LoraFile, unet: str = "unet") -> LoraWeights:
        """Makes an adapter of its file.

        Args:
            unet: which UNet it goes to, "unet" or "motion_unet".

        Raises `LoraError` for anything but an adapter of this family, of a known kind, whose
        numbers are finite in the reader's dtype.
        """
        changes = self._contents.of(file, unet)
        tensors = {place: _tensors(change) for place, change in changes.items()}
        places = sorted(changes, key=lambda place: _unaligned(tensors[place]))
        sizes = [tensor.numel() for place in places for tensor in tensors[place]]
        flat = torch.empty(sum(sizes), dtype=self._dtype, pin_memory=self._pin)
        slices = iter(flat.split(sizes))

        def written(source: Tensor) -> Tensor:
            target: Tensor = next(slices).view(source.shape)
            _write(source, target)
            return target

        layers: dict[str, dict[str, Change]] = {model: {} for model in self._models}
        for place in places:
            layers[place.model][place.module] = changes.pop(place).mapped(written)
        check_finite(flat, file)
        return LoraWeights(flat, layers)


def _tensors(change: Change) -> list[Tensor]:
    """In the order of `Change.mapped`."""
    found: list[Tensor] = []

    def seen(tensor: Tensor) -> Tensor:
        found.append(tensor)
        return tensor

    change.mapped(seen)
    return found


def _unaligned(tensors: Sequence[Tensor]) -> bool:
    """Whether what stands behind them starts at an odd address: such layers come last."""
    return any(tensor.numel() % 8 for tensor in tensors)


def _write(source: Tensor, target: Tensor) -> None:
    """Copies numbers, rounded once, in pieces that torch does on one thread."""
    if source.is_contiguous():
        pieces = zip(source.view(-1).split(PIECE), target.view(-1).split(PIECE), strict=True)
        for piece, to in pieces:
            to.copy_(piece)
    elif source.dtype == target.dtype:
        target.copy_(source)  # transposed: torch does this block by block, on one thread
    else:
        rows = max(1, PIECE // source.shape[0])
        for piece, to in zip(source.split(rows, 1), target.split(rows, 1), strict=True):
            to.copy_(piece)
