"""The weights that a Serve config names, by key, and how much of each is read."""

from collections.abc import Iterator
from typing import NamedTuple

from configs.app import ModelArgs, ModelUserConfig, ServiceArgs
from configs.families import FAMILIES
from configs.sources import Layout


class Need(NamedTuple):
    """A source that a config names, and how much of it is read."""

    source: str
    variant: str | None = None
    layout: Layout = "any"


def of_model(args: ModelArgs) -> Iterator[tuple[str, Need]]:
    """What stands in a model's `args`, each with its key below them."""
    yield "checkpoint", Need(args.checkpoint, args.variant, "pipeline")
    if args.config is not None or args.checkpoint.endswith(".safetensors"):
        yield "config", Need(args.config or FAMILIES[args.family].base, None, "pipeline_configs")
    if args.tcd_lora is not None:
        yield "tcd_lora", Need(args.tcd_lora)
    for kind, control in args.controls.items():
        yield f"controls.{kind}", Need(control.source, args.variant)
    if args.motion_adapter is not None:
        yield "motion_adapter", Need(args.motion_adapter, args.variant)
    if args.vae.source is not None:
        yield "vae.source", Need(args.vae.source, args.variant)
    for word, source in args.embeddings.items():
        yield f"embeddings.{word}", Need(source)
    if args.preview_vae is not None:
        yield "preview_vae", Need(args.preview_vae)
    for name, adapter in args.named_ip_adapters.items():
        yield f"{ip_adapter_key(args, name)}.adapter", Need(adapter.adapter)


def ip_adapter_key(args: ModelArgs, name: str) -> str:
    """Under which key of a model's `args` one of its `named_ip_adapters` stands."""
    return f"ip_adapters.{name}" if args.ip_adapter is None else "ip_adapter"


def of_user_config(config: ModelUserConfig) -> Iterator[tuple[str, Need]]:
    """What stands in a model's `user_config`, each with its key below it."""
    for name, source in config.loras.items():
        yield f"loras.{name}", Need(source)
    for name, source in config.motion_loras.items():
        yield f"motion_loras.{name}", Need(source)


def of_service(args: ServiceArgs) -> Iterator[tuple[str, Need]]:
    """What stands in the service's `args`, each with its key below them."""
    if args.depth is not None:
        yield "depth.checkpoint", Need(args.depth.checkpoint)
    if args.safety is not None:
        yield "safety.checkpoint", Need(args.safety.checkpoint)
    for name, encoder in args.image_encoders.items():
        yield f"image_encoders.{name}.checkpoint", Need(encoder.checkpoint)
