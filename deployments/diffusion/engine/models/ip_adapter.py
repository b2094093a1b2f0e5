"""The IP-Adapter on a UNet: its projections of pictures, and attention to them row by row.

A row without an image prompt gets nothing added in the attention layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection
from safetensors.torch import load_file
from torch import Tensor, nn

from deployments.diffusion.engine.policy.capabilities import ImageEmbeds


class RowAttention(nn.Module):
    """Attention with an image prompt per row: diffusers' `IPAdapterAttnProcessor2_0`, with one
    scale per row and rows of different numbers of tokens.

    Args:
        to_k, to_v: the IP-Adapter's projections of this layer.
        prompts: what the rows of the current call see; shared by all layers.
    """

    def __init__(self, to_k: nn.Linear, to_v: nn.Linear, prompts: "ImagePrompts") -> None:
        super().__init__()
        self.to_k_ip = to_k
        self.to_v_ip = to_v
        self._prompts = prompts

    def forward(
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
        seen = self._prompts.seen
        if seen is not None:
            key = _heads(attn, self.to_k_ip(seen.tokens))
            value = _heads(attn, self.to_v_ip(seen.tokens))
            image = _joined(F.scaled_dot_product_attention(query, key, value, attn_mask=seen.mask))
            out = out + seen.scales * image
        projected: Tensor = attn.to_out[1](attn.to_out[0](out))
        return projected / float(attn.rescale_output_factor)


def _heads(attn: Attention, x: Tensor) -> Tensor:
    """(B, n, heads * d) to (B, heads, n, d)."""
    batch, length, width = x.shape
    return x.view(batch, length, attn.heads, width // attn.heads).transpose(1, 2)


def _joined(x: Tensor) -> Tensor:
    """(B, heads, n, d) to (B, n, heads * d)."""
    return x.transpose(1, 2).flatten(-2)


@dataclass(frozen=True)
class _Seen:
    """The image prompts of a call. `mask` hides the padding of shorter rows."""

    tokens: Tensor  # (B, tokens, width)
    scales: Tensor  # (B, 1, 1)
    mask: Tensor  # (B, 1, 1, tokens), True where a token counts


class ImagePrompts:
    """What the rows of the current call see. Set before each call of the UNet."""

    def __init__(self) -> None:
        self.seen: _Seen | None = None
        self._tokens: Tensor | None = None
        self._rows: tuple[Tensor | None, ...] = ()

    def set_rows(self, rows: Sequence[Tensor | None], counts: Tensor, scales: Tensor) -> None:
        """One image prompt per row of the call, or none.

        Args:
            rows: (tokens, width) image tokens of each row.
            counts: (B,) how many tokens a row sees; 1 for a row without: softmax needs something.
            scales: (B,) how strongly they act; 0 for a row without.
        """
        given = [row for row in rows if row is not None]
        if not given:
            self.seen, self._tokens, self._rows = None, None, ()
            return
        if self._tokens is None or not _same(self._rows, rows):
            self._tokens, self._rows = _padded(rows, given[0]), tuple(rows)
        places = torch.arange(self._tokens.shape[1], device=counts.device)
        mask = (places < counts[:, None])[:, None, None, :]
        self.seen = _Seen(self._tokens, scales.to(self._tokens.dtype).view(-1, 1, 1), mask)


def _same(some: Sequence[Tensor | None], others: Sequence[Tensor | None]) -> bool:
    """Whether they are the same tensors, not merely equal ones."""
    return len(some) == len(others) and all(a is b for a, b in zip(some, others, strict=True))


def _padded(rows: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """(B, tokens, width): each row's tokens, and zeros behind them."""
    length = max(len(row) for row in rows if row is not None)
    tokens = like.new_zeros(len(rows), length, like.shape[1])
    for index, row in enumerate(rows):
        if row is not None:
            tokens[index, : len(row)] = row
    return tokens


class IpAdapter:
    """An IP-Adapter on a UNet.

    Args:
        unet: its cross-attention layers are given `RowAttention`.
        file: safetensors in the layout of h94/IP-Adapter (`image_proj.*`, `ip_adapter.*`).

    Attributes:
        reads: which embeddings of a picture it reads.
    """

    def __init__(self, unet: UNet2DConditionModel, file: Path) -> None:
        tensors = load_file(file)
        parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
        for name, tensor in tensors.items():
            part, _, rest = name.partition(".")
            if part not in parts:
                raise ValueError(f"{file.name} is not an IP-Adapter: unexpected tensor {name}")
            parts[part][rest] = tensor
        unet._load_ip_adapter_weights([parts])
        self.project = unet.encoder_hid_proj.image_projection_layers[0].eval()
        first = next(layer for layer in self.project.modules() if isinstance(layer, nn.Linear))
        hidden = not isinstance(self.project, ImageProjection)
        self.reads = ImageEmbeds(hidden, int(first.in_features))
        unet.encoder_hid_proj = None
        unet.config.encoder_hid_dim_type = None
        self.prompts = ImagePrompts()
        processors = unet.attn_processors
        for name, processor in processors.items():
            if isinstance(processor, IPAdapterAttnProcessor2_0):
                (to_k,), (to_v,) = processor.to_k_ip, processor.to_v_ip
                processors[name] = RowAttention(to_k, to_v, self.prompts)
        unet.set_attn_processor(processors)
        unet.requires_grad_(False)

    def to(self, device: torch.device) -> "IpAdapter":
        """Brings the projection to a device; what the UNet holds of it goes with the UNet."""
        self.project.to(device)
        return self

    def tokens(self, embeds: Tensor) -> Tensor:
        """Image tokens of a row: (images, ...) embeddings to (images * tokens, width)."""
        projected: Tensor = self.project(embeds)
        return projected.flatten(0, 1)
