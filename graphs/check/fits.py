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
from configs.sources import SourceError, fetch
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
from graphs.check.schemas import one_line

_DTYPE = torch.float16


def unfit_files(application: Accepted) -> Iterator[str]:
    """A line for each, with its place; of an application with whose files nothing else is wrong."""
    if application.model is None:
        return
    try:
        models = _models_of(application.model)
    except Exception as error:  # libraries meet values of any type
        place = f"{application.name}.args.checkpoint"
        yield f"{place}: its configurations describe no model: {_told(error)}"
        return
    if models is None:
        return
    fit = _Fit(application.model, models)
    for place, key, need in application.needs():
        path = here(need.source)
        if path is not None and key.partition(".")[0] in KINDS:
            said = fit.refusal(key, path)
            if said is not None:
                yield f"{place}: {said}"


def _models_of(args: ModelArgs) -> Skeletons | None:
    """Of the configurations that are here, or were fetched; of a single file, and of the family's
    published base, they are known. `None`: of those of another folder."""
    source = args.config if args.checkpoint.endswith(".safetensors") else args.checkpoint
    if source is None or source == FAMILIES[args.family].base:
        return skeletons(args.family)
    try:
        folder = fetch(source, layout="pipeline_configs", offline=True)
        return skeletons_of(folder, args.family)
    except (SourceError, FileNotFoundError):
        if here(source) is not None:
            raise
        return None


@dataclass(frozen=True, eq=False)
class _Fit:
    """Whether files fit a model."""

    args: ModelArgs
    models: Skeletons

    def refusal(self, key: str, path: Path) -> str | None:
        """Why the model would not start with what stands under a key, or refuse requests for it."""
        try:
            self._read(key, path)
        except Exception as error:  # as above
            return _told(error).removeprefix(f"{key}: ")
        return None

    def _read(self, key: str, path: Path) -> None:
        what, _, name = key.partition(".")
        unet = self.models.unet
        if what in ("tcd_lora", "loras"):
            self._contents.of(read_file(path))
        elif what == "motion_loras":
            self._check_motion(path)
        elif what == "motion_adapter":
            check_fits(read_motion_adapter(str(path), unet, self.args.variant, _DTYPE), unet)
        elif what == "controls":
            read_controls({name: self.args.controls[name]}, self.args.variant, unet, _DTYPE)
        elif what == "embeddings":
            widths = [encoder.config.hidden_size for encoder in self.models.text_encoders]
            read_embedding(name, lora_file(path), widths)
        else:
            IpAdapter(unet, lora_file(path))

    @cached_property
    def _contents(self) -> Contents:
        return Contents(self.models.adaptable, self.args.embeddings)

    def _check_motion(self, path: Path) -> None:
        """Of an adapter for motion layers, where these are here and fit."""
        source = self.args.motion_adapter
        motion = None if source is None else here(source)
        if motion is None or self.refusal("motion_adapter", motion) is not None:
            return
        adapter = read_motion_adapter(str(motion), self.models.unet, self.args.variant, _DTYPE)
        models = {**self.models.adaptable, "motion_unet": self.models.moving(adapter)}
        Contents(models, self.args.embeddings).of(read_file(path), "motion_unet")


def _told(error: Exception) -> str:
    """An error on one line, with its class where its words may be a library's."""
    ours = isinstance(error, LoraError | OSError | SafetensorError | ValueError)
    return one_line(error) if ours else f"{type(error).__name__}: {one_line(error)}"
