"""Engines whose blocks are traced and guarded as compiled ones are, by what compiles nothing."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from configs.app import Limits, ModelArgs, ModelUserConfig, WarmSize
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models import components
from deployments.diffusion.engine.models.compiler import Backend
from deployments.diffusion.engine.models.components import load

# Inductor's, when it is imported, of torch's own code: the images come out right with it, and any
# other warning would be counted as a compilation that failed.
TORCHS_OWN = "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
ROOMY = Limits(max_batch=64, max_running=64, max_step_ms=float("inf"))


def traced(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
    """Compiles nothing: what was traced runs as it is, behind its guards."""
    return graph.forward


@contextmanager
def compiled_engine(
    args: ModelArgs,
    loras: dict[str, str],
    backend: Backend = traced,
    warmup: tuple[WarmSize, ...] = (),
) -> Iterator[Engine]:
    """An engine on a model whose blocks `backend` compiles. What torch remembers of others is
    forgotten: its limits are the process's, not an engine's."""
    torch._dynamo.reset()
    config = ModelUserConfig(loras=loras, limits=ROOMY)
    args = args.model_copy(update={"compile": "blocks", "warmup": warmup})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "inductor", backend)
        engine = Engine(load(args), config)
    try:
        yield engine
    finally:
        engine.stop()
        torch._dynamo.reset()
