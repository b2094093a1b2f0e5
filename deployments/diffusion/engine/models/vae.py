"""A model's VAE: pictures to latents and back, in a precision that holds them."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from torch import Tensor

from configs.app import Dtype, VaeArgs
from configs.sources import fetch, published
from deployments.diffusion.engine.models.checkpoints.fitness import check_vae
from deployments.diffusion.engine.models.checkpoints.header import WrongFile, read_header
from deployments.diffusion.engine.models.checkpoints.identity import identify
from deployments.diffusion.engine.models.checkpoints.single_file import read_vae_part
from deployments.diffusion.engine.policy.spec import LATENT_SCALE

TORCH_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


AMPERE = (8, 0)  # compute capability from which a GPU computes in bfloat16
TILE = 32  # latent pixels a side of what is decoded at once where memory is short


class Posterior(NamedTuple):
    """What an encoded picture may have been drawn from: (B, C, h, w) each."""

    mean: Tensor
    std: Tensor


class Vae:
    """An autoencoder with its latents' scale, as the diffusers pipelines apply it.

    Args:
        model: on its device, in the dtype it is to compute in.
    """

    def __init__(self, model: AutoencoderKL | AutoencoderTiny) -> None:
        self.model = model
        if isinstance(model, AutoencoderKL):
            # diffusers' tiles are as large as the pictures that the VAE was trained on.
            model.tile_latent_min_size, model.tile_sample_min_size = TILE, TILE * LATENT_SCALE
        config = model.config
        self._factor = float(config.scaling_factor)
        mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
        self._mean = self._std = None
        if mean is not None and std is not None:
            self._mean = torch.tensor(mean).view(1, -1, 1, 1).to(model.device)
            self._std = torch.tensor(std).view(1, -1, 1, 1).to(model.device)

    @property
    def dtype(self) -> torch.dtype:
        """What it computes in."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def latent_channels(self) -> int:
        """Channels of its latents."""
        return int(self.model.config.latent_channels)

    def posterior(self, pixels: Tensor) -> Posterior:
        """Encodes (B, 3, height, width) in [-1, 1]; to be drawn from, then scaled."""
        drawn_from = self.model.encode(pixels.to(self.dtype)).latent_dist
        return Posterior(drawn_from.mean, drawn_from.std)

    def scaled(self, latents: Tensor) -> Tensor:
        """Latents as the VAE draws them to those that a UNet denoises."""
        if self._mean is None or self._std is None:
            return latents * self._factor
        return (latents - self._mean.to(latents)) * self._factor / self._std.to(latents)

    def decode(self, latents: Tensor, *, tiled: bool = False) -> Tensor:
        """(B, C, h, w) latents that a UNet denoised to (B, 3, height, width) in [-1, 1].

        Args:
            tiled: in overlapping tiles, for less memory; seams are blended.
        """
        latents = latents.to(self.dtype)
        if self._mean is None or self._std is None:
            latents = latents / self._factor
        else:
            latents = latents * self._std.to(latents) / self._factor + self._mean.to(latents)
        decode = self.model.tiled_decode if tiled and self.can_tile else self.model.decode
        images: Tensor = decode(latents, return_dict=False)[0]
        return images

    @property
    def can_tile(self) -> bool:
        """Whether `tiled` makes a difference."""
        return isinstance(self.model, AutoencoderKL)


def read_vae(
    args: VaeArgs,
    checkpoint: Path,
    variant: str | None,
    dtype: torch.dtype,
    device: torch.device,
    *,
    configs: Path | None = None,
) -> AutoencoderKL:
    """A model's VAE, on the CPU, in the precision that it is to compute in.

    Args:
        checkpoint: whose VAE it is if `args` names no other: a diffusers folder or a single file.
        dtype: of the UNet beside it.
        device: where it will run.
        configs: with a checkpoint in a single file: the diffusers folder that describes it.

    Raises `WrongFile` naming `vae` if a single file is none that fits.
    """
    path = checkpoint if args.source is None else fetch(args.source, variant=variant)
    if path.is_file():
        described = checkpoint if configs is None else configs
        config = AutoencoderKL.load_config(described, subfolder="vae", local_files_only=True)
        chosen = safe_dtype(args.dtype, dtype, device, half_overflows=overflows(config))
        try:
            check_vae(identify(read_header(path)))
            return read_vae_part(path, config, chosen)
        except WrongFile as error:
            raise WrongFile(f"vae {path.name}: {error}") from error
    subfolder = "vae" if (path / "vae").is_dir() else None
    config = AutoencoderKL.load_config(path, subfolder=subfolder, local_files_only=True)
    _check_class(config, "AutoencoderKL", "vae", args.source or str(checkpoint))
    chosen = safe_dtype(args.dtype, dtype, device, half_overflows=overflows(config))
    return AutoencoderKL.from_pretrained(
        path,
        subfolder=subfolder,
        torch_dtype=chosen,
        variant=published(path / (subfolder or ""), variant),
        use_safetensors=True,
        local_files_only=True,
    )


def read_preview_vae(source: str, vae: AutoencoderKL, dtype: torch.dtype) -> AutoencoderTiny:
    """A tiny autoencoder that decodes the latents of `vae`, on the CPU.

    Raises `ValueError` naming `preview_vae` if it is of another kind or of other latents.
    """
    path = fetch(source)
    config = AutoencoderTiny.load_config(path, local_files_only=True)
    _check_class(config, "AutoencoderTiny", "preview_vae", source)
    tiny = AutoencoderTiny.from_pretrained(
        path, torch_dtype=dtype, use_safetensors=True, local_files_only=True
    )
    channels, scale = int(tiny.config.latent_channels), len(tiny.config.decoder_block_out_channels)
    needed, size = int(vae.config.latent_channels), len(vae.config.block_out_channels)
    if (channels, scale) != (needed, size):
        raise ValueError(
            f"preview_vae {source}: its latents have {channels} channels and "
            f"1/{2 ** (scale - 1)} of the side; the model's have {needed} and 1/{2 ** (size - 1)}"
        )
    return tiny


def _check_class(config: Mapping[str, object], wanted: str, key: str, source: str) -> None:
    found = config.get("_class_name")
    if found != wanted:
        raise ValueError(f"{key} {source}: it is a {found}; {wanted} is needed")


def overflows(config: Mapping[str, object]) -> bool:
    """Whether a VAE's own configuration says that half precision overflows. Those of SD 1.5 and
    2.1 say nothing, which diffusers reads as yes; they are safe."""
    return bool(config.get("force_upcast", False))


def safe_dtype(
    asked: Dtype | None, dtype: torch.dtype, device: torch.device, *, half_overflows: bool
) -> torch.dtype:
    """What a VAE is to compute in beside a UNet of `dtype` (see `VaeArgs.dtype`)."""
    if asked is not None:
        return TORCH_DTYPES[asked]
    if dtype is not torch.float16 or not half_overflows:
        return dtype
    if device.type == "cuda" and torch.cuda.get_device_capability(device) >= AMPERE:
        return torch.bfloat16
    return torch.float32
