"""What steers rows beside their prompts: ControlNets and the IP-Adapter, row by row.

A row that names no net gets zeros where the others get residuals; a row without an image
prompt gets nothing added in the attention layers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.models.attention_processor import Attention, IPAdapterAttnProcessor2_0
from diffusers.models.embeddings import ImageProjection
from safetensors.torch import load_file
from torch import Tensor, nn

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


class ControlNets:
    """The ControlNets of a model, by type."""

    def __init__(self, nets: Mapping[str, ControlNetModel]) -> None:
        self._nets = nets

    @property
    def types(self) -> frozenset[str]:
        """The types that requests may name."""
        return frozenset(self._nets)

    def residuals(
        self, call: UNetInput, controls: Sequence[Sequence[RowControl]]
    ) -> Residuals | None:
        """Runs each net on the rows that name it. `controls`: one sequence per row.

        Returns `None` if no row is controlled in this step.
        """
        total: Residuals | None = None
        for kind in sorted({c.type for row in controls for c in row if c.scale > 0}):
            chosen = [
                (index, control)
                for index, row in enumerate(controls)
                for control in row
                if control.type == kind and control.scale > 0
            ]
            rows = torch.tensor([index for index, _ in chosen], device=call.sample.device)
            down, mid = self._nets[kind](
                call.sample[rows],
                call.timesteps[rows],
                encoder_hidden_states=call.hidden[rows],
                controlnet_cond=torch.stack([control.map for _, control in chosen]),
                added_cond_kwargs=_rows(call.added, rows),
                return_dict=False,
            )
            scales = torch.tensor([control.scale for _, control in chosen], dtype=mid.dtype)
            scales = scales.to(mid.device).view(-1, 1, 1, 1)
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
    return None if added is None else {name: tensor[rows] for name, tensor in added.items()}


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
        if attention_mask is not None or temb is not None:
            raise ValueError("masks and time embeddings are not used by cross-attention here")
        query = _heads(attn, attn.to_q(hidden_states))
        key = _heads(attn, attn.to_k(encoder_hidden_states))
        value = _heads(attn, attn.to_v(encoder_hidden_states))
        out = _joined(F.scaled_dot_product_attention(query, key, value))
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
class RowPrompt:
    """A row's image prompt: (tokens, width), and its scale."""

    tokens: Tensor
    scale: float


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

    def set_rows(self, rows: Sequence[RowPrompt | None]) -> None:
        """One image prompt per row of the call, or none."""
        given = [row for row in rows if row is not None]
        if not given:
            self.seen = None
            return
        like = given[0].tokens
        length = max(len(row.tokens) for row in given)
        tokens = like.new_zeros(len(rows), length, like.shape[1])
        mask = torch.zeros(len(rows), 1, 1, length, dtype=torch.bool)
        for index, row in enumerate(rows):
            # A row without tokens sees one zero token at scale 0: softmax needs something.
            count = 1 if row is None else len(row.tokens)
            mask[index, ..., :count] = True
            if row is not None:
                tokens[index, :count] = row.tokens
        scales = torch.tensor([0.0 if row is None else row.scale for row in rows])
        scales = scales.to(like).view(-1, 1, 1)
        self.seen = _Seen(tokens, scales, mask.to(like.device))


class IpAdapter:
    """An IP-Adapter on a UNet.

    Args:
        unet: its cross-attention layers are given `RowAttention`.
        file: safetensors in the layout of h94/IP-Adapter (`image_proj.*`, `ip_adapter.*`).

    Attributes:
        plus: it reads the encoder's last but one states, (tokens, width), instead of the
            projected embedding, (width,).
        embeds_width: that width.
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
        self.plus = not isinstance(self.project, ImageProjection)
        first = next(layer for layer in self.project.modules() if isinstance(layer, nn.Linear))
        self.embeds_width = int(first.in_features)
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

    def tokens(self, embeds: Tensor) -> Tensor:
        """Image tokens of a row: (images, ...) embeddings to (images * tokens, width)."""
        projected: Tensor = self.project(embeds)
        return projected.flatten(0, 1)
