"""What the sections share: where they run, how hard they try, and what is loaded just now."""

import gc
from dataclasses import dataclass, field
from pathlib import Path

import torch

from benchmarks.device.timing import Effort, Stopwatch
from benchmarks.full_size import write_adapter, write_full_size
from configs.app import CompileMode, Dtype, Limits, ModelArgs, ModelUserConfig
from configs.families import FamilyName
from configs.published import Geometry, geometry
from deployments.contracts.jobs import ImageJob, LoraWeight
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load

RANK = 32  # of style adapters
BATCH = 8  # most rows in one UNet call


@dataclass
class Yardsticks:
    """What later sections are held against, as far as it has been measured.

    Attributes:
        matmul_tflops: the card's own, by dtype.
        call_s: of the bare UNet, by family and batch.
    """

    matmul_tflops: dict[torch.dtype, float] = field(default_factory=dict)
    call_s: dict[tuple[FamilyName, int], float] = field(default_factory=dict)


class Lab:
    """The models and the engine under measurement.

    Args:
        folder: where models are written.
        tiny: models of the same classes, a few channels wide.
    """

    def __init__(
        self, device: torch.device, dtype: Dtype, effort: Effort, folder: Path, *, tiny: bool
    ) -> None:
        self.device = device
        self.dtype: torch.dtype = getattr(torch, dtype)
        self.effort = effort
        self.stopwatch = Stopwatch(device, effort)
        self.yardsticks = Yardsticks()
        self._dtype_name = dtype
        self._folder = folder
        self.tiny = tiny
        self._jobs = 0
        self._loaded: tuple[FamilyName, CompileMode, Engine] | None = None

    def geometry(self, family: FamilyName) -> Geometry:
        """The shapes of a model."""
        return geometry(family, tiny=self.tiny)

    def write_model(self, family: FamilyName) -> Path:
        """Writes a model, unless that was done."""
        folder = self._folder / family
        if not folder.exists():
            write_full_size(folder, family, self.dtype, device=str(self.device), tiny=self.tiny)
        return folder

    def write_adapters(self, family: FamilyName) -> dict[str, str]:
        """Writes all adapters of a model that are not there yet; returns the files by name."""
        files = self._adapter_files(family)
        where = str(self.device)
        for seed, file in enumerate(map(Path, files.values())):
            if not file.exists():
                write_adapter(
                    file, family, RANK, seed, dtype=self.dtype, device=where, tiny=self.tiny
                )
        return files

    def _adapter_files(self, family: FamilyName) -> dict[str, str]:
        names = (*self.styles, *self.cold_styles)
        return {name: str(self._folder / f"{family}-{name}.safetensors") for name in names}

    @property
    def styles(self) -> tuple[str, ...]:
        """Names of the adapters that are in use."""
        return tuple(f"style-{i}" for i in range(self.effort.adapters))

    @property
    def cold_styles(self) -> tuple[str, ...]:
        """Names of the adapters that nobody asks for before they are measured."""
        return tuple(f"cold-{i}" for i in range(self.effort.cold_adapters))

    def engine(self, family: FamilyName, mode: CompileMode = "off") -> Engine:
        """An engine on a model: the one that runs, or a new one in its place."""
        if self._loaded is not None:
            if self._loaded[:2] == (family, mode):
                return self._loaded[2]
            self.close()
        side = self.geometry(family).side
        size = {"width": side, "height": side, "rows": BATCH}
        args = {
            "name": family,
            "family": family,
            "checkpoint": str(self.write_model(family)),
            "tcd_lora": None,
            "dtype": self._dtype_name,
            "device": str(self.device),
            "compile": mode,
            "warmup": [] if mode == "off" else [size],
        }
        limits = Limits(max_batch=BATCH, max_pending=256, lora_budget_mb=2**15)
        config = ModelUserConfig(loras=self._adapter_files(family), limits=limits)
        engine = Engine(load(ModelArgs.model_validate(args)), config, family)
        self._loaded = (family, mode, engine)
        return engine

    def job(
        self,
        family: FamilyName,
        steps: int,
        *,
        guidance: float = 0.0,
        styles: tuple[str, ...] = (),
    ) -> ImageJob:
        """A request of the model's own size, with a prompt that was not seen before."""
        self._jobs += 1
        side = self.geometry(family).side
        return ImageJob(
            job_id=str(self._jobs),
            prompt=f"a red fox {self._jobs}",
            seeds=(self._jobs,),
            width=side,
            height=side,
            num_inference_steps=steps,
            guidance_scale=guidance,
            loras=tuple(LoraWeight(name, 0.7) for name in styles),
        )

    def close(self) -> None:
        """Stops the engine, if one runs, and frees its memory."""
        if self._loaded is not None:
            self._loaded[2].stop()
            self._loaded = None
            torch._dynamo.reset()  # what it may compile is counted by the process
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
