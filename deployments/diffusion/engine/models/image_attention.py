"""Attention to pictures beside the prompt, row by row: what IP-Adapters add to a UNet.

A row that sees no picture gets nothing added, and takes no part in the computation.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from deployments.diffusion.engine.models.ip_adapter import CrossAttention


class _Beside(NamedTuple):
    """What some rows of a call see in one layer. `counted` hides the padding of fewer tokens."""

    rows: Tensor  # (S,), each once
    keys: Tensor  # (S, tokens, width)
    values: Tensor  # (S, tokens, width)
    counted: Tensor  # (S, 1, 1, tokens), True where a token counts
    weights: Tensor  # (S, pixels, 1)


class RowAttention:
    """Attention to the prompt and to pictures: diffusers' `IPAdapterAttnProcessor2_0` for rows that
    see different ones.

    Attributes:
        beside: the first pictures that rows of the current call see, the second ones, and so on.
    """

    def __init__(self) -> None:
        self.beside: tuple[_Beside, ...] = ()

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """As any attention processor of a cross-attention layer of these UNets."""
        if temb is not None:
            raise ValueError("time embeddings are not used by cross-attention here")
        mask = None if attention_mask is None else attention_mask[:, None]  # (B, 1, 1, tokens)
        query = _heads(attn, attn.to_q(hidden_states))
        key = _heads(attn, attn.to_k(encoder_hidden_states))
        value = _heads(attn, attn.to_v(encoder_hidden_states))
        out = _joined(F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
        for one in self.beside:
            image = F.scaled_dot_product_attention(
                query.index_select(0, one.rows),
                _heads(attn, one.keys),
                _heads(attn, one.values),
                attn_mask=one.counted,
            )
            out = out.index_add(0, one.rows, one.weights * _joined(image))
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected / float(attn.rescale_output_factor)


def _heads(attn: Attention, x: Tensor) -> Tensor:
    """(B, n, heads * d) to (B, heads, n, d)."""
    batch, length, width = x.shape
    return x.view(batch, length, attn.heads, width // attn.heads).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """(B, heads, n, d) to (B, n, heads * d)."""
    return x.transpose(1, 2).flatten(-2)


@dataclass(frozen=True, eq=False)
class Seen:
    """What a row sees by one IP-Adapter.

    Attributes:
        keys_values: (tokens, width), as `IpAdapter.keys_values` makes them.
        weights: how strongly it acts at each pixel: of each level of the UNet, (pixels,).
    """

    keys_values: Tensor
    weights: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Sight:
    """What some rows of a call see, one `Seen` each.

    Attributes:
        indices: those rows.
        rows, counts: (S,) on the device: the same, and how many tokens each sees.
    """

    indices: tuple[int, ...]
    seen: tuple[Seen, ...]
    rows: Tensor
    counts: Tensor

    def is_same(self, other: "Sight") -> bool:
        """Whether the same rows see the same tensors, not merely equal ones."""
        same = all(a is b for a, b in zip(self.seen, other.seen, strict=False))
        return self.indices == other.indices and same


class ImageAttention:
    """A UNet's attention to pictures. Told before each call what the rows of the call see.

    Args:
        unet: its cross-attention layers are given `RowAttention`.
        layers: the `cross_attentions` of the UNet that the adapters were made for: `unet` itself,
            or the one of which it is a copy with more layers.
    """

    def __init__(
        self, unet: UNet2DConditionModel | UNetMotionModel, layers: Sequence[CrossAttention]
    ) -> None:
        self.layers = tuple(layers)
        self._attentions = [RowAttention() for _ in self.layers]
        self._sights: tuple[Sight, ...] = ()
        processors = unet.attn_processors
        for layer, attention in zip(self.layers, self._attentions, strict=True):
            processors[layer.processor] = attention
        unet.set_attn_processor(processors)

    @property
    def levels(self) -> int:
        """How many sizes the latents have on their way through the UNet."""
        return 1 + max(layer.level for layer in self.layers)

    @property
    def in_use(self) -> bool:
        """Whether a row of the current call sees anything."""
        return bool(self._sights)

    def show(self, sights: Sequence[Sight]) -> None:
        """What rows see first, second, and so on; a row is in each of them at most once."""
        known = len(sights) == len(self._sights)
        if known and all(a.is_same(b) for a, b in zip(sights, self._sights, strict=True)):
            return
        self._sights = tuple(sights)
        beside = [self._of_layers(sight) for sight in sights]
        for index, attention in enumerate(self._attentions):
            attention.beside = tuple(one[index] for one in beside)

    def _of_layers(self, sight: Sight) -> list[_Beside]:
        keys_values = nn.utils.rnn.pad_sequence(
            [seen.keys_values for seen in sight.seen], batch_first=True
        )
        places = torch.arange(keys_values.shape[1], device=keys_values.device)
        counted = (places < sight.counts[:, None])[:, None, None, :]
        by_level = zip(*(seen.weights for seen in sight.seen), strict=True)
        weights = [torch.stack(level)[:, :, None] for level in by_level]
        rows = sight.rows.long()
        widths = [width for layer in self.layers for width in (layer.width, layer.width)]
        parts = keys_values.split(widths, dim=-1)
        return [
            _Beside(rows, keys, values, counted, weights[layer.level])
            for layer, keys, values in zip(self.layers, parts[::2], parts[1::2], strict=True)
        ]
