"""Random weights that keep a deep network's signals near unit variance."""

import hashlib
from collections.abc import Mapping

import torch
from torch import nn

BIAS_STD = 0.02


def generator(*names: object) -> torch.Generator:
    """A CPU generator whose seed is a hash of `names`, the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@torch.no_grad()
def fill(module: nn.Module, source: torch.Generator, gains: Mapping[str, float]) -> None:
    """Overwrite every parameter of `module` with draws from `source`.

    Weights get a normal distribution of standard deviation gain / sqrt(fan in); the gain is
    that of the first key of `gains` found in the parameter's name, or 1. Norms become the
    identity, biases small. Embedding tables have no fan-in: their gain is their deviation.
    """
    for name, parameter in module.named_parameters():
        if parameter.ndim == 1:
            if name.endswith("weight"):
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=BIAS_STD, generator=source)
            continue
        is_table = name.endswith(("token_embedding.weight", "position_embedding.weight"))
        fan_in = 1 if is_table else parameter[0].numel()
        gain = next((gain for part, gain in gains.items() if part in name), 1.0)
        parameter.normal_(std=gain / fan_in**0.5, generator=source)
