"""The TCD step, row by row.

Strategic stochastic sampling of Trajectory Consistency Distillation (arXiv 2402.19159,
algorithm 4), in the paper's names: from x_t the network estimates x_0 and eps; they give
x_s at s = floor((1 - gamma) * t_prev); noise z takes x_s back up to x_{t_prev}. `eta` is the
paper's gamma. The arithmetic is that of `diffusers.TCDScheduler.step`, which keeps one
step index and therefore cannot step rows of a batch that stand at different steps.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from deployments.diffusion.engine.models.schedule import Step


class StepOutput(NamedTuple):
    """`x_prev`: latents at the next timestep; `x_0`: the estimate of the final ones."""

    x_prev: Tensor
    x_0: Tensor


def coefficients(steps: Sequence[Step]) -> Tensor:
    """The numbers of each row's step: (6, B, 1, 1, 1) float32 on the CPU, in `Step`'s order."""
    table = [(s.alpha_t, s.sigma_t, s.alpha_s, s.sigma_s, s.rise, s.renoise) for s in steps]
    return torch.tensor(table, dtype=torch.float32).T.reshape(6, -1, 1, 1, 1)


def tcd_step(
    x_t: Tensor, model_output: Tensor, rows: Tensor, z: Tensor, prediction_type: str
) -> StepOutput:
    """One TCD step for every row.

    Args:
        x_t: (B, C, H, W) latents at each row's t.
        model_output: (B, C, H, W), what the network said (after guidance).
        rows: (6, B, 1, 1, 1) as `coefficients` makes it.
        z: (B, C, H, W) standard normal noise; zeros where a row draws none.
        prediction_type: "epsilon", "sample" or "v_prediction".

    Returns latents of `x_t`'s dtype; computed in float32.
    """
    alpha_t, sigma_t, alpha_s, sigma_s, rise, renoise = rows.reshape(6, -1, *[1] * (x_t.ndim - 1))
    x, out = x_t.float(), model_output.float()
    if prediction_type == "epsilon":
        eps = out
        x_0 = (x - sigma_t * eps) / alpha_t
    elif prediction_type == "sample":
        x_0 = out
        eps = (x - alpha_t * x_0) / sigma_t
    else:
        x_0 = alpha_t * x - sigma_t * out
        eps = alpha_t * out + sigma_t * x
    x_s = alpha_s * x_0 + sigma_s * eps
    x_prev = rise * x_s + renoise * z.float()
    return StepOutput(x_prev.to(x_t.dtype), x_0.to(x_t.dtype))
