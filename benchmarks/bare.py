"""The yardstick: diffusers' own pipeline, one request after the other."""

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.models import Model
from benchmarks.pipeline import fused_pipeline
from deployments.contracts.jobs import ImageJob, Pixels


class BarePipeline:
    """A checkpoint as the guide uses it: TCD-LoRA fused, styles as adapters set per request."""

    def __init__(self, model: Model) -> None:
        self._pipe = fused_pipeline(model.checkpoint, str(model.tcd_lora))
        self._sources = model.loras
        self._loaded = False

    @property
    def unet(self) -> nn.Module:
        """The UNet alone, with what is attached to it."""
        unet: nn.Module = self._pipe.unet
        return unet

    @property
    def text_width(self) -> int:
        """Width of the text embeddings that the UNet attends to."""
        return int(self._pipe.unet.config.cross_attention_dim)

    def load_styles(self) -> None:
        """Attaches every style adapter, switched off."""
        for name, source in self._sources.items():
            self._pipe.load_lora_weights(source, adapter_name=name)
        self._loaded = True
        self._pipe.disable_lora()

    def weigh(self, weights: dict[str, float]) -> None:
        """Switches the named adapters on, each with one weight, and all others off."""
        if weights:
            self._pipe.enable_lora()
            self._pipe.set_adapters(list(weights), list(weights.values()))
        elif self._loaded:
            self._pipe.disable_lora()

    def image(self, job: ImageJob) -> Pixels:
        """The first image of a job."""
        self.weigh({lora.name: lora.weight for lora in job.loras})
        generator = torch.Generator().manual_seed(job.seeds[0])
        image = self._pipe(
            prompt=job.prompt,
            negative_prompt=job.negative_prompt,
            height=job.height,
            width=job.width,
            num_inference_steps=job.num_inference_steps,
            eta=job.eta,
            guidance_scale=job.guidance_scale,
            generator=generator,
        ).images[0]
        return np.asarray(image)


def unet_inputs(pipeline: BarePipeline, rows: int, side: int) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, a vector of timesteps and text embeddings, as the engine's UNet calls have."""
    source = torch.Generator().manual_seed(rows)
    latents = torch.randn(rows, 4, side // 8, side // 8, generator=source)
    timesteps = torch.linspace(999, 19, rows).long()
    text = torch.randn(rows, 77, pipeline.text_width, generator=source)
    return latents, timesteps, text
