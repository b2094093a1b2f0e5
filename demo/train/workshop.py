"""Where a training run reads and writes, and what its stages share: pictures and latents."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from demo.train.data import (
    LARGE,
    MOVING,
    PLAIN,
    Pictures,
    Series,
    blown_up,
    varied_pictures,
)
from demo.train.diffusion import Data, Latents, Sizes
from demo.train.folders import load_base
from demo.train.loop import Record, Settings, Task, train
from demo.train.model import Base
from demo.train.text import Tokenizers
from demo.train.vae import encode_mean
from demo.world.style import STYLES, Style

EARLIER = "earlier.json"
STYLED = 6  # one of so many of the larger pictures is drawn in a style, for each
EVEN = (0.5, 0.5)  # shares of the batches: pictures of 64, of 128
SIZE_SHARES = (0.45, 0.45, 0.1)  # of the batches: pictures of 64, of 128, blown up to 128


class Trained(NamedTuple):
    """How long a model was trained."""

    steps: int
    seconds: float


@dataclass(frozen=True)
class Plan:
    """How long one stage trains.

    Attributes:
        steps: of the optimiser.
        batch_size: pictures (videos for motion) in each.
        learning_rate: the highest.
        minutes: that it took, or would take, on one slow CPU core; for the reader.
        bfloat16: whether layers compute in it, on a processor that has it.
    """

    steps: int
    batch_size: int
    learning_rate: float
    minutes: int
    ema_decay: float = 0.999
    bfloat16: bool = False


@dataclass(frozen=True)
class Workshop:
    """One run of the recipe.

    Attributes:
        work: folder of the drawn pictures, checkpoints and histories.
        models: folder of the finished models, laid out as `demo.layout` does.
        device: that trains.
        plain: number of pictures for the bases and their adapters.
        moving: number of pictures that the bases see besides.
        varied: number of pictures for the autoencoder and the styles.
        large: number of pictures of twice the side that sdxl sees besides.
        from_finished: whether a stage begins with its finished model.
        scale: of the UNets' widths over the stand-ins'.
        seed: of everything drawn.
    """

    work: Path
    models: Path
    device: torch.device
    plain: int = 32_000
    moving: int = 16_000
    varied: int = 24_000
    large: int = 16_000
    scale: int = 2
    seed: int = 0
    from_finished: bool = False
    log_every_s: float = field(default=15.0)

    @property
    def data(self) -> Path:
        """Of the drawn pictures."""
        return self.work / "data"

    def train(self, name: str, task: Task, plan: Plan) -> list[Record]:
        """Train the stage `name`, or go on with it."""
        settings = Settings(
            plan.steps,
            plan.learning_rate,
            ema_decay=plan.ema_decay,
            seed=self.seed,
            first_batch=self.earlier(name).steps,
            bfloat16=plan.bfloat16 and _has_bfloat16(self.device),
            log_every_s=self.log_every_s,
            warmup=min(100, plan.steps // 10),
        )
        return train(task, settings, self.work / name, plan.batch_size)

    def begin(self, module: nn.Module, file: Path) -> None:
        """Fill `module` with its finished weights, if this run begins with them."""
        if self.from_finished:
            module.load_state_dict({name: t.float() for name, t in load_file(file).items()})

    def remember(self, name: str, finished: Trained) -> None:
        """Keep what the stage `name` begins with, for whoever goes on after an interruption."""
        file = self.work / name / EARLIER
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(finished._asdict()))

    def earlier(self, name: str) -> Trained:
        """How long the model was trained that the stage `name` began with."""
        file = self.work / name / EARLIER
        return Trained(**json.loads(file.read_text())) if file.exists() else Trained(0, 0.0)

    def plain_pictures(self) -> Pictures:
        """Resting scenes with captions."""
        return PLAIN.pictures(self.data, self.plain)

    def captioned_pictures(self) -> Pictures:
        """Those of the bases: resting scenes, and moments of moving ones."""
        plain, moving = self.plain_pictures(), MOVING.pictures(self.data, self.moving)
        pixels = np.concatenate([plain.pixels, moving.pixels])
        return Pictures(pixels, [*plain.captions, *moving.captions])

    def large_pictures(self) -> Pictures:
        """Resting scenes and moments of moving ones, of twice the side."""
        return LARGE.pictures(self.data, self.large)

    def large_varied_pixels(self) -> NDArray[np.uint8]:
        """Those that the decoder for both sizes sees: some in each style, then the plain ones."""
        styled = [self._large_in(style).pixels for style in STYLES]
        return np.concatenate([*styled, self.large_pictures().pixels])

    def _large_in(self, style: Style) -> Pictures:
        return LARGE.pictures_in(style, self.data, self.large // STYLED)

    def varied_pictures(self) -> Pictures:
        """Those of the autoencoder."""
        return varied_pictures(self.data, self.varied)

    def vae(self) -> AutoencoderKL:
        """The finished autoencoder."""
        vae: AutoencoderKL = AutoencoderKL.from_pretrained(
            self.models / "sd15" / "vae", local_files_only=True, torch_dtype=torch.float32
        )
        return vae.to(self.device).requires_grad_(False).eval()

    def base(self, family: str) -> Base:
        """The finished base, in full precision and without gradients."""
        return load_base(family, self.models / family, self.device, self.scale)

    def copy_vae(self, family: str, folder: Path) -> None:
        """Put the family's autoencoder, without its card, into another pipeline's folder."""
        source = "sdxl" if family == "sdxl" else "sd15"
        shutil.copytree(
            self.models / source / "vae",
            folder / "vae",
            ignore=shutil.ignore_patterns("README.*"),
            dirs_exist_ok=True,
        )

    def adapter_latents(self, family: str, given: Callable[[Series, Pictures], Tensor]) -> Data:
        """What an adapter is trained on: resting scenes; for sdxl of two sizes, a third of the
        larger at some point of a motion.

        Args:
            given: tells for a series and its pictures what is given with each of them.
        """

        def learned(series: Series, pictures: Pictures) -> Latents:
            latents = self._latents(series.name, pictures, family)
            return replace(latents, given=given(series, pictures))

        small = learned(PLAIN, self.plain_pictures())
        if family != "sdxl":
            return small
        return Sizes([small, learned(LARGE, self.large_pictures())], EVEN)

    def base_latents(self, family: str) -> Data:
        """What a base is trained on: resting scenes and moments of moving ones; for sdxl of two
        sizes, and some of the larger blown up."""
        plain = self.plain_pictures()
        resting = self._latents(PLAIN.name, plain, family)
        moving = self._latents(MOVING.name, MOVING.pictures(self.data, self.moving), family)
        small = Latents(
            torch.cat([resting.latents, moving.latents]), torch.cat([resting.ids, moving.ids])
        )
        if family != "sdxl":
            return small
        large = self._latents(LARGE.name, self.large_pictures(), family)
        kept = min(self.plain, self.large // 4)
        blown = Pictures(blown_up(plain.pixels[:kept]), plain.captions[:kept])
        up = self._latents("enlarged", blown, family)
        return Sizes([small, large, replace(up, enlarged=2)], SIZE_SHARES)

    def style_latents(self, style: Style, family: str) -> Data:
        """Of pictures in this style, for sdxl of two sizes."""
        small = self._small_style_latents(style, family)
        if family != "sdxl":
            return small
        large = self._latents(f"{LARGE.name}-{style}", self._large_in(style), family)
        return Sizes([small, large], EVEN)

    def _small_style_latents(self, style: Style, family: str) -> Latents:
        """Of the varied pictures in this style."""
        pictures = self.varied_pictures()
        rows = [i for i in range(self.varied) if i % 9 == STYLES.index(style)]
        styled = Pictures(pictures.pixels[rows], [pictures.captions[i] for i in rows])
        return self._latents(style, styled, family)

    def _latents(self, name: str, pictures: Pictures, family: str) -> Latents:
        latents = self.cached_latents(name, pictures.pixels)
        return Latents(latents.to(self.device), Tokenizers(family)(pictures.captions))

    def forget_latents(self) -> None:
        """Remove those on disk: they are of another autoencoder."""
        for file in self.data.glob("*-latents.safetensors"):
            file.unlink()

    def cached_latents(self, name: str, pixels: NDArray[np.uint8]) -> Tensor:
        """(n, 4, side, side) of unit deviation, from a file once they have been made."""
        file = self.data / f"{name}-latents.safetensors"
        if file.exists():
            latents = load_file(file)["latents"]
            if len(latents) == len(pixels):
                return latents.float()
        print(f"encoding {len(pixels)} pictures ({name})", flush=True)
        vae = self.vae()
        latents = encode_mean(vae, pixels).cpu() * vae.config.scaling_factor
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"latents": latents.half().contiguous()}, file)
        rounded: Tensor = latents.half().float()
        return rounded


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in it; a CPU that imitates it is ten times slower in it."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # An older torch cannot tell.
    able: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))
