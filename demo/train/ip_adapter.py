"""Trains an IP-Adapter: a picture's embedding as four more tokens, the base held fast."""

from pathlib import Path

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional

from demo.ip_adapter import TOKENS
from demo.train.diffusion import Data, noise_loss, noised
from demo.train.folders import save_halves
from demo.train.loop import Task
from demo.train.model import Base
from demo.train.noise import Schedule

CAPTION_DROPOUT = 0.8  # are empty instead, so that the picture is needed
PICTURE_DROPOUT = 0.1


class ImageProjection(nn.Module):
    """The embedding to tokens: `ImageProjModel` of the original, under its names."""

    def __init__(self, embedding: int, width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(embedding, TOKENS * width)
        self.norm = nn.LayerNorm(width)

    def forward(self, embeds: Tensor) -> Tensor:
        """(B, embedding) to (B, 4, width)."""
        tokens: Tensor = self.proj(embeds)
        normed: Tensor = self.norm(tokens.unflatten(1, (TOKENS, -1)))
        return normed


class PictureAttention(nn.Module):
    """Cross-attention to the words plus, by keys and values of its own, to the picture's tokens."""

    def __init__(self, inner: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(width, inner, bias=False)
        self.to_v_ip = nn.Linear(width, inner, bias=False)
        nn.init.zeros_(self.to_v_ip.weight)
        self.tokens: Tensor | None = None

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """As diffusers' `IPAdapterAttnProcessor2_0` at scale 1, for states (B, length, width)."""
        del attention_mask, temb
        assert self.tokens is not None
        query = attn.to_q(hidden_states)
        heads = attn.heads
        words = _attend(
            query, attn.to_k(encoder_hidden_states), attn.to_v(encoder_hidden_states), heads
        )
        picture = _attend(query, self.to_k_ip(self.tokens), self.to_v_ip(self.tokens), heads)
        out: Tensor = attn.to_out[0](words + picture)
        return out


def _attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    query, key, value = (x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in (query, key, value))
    return functional.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class IpAdapterTask(Task):
    """Noise prediction; four fifths of the captions and a tenth of the pictures are left out.

    Given is an embedding with each picture.
    """

    def __init__(self, base: Base, data: Data, embedding: int, batch_size: int) -> None:
        self.base, self.data, self.batch_size = base.requires_grad_(False), data, batch_size
        self.device = base.unet.device
        self.schedule = Schedule(self.device)
        width = int(base.unet.config.cross_attention_dim)
        self.projection = ImageProjection(embedding, width).to(self.device)
        processors = dict(base.unet.attn_processors)
        self.attentions: dict[int, PictureAttention] = {}
        for number, name in enumerate(processors):
            attention = name.removesuffix(".processor")
            if attention.endswith("attn2"):
                inner = base.unet.get_submodule(attention).to_k.out_features
                processors[name] = PictureAttention(inner, width).to(self.device)
                self.attentions[number] = processors[name]
        base.unet.set_attn_processor(processors)
        self.trained = nn.ModuleDict(
            {
                "image_proj": self.projection,
                "ip_adapter": nn.ModuleDict({str(n): a for n, a in self.attentions.items()}),
            }
        )

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch."""
        x0, ids, _, embeds = self.data.batch(self.batch_size, generator, self.device)
        dropped = torch.rand(len(x0), generator=generator) < CAPTION_DROPOUT
        unseen = torch.rand(len(x0), generator=generator) < PICTURE_DROPOUT
        batch = noised(x0, self.schedule, generator)
        tokens = self.projection(embeds.masked_fill(unseen[:, None].to(self.device), 0))
        for attention in self.attentions.values():
            attention.tokens = tokens
        # Beside a picture a caption is left out as a user leaves it; what guidance sets against the
        # two, nothing at all, is zeros for sdxl.
        ids = self.base.emptied(ids, dropped.to(self.device))
        with torch.no_grad():
            conditioning = self.base.encode(ids, (dropped & unseen).to(self.device))
        return noise_loss(self.base.noise(batch.x, batch.t, conditioning), batch, self.schedule)


def save_ip_adapter(task: IpAdapterTask, file: Path) -> None:
    """Write the adapter in half precision, keyed as in h94/IP-Adapter."""
    tensors = {f"image_proj.{k}": t for k, t in task.projection.state_dict().items()}
    for number, attention in task.attentions.items():
        for name in ("to_k_ip", "to_v_ip"):
            layer = attention.get_submodule(name)
            tensors[f"ip_adapter.{number}.{name}.weight"] = layer.get_parameter("weight").data
    save_halves(tensors, file)
