"""diffusers' pipeline of a checkpoint with its TCD-LoRA. Imports nothing of the project's."""

import warnings
from pathlib import Path

from diffusers import StableDiffusionPipeline, TCDScheduler
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging


def fused_pipeline(checkpoint: str | Path, tcd_lora: str) -> StableDiffusionPipeline:
    """As the guide has it: sampled by TCD, its LoRA fused."""
    pipe = StableDiffusionPipeline.from_pretrained(checkpoint, local_files_only=True)
    pipe.scheduler = TCDScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_lora_weights(tcd_lora, adapter_name="tcd")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    return pipe


def quiet_libraries() -> None:
    """Keeps progress bars and advice out of the results."""
    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message="Already found a .peft_config.")
