"""How often a block is compiled, and what it does when that cannot be."""

from collections.abc import Sequence

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, nn

from deployments.diffusion.engine.models import compiler as compiler_module
from deployments.diffusion.engine.models.compiler import Compiler
from tests.deployments.diffusion.engine.compiling import traced

WIDTH = 16


def block_of(compiler: Compiler) -> BasicTransformerBlock:
    torch._dynamo.reset()
    block = BasicTransformerBlock(WIDTH, 2, 8, cross_attention_dim=8).eval()
    compiler.blocks(nn.ModuleList([block]))
    return block


def called(block: BasicTransformerBlock, rows: int, tokens: int) -> Tensor:
    with torch.inference_mode():
        output: Tensor = block(
            torch.randn(rows, tokens, WIDTH), encoder_hidden_states=torch.randn(rows, 77, 8)
        )
    return output


@pytest.mark.parametrize("first", [(2, WIDTH), (2, 77), (8, 8), (2, 20)])
def test_dimensions_that_are_equal_at_first_may_differ_later(first: tuple[int, int]) -> None:
    compiler = Compiler(traced)
    block = block_of(compiler)
    for rows, tokens in (first, (2, 30), (3, WIDTH), (9, 77), (4, 4)):
        called(block, rows, tokens)
    assert (compiler.compiles, compiler.failures) == (1, 0)


def test_a_block_that_is_called_in_too_many_ways_runs_eager_and_is_counted_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compiler_module, "MOST_KINDS", 1)
    compiler = Compiler(traced)
    block = block_of(compiler)
    for rows in (2, 1, 1, 2, 1):
        called(block, rows, 20)
    assert (compiler.compiles, compiler.failures) == (1, 1)


def test_memory_that_is_lacking_while_compiling_is_no_failure() -> None:
    lacking = 1

    def short(graph: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> object:
        nonlocal lacking
        lacking -= 1
        if lacking >= 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return graph.forward

    compiler = Compiler(short)  # type: ignore[arg-type]
    block = block_of(compiler)
    with pytest.raises(torch.OutOfMemoryError):
        called(block, 2, 20)
    called(block, 2, 20)
    assert (compiler.compiles, compiler.failures, compiler.works) == (1, 0, True)


def test_without_a_home_the_cache_is_where_inductor_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless(_: object) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(type(compiler_module.CACHE), "expanduser", homeless)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/somewhere")
    Compiler(traced)
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    Compiler(traced)
