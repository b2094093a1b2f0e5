"""The stand-in models that the benchmarks run on, wider than the demo's where it matters."""

from dataclasses import dataclass
from pathlib import Path

from configs.app import ModelArgs
from demo import depth, image_encoder, ip_adapter, layout
from demo.standins import write_base, write_style_lora, write_tcd_lora

STYLES = ("papercut", "ink", "neon")
SIDE = 128  # pixels


@dataclass(frozen=True)
class Model:
    """A checkpoint with its adapters, as files.

    Attributes:
        scale: how many times wider than the demo's its UNet is.
        loras: files of the style adapters by name.
    """

    scale: int
    checkpoint: Path
    tcd_lora: Path
    loras: dict[str, str]

    @property
    def args(self) -> ModelArgs:
        """What the engine loads it with: float32 on the CPU."""
        return ModelArgs(
            name=f"sd15-x{self.scale}",
            family="sd15",
            checkpoint=str(self.checkpoint),
            tcd_lora=str(self.tcd_lora),
            dtype="float32",
            device="cpu",
        )


def write_model(folder: Path, scale: int) -> Model:
    """Writes an sd15 of this width below `folder`, with its TCD-LoRA and three styles."""
    base = folder / "sd15"
    tcd = folder / "tcd-lora" / "pytorch_lora_weights.safetensors"
    styles = {name: folder / "loras" / f"{name}.safetensors" for name in STYLES}
    write_base("sd15", base, scale=scale)
    write_tcd_lora("sd15", base, tcd)
    for name, file in styles.items():
        write_style_lora(name, "sd15", base, file)
    return Model(scale, base, tcd, {name: str(file) for name, file in styles.items()})


def write_tasks_models(folder: Path, scale: int) -> None:
    """Writes an sd15 of this width with all that its tasks need, laid out as the demo's models."""
    for _ in layout.write_family("sd15", folder, scale=scale):
        pass
    models = folder / "ip-adapter" / "models"
    image_encoder.write_image_encoder("vit-h", models / "image_encoder")
    name = "ip-adapter_sd15"
    ip_adapter.write_ip_adapter(name, folder / "sd15", models / f"{name}.safetensors")
    depth.write_depth_estimator(folder / "dpt-hybrid")
