"""Trains the motion adapter on moving scenes, and motion LoRAs on a moving camera.

The base held fast, its frames learn to agree: noise prediction of eight frames at once.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import MotionAdapter, UNetMotionModel
from diffusers.models.attention_processor import AttnProcessor
from numpy.typing import NDArray
from torch import Tensor, nn

from demo.lora import ATTENTION
from demo.motion import MAX_FRAMES
from demo.train.data import said
from demo.train.diffusion import CAPTION_DROPOUT, noise_loss, noised
from demo.train.folders import save_halves
from demo.train.loop import Task
from demo.train.lora import ADAPTER, add_lora, fill, lora_matrices
from demo.train.model import Base
from demo.train.noise import Schedule
from demo.unet import NORM_GROUPS
from demo.world.camera import CameraMotion, filmed
from demo.world.caption import caption
from demo.world.look import draw_look, moved
from demo.world.renderer import draw
from demo.world.scene import draw_scene

FRAMES = 8
STILL = 0.25  # of the videos show a resting scene
PAIRS = 0.3
LEAN = 3.0  # whither something moves is decided in the first, noisiest steps
LORA_RANK = 16
MOTION_LAYERS = tuple(f"attn{n}{ending}" for n in (1, 2) for ending in ATTENTION)


@dataclass(frozen=True)
class VideoLatents:
    """Training videos as the autoencoder sees them.

    Attributes:
        latents: (n, 8, 4, 8, 8), of unit deviation.
        ids: (n, 1, 77) token ids of their captions.
    """

    latents: Tensor
    ids: Tensor


def moving_video(index: int) -> tuple[NDArray[np.uint8], str]:
    """The training video of this number, (8, 64, 64, 3), and its caption."""
    rng = np.random.default_rng([7, index])
    scene = draw_scene(rng, pairs=PAIRS, moving=rng.random() >= STILL)
    look = draw_look(scene, rng)
    looks = [moved(look, scene.motion, phase) for phase in np.linspace(0, 1, FRAMES).tolist()]
    return np.stack([draw(scene, look).pixels for look in looks]), caption(scene, said(rng))


def camera_video(
    camera: CameraMotion, strength: float, index: int
) -> tuple[NDArray[np.uint8], str]:
    """A resting scene seen by a moving camera."""
    rng = np.random.default_rng([8, index])
    scene = draw_scene(rng, pairs=PAIRS)
    look = draw_look(scene, rng)
    return filmed(camera, scene, look, FRAMES, strength), caption(scene, said(rng))


def motion_unet(base: Base, adapter: MotionAdapter | None = None) -> UNetMotionModel:
    """The base's UNet with motion modules: those of `adapter`, or new ones."""
    if adapter is None:
        config = base.unet.config
        adapter = MotionAdapter(
            block_out_channels=config.block_out_channels,
            motion_layers_per_block=config.layers_per_block,
            motion_num_attention_heads=8,
            motion_norm_num_groups=NORM_GROUPS,
            motion_max_seq_length=MAX_FRAMES,
            use_motion_mid_block=True,
        )
        for name, parameter in adapter.named_parameters():
            if "proj_out" in name:  # so that it begins by changing nothing
                nn.init.zeros_(parameter)
    unet: UNetMotionModel = UNetMotionModel.from_unet2d(base.unet, adapter)
    unet.set_attn_processor(AttnProcessor())
    return unet


class MotionTask(Task):
    """Noise prediction of videos by the motion modules; with `rank`, by a LoRA on them.

    Args:
        videos: by the weight that the LoRA has beside them; a batch is of one.
    """

    def __init__(
        self,
        base: Base,
        unet: UNetMotionModel,
        videos: Mapping[float, VideoLatents],
        batch_size: int,
        rank: int = 0,
    ) -> None:
        self.base, self.batch_size = base.requires_grad_(False), batch_size
        self.videos, self.unet, self.rank = list(videos.items()), unet, rank
        self.device = base.unet.device
        self.schedule = Schedule(self.device, ndim=5)
        if rank:
            layers = [
                name
                for name, module in unet.named_modules()
                if isinstance(module, nn.Linear)
                and "motion_modules" in name
                and name.endswith(MOTION_LAYERS)
            ]
            add_lora(unet, rank, tuple(layers))
        else:
            unet.freeze_unet2d_params()
        self.trained = nn.ModuleDict({"unet": unet})

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch."""
        which = int(torch.randint(len(self.videos), (1,), generator=generator))
        weight, data = self.videos[which]
        if self.rank:
            self.unet.set_adapters(ADAPTER, weight)
        index = torch.randint(len(data.latents), (self.batch_size,), generator=generator)
        x0 = data.latents[index].to(self.device).float()
        ids = data.ids[index].to(self.device)
        dropped = torch.rand(len(x0), generator=generator) < CAPTION_DROPOUT
        batch = noised(x0, self.schedule, generator, LEAN)
        with torch.no_grad():
            conditioning = self.base.encode(ids, dropped.to(self.device))
        predicted = self.unet(
            batch.x.transpose(1, 2),
            batch.t,
            encoder_hidden_states=conditioning.states.repeat_interleave(FRAMES, 0),
        ).sample
        return noise_loss(predicted.float().transpose(1, 2), batch, self.schedule)


def save_motion_adapter(unet: UNetMotionModel, folder: Path) -> None:
    """Write the motion modules in half precision, as a `MotionAdapter`."""
    config = unet.config
    adapter = MotionAdapter(
        block_out_channels=config.block_out_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_num_attention_heads=8,
        motion_norm_num_groups=NORM_GROUPS,
        motion_max_seq_length=MAX_FRAMES,
        use_motion_mid_block=True,
    )
    trained = unet.state_dict()
    adapter.load_state_dict({key: trained[key].cpu() for key in adapter.state_dict()})
    adapter.half().save_pretrained(folder)


def save_motion_lora(unet: UNetMotionModel, file: Path) -> None:
    """Write the LoRA in half precision, keyed as in guoyww/animatediff-motion-lora-zoom-in."""
    save_halves(_lora_tensors(unet), file)


def load_motion_lora(unet: UNetMotionModel, file: Path) -> None:
    """Fill the LoRA with one that `save_motion_lora` wrote.

    Raises ValueError if that has other layers or another rank.
    """
    fill(_lora_tensors(unet), file)


def _lora_tensors(unet: UNetMotionModel) -> dict[str, Tensor]:
    """The LoRA's own tensors, by their names in a file."""
    tensors: dict[str, Tensor] = {}
    for layer, (down, up) in sorted(lora_matrices(unet).items()):
        attention, projection = layer.removesuffix(".0").rsplit(".", 1)
        key = f"unet.{attention}.processor.{projection}_lora"
        tensors[f"{key}.down.weight"], tensors[f"{key}.up.weight"] = down, up
    return tensors
