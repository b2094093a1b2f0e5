"""Writes a community fine-tune of a demo base: a style merged into its weights, as one file.

Many community checkpoints are made in just this way.
"""

import tempfile
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from demo.single_file import write_single_file


def write_merged(base_folder: Path, lora: Path, file: Path) -> None:
    """Merge the style LoRA at weight 1 into the base, and write all of it to `file`."""
    for logging in (diffusers_logging, transformers_logging):
        logging.disable_progress_bar()
    verbosity = diffusers_logging.get_verbosity()
    diffusers_logging.set_verbosity_error()  # it would tell that the LoRA has no text layers
    try:
        _write(base_folder, lora, file)
    finally:
        diffusers_logging.set_verbosity(verbosity)


def _write(base_folder: Path, lora: Path, file: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(
        base_folder, local_files_only=True, dtype=torch.float16
    )
    pipe.load_lora_weights(lora)
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    with tempfile.TemporaryDirectory() as folder:
        pipe.save_pretrained(folder)
        write_single_file(Path(folder), file)
