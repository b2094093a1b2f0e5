"""A base model in training: its UNet and text encoders, from token ids to the predicted noise."""

from typing import Literal, NamedTuple

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, PreTrainedModel

from demo.text_encoder import text_config
from demo.tokenizer import train as vocabulary
from demo.train.text import Tokenizers
from demo.unet import LATENT_CHANNELS, sd15_unet, sd21_unet, sdxl_unet
from demo.world.renderer import SIDE

LATENT_SIDE = SIDE // 8
SCALE = 2  # of the stand-ins' widths


class TextShape(NamedTuple):
    """A text encoder: OpenAI's CLIP, or OpenCLIP's, which pads with its token 0."""

    kind: Literal["clip", "openclip"]
    width: int
    layers: int


TEXT_SHAPES = {
    "sd15": (TextShape("clip", 64, 2),),
    "sd21": (TextShape("openclip", 64, 2),),
    "sdxl": (TextShape("clip", 32, 2), TextShape("openclip", 64, 3)),  # the last is left out
}


class Conditioning(NamedTuple):
    """What the UNet hears of the captions.

    Attributes:
        states: (B, 77, width).
        pooled: (B, width of the second encoder) for sdxl.
        enlarged: how many times larger the pictures are than they were, for sdxl.
    """

    states: Tensor
    pooled: Tensor | None
    enlarged: int = 1


class Base(nn.Module):
    """UNet and text encoders of `family`, sd15, sd21 or sdxl, under the names of their folders."""

    def __init__(
        self, family: str, *, scale: int = SCALE, in_channels: int = LATENT_CHANNELS
    ) -> None:
        super().__init__()
        self.empty: Tensor
        self.text_encoder_2: CLIPTextModelWithProjection
        self.family = family
        shapes = TEXT_SHAPES[family]
        configs = [
            text_config(
                width=shape.width,
                layers=shape.layers,
                hidden_act="quick_gelu" if shape.kind == "clip" else "gelu",
                pad_token_id=vocabulary().eos_token_id if shape.kind == "clip" else 0,
                projection_dim=shape.width,
            )
            for shape in shapes
        ]
        self.text_encoder = CLIPTextModel(configs[0])
        self.unet: UNet2DConditionModel
        if family == "sdxl":
            self.text_encoder_2 = CLIPTextModelWithProjection(configs[1])
            width, pooled = sum(shape.width for shape in shapes), shapes[1].width
            self.unet = sdxl_unet(width, pooled, scale, in_channels)
        else:
            unet = sd15_unet if family == "sd15" else sd21_unet
            self.unet = unet(shapes[0].width, scale, in_channels)
        side = 2 * LATENT_SIDE if family == "sdxl" else LATENT_SIDE
        self.unet.register_to_config(sample_size=side)
        # On a CPU torch's fused attention is slow in bfloat16.
        self.unet.set_attn_processor(AttnProcessor())
        for encoder in self.text_encoders.values():
            encoder.set_attn_implementation("eager")
        empty = Tokenizers(family)([""])
        self.register_buffer("empty", empty, persistent=False)

    @property
    def text_encoders(self) -> dict[str, PreTrainedModel]:
        """By the names of their folders."""
        modules = dict(self.named_children())
        return {name: m for name, m in modules.items() if isinstance(m, PreTrainedModel)}

    def encode(self, ids: Tensor, dropped: Tensor | None = None) -> Conditioning:
        """Of token ids (B, encoders, 77); rows that are `dropped` (B,) become unconditional.

        Unconditional is zeros for sdxl and the empty caption for others, as the pipelines have it.
        """
        if self.family != "sdxl":
            if dropped is not None:
                ids = self.emptied(ids, dropped)
            return Conditioning(self.text_encoder(ids[:, 0]).last_hidden_state, None)
        first = self.text_encoder(ids[:, 0], output_hidden_states=True)
        second = self.text_encoder_2(ids[:, 1], output_hidden_states=True)
        states = torch.cat([first.hidden_states[-2], second.hidden_states[-2]], dim=-1)
        pooled: Tensor = second.text_embeds
        if dropped is not None:
            states = states.masked_fill(dropped[:, None, None], 0)
            pooled = pooled.masked_fill(dropped[:, None], 0)
        return Conditioning(states, pooled)

    def emptied(self, ids: Tensor, dropped: Tensor) -> Tensor:
        """Token ids (B, encoders, 77), of an empty caption in the rows that are `dropped` (B,)."""
        return torch.where(dropped[:, None, None], self.empty.to(ids), ids)

    def unconditional(self, count: int) -> Conditioning:
        """Of `count` rows."""
        dropped = torch.ones(count, dtype=torch.bool, device=self.unet.device)
        return self.encode(self.empty.expand(count, -1, -1), dropped)

    def noise(
        self,
        x: Tensor,
        t: Tensor,
        conditioning: Conditioning,
        down: list[Tensor] | None = None,
        mid: Tensor | None = None,
    ) -> Tensor:
        """The predicted noise (B, 4, 8, 8) at x_t; `down` and `mid` are a ControlNet's."""
        predicted: Tensor = self.unet(
            x,
            t,
            encoder_hidden_states=conditioning.states,
            added_cond_kwargs=added(conditioning, x),
            down_block_additional_residuals=None if down is None else tuple(down),
            mid_block_additional_residual=mid,
        ).sample
        return predicted.float()

    def guided(self, x: Tensor, t: Tensor, conditioning: Conditioning, scale: Tensor) -> Tensor:
        """Classifier-free guidance by `scale` (B, 1, 1, 1)."""
        nothing = self.unconditional(len(x))
        both = Conditioning(
            torch.cat([nothing.states, conditioning.states]),
            None
            if nothing.pooled is None or conditioning.pooled is None
            else torch.cat([nothing.pooled, conditioning.pooled]),
            conditioning.enlarged,
        )
        without, with_it = self.noise(x.repeat(2, 1, 1, 1), t.repeat(2), both).chunk(2)
        return without + scale * (with_it - without)


def added(conditioning: Conditioning, x: Tensor) -> dict[str, Tensor] | None:
    """`added_cond_kwargs` of an sdxl UNet for latents `x`, None for others."""
    if conditioning.pooled is None:
        return None
    pooled = conditioning.pooled
    target = [float(8 * side) for side in x.shape[-2:]]
    original = [side / conditioning.enlarged for side in target]
    ids = [*original, 0.0, 0.0, *target]
    time_ids = torch.tensor([ids], device=pooled.device).expand(len(pooled), -1)
    return {"text_embeds": pooled, "time_ids": time_ids}
