"""Style adapters from disk: matrices by layer, read by name, each scaled by its own alpha / rank.

Everything happens on the CPU and no model is touched: reading does not disturb the steps.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from deployments.diffusion.engine.adapters.files import LoraError, LoraFile, lora_file, read_file
from deployments.diffusion.engine.adapters.pairs import Pair, Pairs, check_finite

__all__ = ["LoraError", "LoraReader", "LoraWeights", "LowRank", "lora_file"]

# torch spreads what is larger over threads, and waits for them: on busy cores that is tens of
# times slower than one thread (10 to 20 s, not 0.3, for a full SDXL adapter on two cores).
_PIECE = 32767


@dataclass(frozen=True)
class LowRank:
    """One layer's change: W + weight * up.T @ down.

    Attributes:
        down: (rank, in) of a linear layer, (rank, in, kh, kw) of a convolution.
        up: (rank, out), transposed; alpha / rank is in it.
    """

    down: Tensor
    up: Tensor


@dataclass(frozen=True)
class LoraWeights:
    """An adapter's matrices.

    Attributes:
        flat: (n,), all numbers of all layers, so that one copy takes them to a device.
        layers: views of `flat`, by model (each of the checkpoint, maybe without layers) and by
            module name.
    """

    flat: Tensor
    layers: dict[str, dict[str, LowRank]]

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
            model: {name: LowRank(there(one.down), there(one.up)) for name, one in layers.items()}
            for model, layers in self.layers.items()
        }
        return LoraWeights(flat, layers)


class LoraReader:
    """Reads adapters for one checkpoint, on the CPU. Several threads may read at once.

    Args:
        models: by name: "unet", "text_encoder", for sdxl "text_encoder_2", and "motion_unet"
            where there is one. Only names and shapes of their layers are kept.
        dtype: of what `read` returns.
        pin: whether that is in pinned memory, for a GPU.
    """

    def __init__(
        self, models: Mapping[str, nn.Module], dtype: torch.dtype, *, pin: bool = False
    ) -> None:
        self._pairs = Pairs(models)
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

        Raises `LoraError` for anything but a plain LoRA of this family whose numbers are finite
        in the reader's dtype.
        """
        pairs = sorted(self._pairs.of(file, unet), key=_unaligned)
        sizes = [matrix.numel() for pair in pairs for matrix in (pair.down, pair.up)]
        flat = torch.empty(sum(sizes), dtype=self._dtype, pin_memory=self._pin)
        slices = iter(flat.split(sizes))
        layers: dict[str, dict[str, LowRank]] = {model: {} for model in self._models}
        for pair in pairs:
            down = next(slices).view(pair.down.shape)
            up = next(slices).view(pair.up.shape[::-1])
            _write(pair.down.flatten(1), down.flatten(1))
            _write_transposed(pair.up, pair.scale, up)
            layers[pair.place.model][pair.place.module] = LowRank(down, up)
        check_finite(flat, file)
        return LoraWeights(flat, layers)


def _unaligned(pair: Pair) -> bool:
    """Whether what stands behind its matrices starts at an odd address: such pairs come last."""
    return pair.down.numel() % 8 != 0 or pair.up.numel() % 8 != 0


def _write(source: Tensor, target: Tensor, scale: float = 1.0) -> None:
    """target = scale * source, (n, m) both, rounded once."""
    rows = max(1, _PIECE // source.shape[1])
    for piece, to in zip(source.split(rows), target.split(rows), strict=True):
        if scale == 1:
            to.copy_(piece)
        else:
            torch.mul(piece if piece.dtype == to.dtype else piece.float(), scale, out=to)


def _write_transposed(source: Tensor, scale: float, target: Tensor) -> None:
    """target = scale * source.T, (n, m) and (m, n), rounded once."""
    if source.dtype != target.dtype:
        _write(source, target.t(), scale)
        return
    target.copy_(source.t())  # torch does this block by block, on one thread
    if scale != 1:
        for piece in target.view(-1).split(_PIECE):
            piece.mul_(scale)
