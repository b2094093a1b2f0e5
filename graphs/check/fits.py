"""Which files do not fit the model beside which they stand, on the machine that asks: read as a
start reads them, for a model without weights."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError

from configs.app import ModelArgs
from configs.families import FAMILIES
from deployments.diffusion.engine.adapters.contents import Contents
from deployments.diffusion.engine.adapters.files import LoraError, lora_file, read_file
from deployments.diffusion.engine.models.controls.controls import read_controls
from deployments.diffusion.engine.models.embeddings import read_embedding
from deployments.diffusion.engine.models.ip_adapter import IpAdapter
from deployments.diffusion.engine.models.motion.file import read_motion_adapter
from deployments.diffusion.engine.models.motion.motion import check_fits
from deployments.diffusion.engine.models.skeletons import Skeletons, skeletons, skeletons_of
from graphs.check.accepted import Accepted
from graphs.check.files import KINDS, here

_DTYPE = torch.float16


def unfit_files(application: Accepted) -> Iterator[str]:
    """A line for each, with its place; of an application with whose files nothing else is wrong."""
    if application.model is None:
        return
    fit = _Fit(application.model)
    for place, key, need in application.needs():
        path = here(need.source)
        if path is not None and key.partition(".")[0] in KINDS:
            said = fit.refusal(key, path)
            if said is not None:
                yield f"{place}: {said}"


@dataclass(frozen=True, eq=False)
class _Fit:
    """Whether files fit a model."""

    args: ModelArgs

    def refusal(self, key: str, path: Path) -> str | None:
        """Why the model would not start with what stands under a key, or refuse requests for it."""
        try:
            self._read(key, path)
        except (LoraError, OSError, SafetensorError, ValueError) as error:
            return " ".join(str(error).removeprefix(f"{key}: ").split())
        return None

    def _read(self, key: str, path: Path) -> None:
        what, _, name = key.partition(".")
        unet = self._models.unet
        if what in ("tcd_lora", "loras"):
            self._contents.of(read_file(path))
        elif what == "motion_loras":
            self._check_motion(path)
        elif what == "motion_adapter":
            check_fits(read_motion_adapter(str(path), unet, self.args.variant, _DTYPE), unet)
        elif what == "controls":
            read_controls({name: self.args.controls[name]}, self.args.variant, unet, _DTYPE)
        elif what == "embeddings":
            widths = [encoder.config.hidden_size for encoder in self._models.text_encoders]
            read_embedding(name, lora_file(path), widths)
        else:
            IpAdapter(unet, lora_file(path))

    @cached_property
    def _models(self) -> Skeletons:
        """Of the configurations that are here, else of the family's published base."""
        args = self.args
        folder = here(args.checkpoint)
        if folder is None or folder.is_file():
            folder = here(args.config or FAMILIES[args.family].base)
        return skeletons(args.family) if folder is None else skeletons_of(folder, args.family)

    @cached_property
    def _contents(self) -> Contents:
        return Contents(self._models.adaptable, self.args.embeddings)

    def _check_motion(self, path: Path) -> None:
        """Of an adapter for motion layers, where these are here and fit."""
        source = self.args.motion_adapter
        motion = None if source is None else here(source)
        if motion is None or self.refusal("motion_adapter", motion) is not None:
            return
        adapter = read_motion_adapter(str(motion), self._models.unet, self.args.variant, _DTYPE)
        models = {**self._models.adaptable, "motion_unet": self._models.moving(adapter)}
        Contents(models, self.args.embeddings).of(read_file(path), "motion_unet")
