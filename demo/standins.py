"""Writes the demo's stand-in models: small random checkpoints in the real formats.

They are for what the trained models in `demo/weights` are not: all families and formats, in
seconds. Two files are made of trained models: fine-tunes, merged of a base and a style.

    python -m demo.standins [--out demo/models] [--force] [--merged]

    sd15/  sd21/  sdxl/                                  diffusers pipeline folders
    sd15-inpainting/  sdxl-inpainting/                   the same, UNets of nine channels
    sdxl-animagine/                                      a community fine-tune
    {sd15,sdxl}-community.safetensors                    two more, as single files
    sd15-papercut.safetensors  sdxl-ink.safetensors      of demo/weights: see `demo.merged`
    tcd-lora/<family>/pytorch_lora_weights.safetensors   TCD-LoRAs
    loras/<family>/{papercut,ink,neon}.safetensors       style LoRAs
    controlnet/<family>/{depth,canny}/                   ControlNets
    ip-adapter/{models,sdxl_models}/                     IP-Adapters and their image encoders
    dpt-hybrid/                                          a depth estimator
    motion-adapter/sd15/                                 an AnimateDiff adapter
    motion-loras/{zoom-in,pan-left}.safetensors          motion LoRAs for it

torch and diffusers are imported when something is written, so that finding the folder up to
date takes no time.
"""

import argparse
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

MODELS = Path(__file__).with_name("models")
WEIGHTS = Path(__file__).with_name("weights")


class Merged(NamedTuple):
    """A fine-tune, and what it is made of."""

    file: str
    base: Path
    style: Path


MERGED = tuple(
    Merged(
        f"{family}-{style}.safetensors",
        WEIGHTS / family,
        WEIGHTS / "loras" / family / f"{style}.safetensors",
    )
    for family, style in (("sd15", "papercut"), ("sdxl", "ink"))
)
STAMP = "standins.json"
MERGED_STAMP = "merged.json"
# Of this package, but they write no stand-in.
OTHER_SOURCES = (
    *("application.py", "client.py", "gallery.py"),
    *("run.py", "serve.py", "service.py", "tasks.py"),
)
LIBRARIES = ("diffusers", "safetensors", "tokenizers", "torch", "transformers")


def write_all(out: Path, *, force: bool = False) -> None:
    """Write every stand-in below `out`, unless this recipe already did.

    `out` is up to date when its stamp names this recipe and these library versions, and
    every file has the size that was written. `force` writes in any case. Prints a line for
    each folder or single file.
    """
    recipe = recipe_hash()
    if not force and is_current(out / STAMP, recipe):
        print(f"{os.path.relpath(out)} is up to date")
        return
    from demo import layout

    _write(out, STAMP, recipe, layout.write_everything)


def write_merged(out: Path, *, force: bool = False) -> None:
    """The same for the merged files alone, which are all that the trained models lack."""
    recipe = recipe_hash()
    if not force and merged_is_current(out, recipe):
        files = " and ".join(os.path.relpath(out / one.file) for one in MERGED)
        print(f"{files} are up to date")
        return
    from demo import layout

    _write(out, MERGED_STAMP, recipe, layout.write_merged)


def merged_is_current(out: Path, recipe: str) -> bool:
    """Whether this recipe wrote the merged files, alone or with all others."""
    return is_current(out / STAMP, recipe) or is_current(out / MERGED_STAMP, recipe)


def _write(out: Path, name: str, recipe: str, write: Callable[[Path], Iterator[Path]]) -> None:
    """Write, publish and stamp what `write` yields."""
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=out) as staging:
        written = Path(staging)
        for path in write(written):
            size = sum(file.stat().st_size for file in files_in(path))
            print(f"{os.path.relpath(out / path.relative_to(written))}  {size / 1e6:.1f} MB")
        (out / name).unlink(missing_ok=True)
        sizes = publish(written, out)
    (out / name).write_text(json.dumps({"recipe": recipe, "files": sizes}, indent=2) + "\n")
    total = sum(sizes.values()) / 1e6
    print(f"{total:.1f} MB in {time.perf_counter() - started:.1f} s")


def publish(written: Path, out: Path) -> dict[str, int]:
    """Move each file below `written` to the same place below `out`; returns their sizes.

    A file is replaced whole, so that a process which reads the old one meanwhile keeps it.
    """
    sizes: dict[str, int] = {}
    for file in files_in(written):
        name = file.relative_to(written)
        sizes[name.as_posix()] = file.stat().st_size
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        file.chmod(0o644)  # safetensors leaves its files to their owner alone
        file.replace(out / name)
    return sizes


def write_base(family: str, folder: Path, *, scale: int = 1) -> None:
    """Write the base of `family` to `folder`: see `demo.base.write_base`."""
    from demo import base

    base.write_base(family, folder, scale=scale)


def write_tcd_lora(family: str, base_folder: Path, file: Path) -> None:
    """Write the TCD-LoRA for the base in `base_folder`: see `demo.lora.write_tcd_lora`."""
    from demo import lora

    lora.write_tcd_lora(family, base_folder, file)


def write_style_lora(
    name: str, family: str, base_folder: Path, file: Path, *, seed: int = 0
) -> None:
    """Write a style LoRA for the base in `base_folder`: see `demo.lora.write_style_lora`."""
    from demo import lora

    lora.write_style_lora(name, family, base_folder, file, seed=seed)


def files_in(place: Path) -> list[Path]:
    """All files below the folder `place`, sorted; or `place` itself, if it is a file."""
    return sorted(path for path in [place, *place.rglob("*")] if path.is_file())


def recipe_hash() -> str:
    """A hash of the recipe's sources, and of libraries and trained models that shape the files."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for source in sorted([*here.glob("*.py"), *here.glob("*.txt")]):
        if source.name in OTHER_SOURCES:
            continue
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    for merged in MERGED:
        for trained in (*files_in(merged.base), merged.style):
            digest.update(trained.read_bytes())
    for library in LIBRARIES:
        digest.update(f"{library}=={version(library)}\0".encode())
    return digest.hexdigest()


def is_current(stamp: Path, recipe: str) -> bool:
    """Whether `stamp` names `recipe` and every file it lists is there, whole."""
    try:
        written = json.loads(stamp.read_text())
        sizes = {stamp.parent / name: size for name, size in written["files"].items()}
        return written["recipe"] == recipe and all(
            file.stat().st_size == size for file, size in sizes.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m demo.standins", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=MODELS)
    parser.add_argument("--force", action="store_true", help="write even if up to date")
    parser.add_argument("--merged", action="store_true", help="write the merged files alone")
    arguments = parser.parse_args()
    write = write_merged if arguments.merged else write_all
    write(arguments.out, force=arguments.force)


if __name__ == "__main__":
    main()
