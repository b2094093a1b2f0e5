"""A recipe in the words of AUTOMATIC1111's web UI, which galleries and other programs read.

The prompt, `Negative prompt: ...`, and a last line of `key: value` pairs. What the words cannot say
exactly stands in the request beside them: see `metadata.py`.
"""

import json
from collections.abc import Sequence
from unicodedata import category

from deployments.contracts.jobs import LoraWeight
from deployments.contracts.recipe import Recipe

UNGUIDED = 1.0  # what others call the guidance that changes nothing


def infotext(recipe: Recipe, seed: int) -> str:
    """The lines for one image; control characters of the prompts are spaces."""
    lines = [_printable(recipe.prompt)]
    if recipe.negative_prompt:
        lines.append(f"Negative prompt: {_printable(recipe.negative_prompt)}")
    figures = _figures(recipe, seed).items()
    lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in figures))
    return "\n".join(lines).strip()


def _figures(recipe: Recipe, seed: int) -> dict[str, str]:
    figures = {
        "Steps": str(recipe.num_inference_steps),
        "Sampler": "TCD",
        "CFG scale": f"{max(recipe.guidance_scale, UNGUIDED):g}",
        "Seed": str(seed),
        "Size": f"{recipe.width}x{recipe.height}",
        "Model": recipe.model,
    }
    if recipe.clip_skip:
        figures["Clip skip"] = str(recipe.clip_skip + 1)
    if recipe.strength is not None:
        figures["Denoising strength"] = f"{recipe.strength:g}"
    figures["Eta"] = f"{recipe.eta:g}"
    if recipe.loras:
        figures["Lora"] = _weights(recipe.loras)
    for index, control in enumerate(recipe.controls):
        figures[f"ControlNet {index}"] = (
            f"Module: {control.type}, Weight: {control.conditioning_scale:g}, "
            f"Guidance Start: {control.start:g}, Guidance End: {control.end:g}"
        )
    if recipe.ip_adapters:
        figures["IP-Adapter"] = ", ".join(f"{adapter.scale:g}" for adapter in recipe.ip_adapters)
    if recipe.motion_loras:
        figures["Motion lora"] = _weights(recipe.motion_loras)
    if recipe.num_frames is not None:
        figures |= {"Frames": str(recipe.num_frames), "FPS": str(recipe.fps)}
    return figures


def _weights(adapters: Sequence[LoraWeight]) -> str:
    return ", ".join(f"{adapter.name}: {adapter.weight:g}" for adapter in adapters)


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:\n"') else value


def _printable(text: str) -> str:
    return "".join(" " if category(c) == "Cc" and c not in "\n\t" else c for c in text)
