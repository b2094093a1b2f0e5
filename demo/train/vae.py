"""Trains the autoencoder: pictures to latents of an eighth of their side, of unit deviation."""

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from demo.train.loop import Task
from demo.world.renderer import SIDE

LATENT_CHANNELS = 4
WIDTHS = (16, 32, 64, 64)
SCALING_FACTOR = 0.18215
KL_WEIGHT = 1e-6
VIVID_WEIGHT = 4.0
SQUARE_WEIGHT = 2.0
COARSENESS = (1, 4)  # pixels that are averaged before they are compared
EDGE_WEIGHT = 0.5  # of what two neighbours' difference is wrong by
CROP, CROP_TOP = 32, 12
CROP_SHARE = 0.3  # of the steps see crops
LARGE_SHARE = 0.65  # of the batches
LOG_VARIANCE = -5.0  # of the finished encoder, whose latents deviate by 1 / SCALING_FACTOR


def make_vae(widths: tuple[int, ...] = WIDTHS) -> AutoencoderKL:
    """An untrained autoencoder of Stable Diffusion's four levels."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIDE,
        scaling_factor=SCALING_FACTOR,
        force_upcast=False,
    )


def to_tensor(pixels: NDArray[np.uint8], device: torch.device) -> Tensor:
    """(n, side, side, 3) of 0 to 255 to (n, 3, side, side) of -1 to 1."""
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def to_pixels(pictures: Tensor) -> NDArray[np.uint8]:
    """The reverse of `to_tensor`, rounded and clipped."""
    values = ((pictures.float() + 1) * 127.5).round().clamp(0, 255)
    return values.permute(0, 2, 3, 1).to("cpu", torch.uint8).numpy()


class VaeTask(Task):
    """Squared and absolute error, of pixels and of the picture made coarse; edges; little KL.

    A plain mean error is small long before the colours of solids are learned, since these fill
    a tenth of a picture: so vivid pixels weigh more, the square makes wrong hues costly, and
    the first `crop_steps` steps see crops of the rows where solids are, four times as many in
    a quarter of their size.
    """

    def __init__(
        self, vae: AutoencoderKL, pixels: NDArray[np.uint8], batch_size: int, crop_steps: int
    ) -> None:
        self.vae, self.pixels, self.batch_size = vae, pixels, batch_size
        self.crop_steps, self.step = crop_steps, 0
        self.trained = nn.ModuleDict({"vae": vae})

    def losses(self, generator: torch.Generator) -> dict[str, Tensor]:
        """One batch; "l1" is in units of the full range, as `l1` below."""
        pictures = self._pictures(generator)
        latents = self.vae.encode(pictures).latent_dist
        noise = torch.randn(latents.mean.shape, generator=generator).to(self.vae.device)
        again = self.vae.decode(latents.mean + latents.std * noise).sample.float()
        error = again - pictures
        vivid = 1 + VIVID_WEIGHT * (pictures.amax(1) - pictures.amin(1))[:, None] / 2
        loss = KL_WEIGHT * latents.kl().mean()
        for size in COARSENESS:
            coarse = functional.avg_pool2d(error, size)
            weight = functional.avg_pool2d(vivid, size)
            loss = loss + (weight * (coarse.abs() + SQUARE_WEIGHT * coarse.square())).mean()
        for axis in (2, 3):
            edges = error.diff(dim=axis).abs() * vivid.narrow(axis, 1, vivid.shape[axis] - 1)
            loss = loss + EDGE_WEIGHT * edges.mean()
        return {"loss": loss, "l1": error.abs().mean() / 2, "vivid": _vivid_error(error, vivid)}

    def _pictures(self, generator: torch.Generator) -> Tensor:
        if self.step >= self.crop_steps:
            return self._whole(self.pixels, self.batch_size, generator)
        count = self.batch_size * (SIDE // CROP) ** 2
        index = torch.randint(len(self.pixels), (count,), generator=generator)
        tops = torch.randint(CROP_TOP, SIDE - CROP + 1, (count,), generator=generator)
        lefts = torch.randint(SIDE - CROP + 1, (count,), generator=generator)
        places = zip(index.tolist(), tops.tolist(), lefts.tolist(), strict=True)
        crops = [self.pixels[i, top : top + CROP, left : left + CROP] for i, top, left in places]
        return to_tensor(np.stack(crops), self.vae.device)

    def _whole(self, pixels: NDArray[np.uint8], count: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(pixels), (count,), generator=generator)
        return to_tensor(pixels[index.numpy()], self.vae.device)

    def after_step(self, step: int) -> None:
        """Crops give way to whole pictures."""
        self.step = step

    def resumed(self, step: int) -> None:
        """Likewise."""
        self.step = step


class DecoderTask(VaeTask):
    """The same with whole pictures of two sizes, mostly the larger, half as many of these."""

    def __init__(
        self,
        vae: AutoencoderKL,
        pixels: NDArray[np.uint8],
        large: NDArray[np.uint8],
        batch_size: int,
    ) -> None:
        super().__init__(vae, pixels, batch_size, 0)
        self.large = large

    def _pictures(self, generator: torch.Generator) -> Tensor:
        if torch.rand(1, generator=generator) >= LARGE_SHARE:
            return super()._pictures(generator)
        return self._whole(self.large, max(1, self.batch_size // 2), generator)


def _vivid_error(error: Tensor, vivid: Tensor) -> Tensor:
    """The mean error where the picture is vivid: that of the solids' colours."""
    there = (vivid > 1 + 0.5 * VIVID_WEIGHT).float()
    return (error.abs() * there).mean() / 2 / there.mean().clamp(min=1e-6)


@torch.no_grad()
def whiten(vae: AutoencoderKL, pixels: NDArray[np.uint8]) -> None:
    """Fold into the two 1 x 1 layers what makes the latents of `pixels` white.

    Times the scaling factor, each channel then has zero mean and unit deviation and none
    correlates with another, as a diffusion model likes them. The decoder undoes it.
    """
    latents = torch.cat([encode_mean(vae, part) for part in np.array_split(pixels, 8)])
    rows = latents.double().permute(0, 2, 3, 1).reshape(-1, LATENT_CHANNELS)
    mean = rows.mean(0)
    variances, axes = torch.linalg.eigh(torch.cov(rows.T))
    white = (axes / variances.sqrt()) @ axes.T / vae.config.scaling_factor
    encode, decode = vae.quant_conv, vae.post_quant_conv
    layer = encode.weight[:LATENT_CHANNELS, :, 0, 0].double()
    offset = white @ (encode.bias[:LATENT_CHANNELS].double() - mean)
    encode.weight[:LATENT_CHANNELS] = (white @ layer).float()[:, :, None, None]
    encode.bias[:LATENT_CHANNELS] = offset.float()
    encode.weight[LATENT_CHANNELS:] = 0
    encode.bias[LATENT_CHANNELS:] = LOG_VARIANCE
    layer = decode.weight[:, :, 0, 0].double()
    decode.bias += (layer @ mean).float()
    decode.weight.copy_((layer @ torch.linalg.inv(white)).float()[:, :, None, None])


@torch.no_grad()
def encode_mean(vae: AutoencoderKL, pixels: NDArray[np.uint8]) -> Tensor:
    """The latents' means (n, 4, side / 8, side / 8), not scaled."""
    parts = [pixels[start : start + 64] for start in range(0, len(pixels), 64)]
    means = [vae.encode(to_tensor(part, vae.device)).latent_dist.mean.float() for part in parts]
    return torch.cat(means)


@torch.no_grad()
def decode(vae: AutoencoderKL, latents: Tensor) -> NDArray[np.uint8]:
    """Pictures (n, side, side, 3) of unscaled latents."""
    parts = [to_pixels(vae.decode(part).sample) for part in latents.split(64)]
    return np.concatenate(parts)


def l1(vae: AutoencoderKL, pixels: NDArray[np.uint8]) -> float:
    """Mean error of encoding and decoding, 1 being from black to white."""
    again = decode(vae, encode_mean(vae, pixels))
    return float(np.abs(again.astype(float) - pixels).mean() / 255)
