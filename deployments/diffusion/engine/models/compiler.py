"""The blocks that a UNet repeats, compiled by inductor. What cannot be compiled runs eager.

All blocks of a kind (width; with or without adapters, with or without a picture to resemble) share
their code. Rows, tokens and adapters' ranks are dynamic, so it is compiled once for one row, once
for several; what else it sees is the same for every mix (see `Bank`). What was compiled is kept on
disk, in `TORCHINDUCTOR_CACHE_DIR` or else `CACHE`.
"""

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import get_ident

import torch
import torch.fx.experimental._config
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.exc import FailOnRecompileLimitHit, RestartAnalysis, TorchDynamoException

from deployments.device import is_out_of_memory

Backend = Callable[[torch.fx.GraphModule, list[Tensor]], Callable[..., object]]

CACHE = Path("~/.cache/tcd/inductor")
# Of one process. sd15 has three widths. Of each there are one row, several, several with prompts of
# different lengths; with pictures to resemble one more of both kinds of several, for one row among
# them that sees any; all that with and without adapters; two for ControlNets: 54. A further picture
# that a row sees by another IP-Adapter, or in another region, makes 42 more.
MOST_KINDS = 128
log = logging.getLogger("tcd.engine")


def inductor(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
    """PyTorch's own compiler: C++ on a CPU, Triton on a GPU."""
    compiled: Callable[..., object] = lookup_backend("inductor")(graph, inputs)
    return compiled


class Compiler:
    """Compiles blocks, each kind when it is first called. One thread at a time calls them.

    Args:
        backend: what compiles a graph; if it raises, the graph runs as it is.

    Attributes:
        compiles: kinds that were compiled.
        failures: of them and of others, those that run eager.
    """

    def __init__(self, backend: Backend) -> None:
        self.compiles = 0
        self.failures = 0
        self._backend = backend
        self._given_up = False
        self._eager: set[BasicTransformerBlock] = set()  # called in one way too many
        self._thread: int | None = None  # that called last
        if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:
            with suppress(RuntimeError):  # nobody's home: inductor has a folder of its own
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(CACHE.expanduser())
        self._compiled: Callable[..., Tensor] = torch.compile(
            BasicTransformerBlock.forward, backend=self._compile, fullgraph=True, dynamic=True
        )

    @property
    def works(self) -> bool:
        """Whether anything runs compiled."""
        return self.compiles > 0 and not self._given_up

    def blocks(self, model: nn.Module) -> "list[CompiledBlock]":
        """Has a model's repeated blocks compiled, in place, and returns them."""
        found: list[CompiledBlock] = []
        for block in model.modules():
            if type(block) is BasicTransformerBlock:
                block.__class__ = CompiledBlock
                assert isinstance(block, CompiledBlock)
                block.compiler = self
                block.eager = False
                found.append(block)
        return found

    def run(self, block: BasicTransformerBlock, *args: object, **more: object) -> Tensor:
        """What the block makes of its arguments."""
        if not self._given_up and block not in self._eager:
            self._configure()
            try:
                return self._compiled(block, *args, **more)
            except FailOnRecompileLimitHit:
                self._eager.add(block)
                self._failed("there are too many kinds of blocks; this one runs eager", None)
            except TorchDynamoException as error:
                inner = getattr(error, "inner_exception", None)
                if inner is not None and is_out_of_memory(inner):
                    raise inner from error
                self._given_up = True
                self._failed("blocks cannot be compiled; all run eager", error)
        output: Tensor = BasicTransformerBlock.forward(block, *args, **more)
        return output

    def _configure(self) -> None:
        """Torch keeps its configuration by thread."""
        if self._thread == get_ident():
            return
        self._thread = get_ident()
        torch._dynamo.config.recompile_limit = MOST_KINDS
        # Else floats of layers (scales, epsilons) are first traced as inputs, in vain.
        torch._dynamo.config.specialize_float = True
        # Else dimensions that happen to be equal at first are taken to be equal always.
        torch.fx.experimental._config.use_duck_shape = False

    def _compile(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        try:
            compiled = self._backend(graph, inputs)
        except RestartAnalysis:  # no failure: torch asks for another look at the code
            raise
        except Exception as error:
            if is_out_of_memory(error):
                raise  # it can be compiled another time
            self._failed("a block cannot be compiled; it runs eager", error)
            return graph.forward
        self.compiles += 1
        return compiled

    def _failed(self, what: str, error: Exception | None) -> None:
        """Said once; counted always."""
        if self.failures == 0:
            log.warning("%s", what, exc_info=error)
        self.failures += 1


class CompiledBlock(BasicTransformerBlock):
    """A block that its compiler runs, unless it is to be `eager` for now."""

    compiler: Compiler
    eager: bool

    def forward(self, *args: object, **more: object) -> Tensor:
        """As `BasicTransformerBlock`."""
        if self.eager:
            output: Tensor = super().forward(*args, **more)
            return output
        return self.compiler.run(self, *args, **more)
