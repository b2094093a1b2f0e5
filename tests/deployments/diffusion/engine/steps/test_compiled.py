"""Graphs over buffers, by a capture that calls again what it was given: all but CUDA's own part."""

import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from configs.app import Limits, ModelUserConfig, WarmSize
from deployments.contracts.figures import EngineFigures
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import load
from deployments.diffusion.engine.steps import runner as runner_module
from deployments.diffusion.engine.steps.compiled import (
    BUCKETS,
    Captured,
    Graphs,
    bucket_of,
    buckets_up_to,
)
from deployments.diffusion.engine.steps.conditioning import UNetInput
from tests.conftest import demo_loras
from tests.deployments.diffusion.engine.harness import eventually, styles
from tests.deployments.diffusion.engine.pipelines import Pipelines
from tests.deployments.diffusion.engine.tasks import (
    ADAPTERS,
    HEIGHT,
    WIDTH,
    Checkpoint,
    Net,
    Task,
    make_all,
    task,
)
from tests.deployments.diffusion.engine.test_tasks import assert_all_same

exactly = partial(torch.testing.assert_close, rtol=0, atol=0)


def again(call: Callable[[], Tensor]) -> Captured:
    """As a graph: the output stays where it is, and is written anew."""
    output = call()

    def replay() -> None:
        output.copy_(call())

    return Captured(replay, output)


def unet(given: UNetInput) -> Tensor:
    """Rows that depend on all that they were given, and on no other row."""
    text = given.hidden.mean((1, 2)) + given.timesteps
    if given.added is not None:
        text = text + sum(tensor.sum(1) for tensor in given.added.values())
    return given.sample * text.view(-1, 1, 1, 1)


def inputs(rows: int, *, side: int = 4, added: bool = True) -> UNetInput:
    source = torch.Generator().manual_seed(rows)

    def random(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=source)

    extra = {"text_embeds": random(5), "time_ids": random(6)} if added else None
    return UNetInput(random(4, side, side), random(), random(7, 3), extra)


def learnt(*given: UNetInput, capture: Callable[..., Captured] = again) -> Graphs:
    graphs = Graphs(unet, capture)
    graphs.learning = True
    for one in given:
        graphs.run(one)
    graphs.learning = False
    return graphs


def ran(graphs: Graphs, given: UNetInput) -> Tensor:
    output = graphs.run(given)
    assert output is not None
    return output


@pytest.mark.parametrize("added", [False, True])
def test_each_call_gets_its_own_rows(added: bool) -> None:
    graphs = learnt(*(inputs(rows, added=added) for rows in (8, 4, 2, 1)))
    for rows in (1, 2, 4, 7, 8, 7, 1):
        given = inputs(rows, added=added)
        exactly(ran(graphs, given), unet(given))
    assert len(graphs) == 4


def test_an_answer_is_not_overwritten_by_the_next_call() -> None:
    graphs = learnt(inputs(2))
    given = inputs(2)
    first = ran(graphs, given)
    ran(graphs, replace(given, sample=given.sample + 1))
    exactly(first, unet(given))


def test_rows_that_nobody_has_are_the_first_row_again() -> None:
    """What a row before left there could be of any kind, even not finite."""
    seen: list[UNetInput] = []

    def watched(given: UNetInput) -> Tensor:
        seen.append(UNetInput(given.sample.clone(), given.timesteps.clone(), given.hidden, None))
        return unet(given)

    graphs = Graphs(watched, again)
    graphs.learning = True
    ran(graphs, replace(inputs(8), sample=torch.full((8, 4, 4, 4), float("nan"))))
    given = inputs(7)
    exactly(ran(graphs, given), unet(given))
    exactly(seen[-1].sample, torch.cat([given.sample, given.sample[:1]]))
    exactly(seen[-1].timesteps, torch.cat([given.timesteps, given.timesteps[:1]]))


def test_a_row_that_overflows_changes_no_other() -> None:
    graphs = learnt(inputs(8))
    given = inputs(7)
    given.sample[0] = float("inf")
    expected = unet(given)
    output = ran(graphs, given)
    assert not output[0].isfinite().any()
    exactly(output[1:], expected[1:])


def test_nothing_is_captured_once_requests_come() -> None:
    graphs = learnt(inputs(2))
    assert graphs.run(inputs(1)) is None
    assert graphs.run(inputs(2, side=8)) is None
    assert graphs.run(inputs(2, added=False)) is None
    assert graphs.run(replace(inputs(2), hidden=torch.zeros(2, 14, 3))) is None
    assert graphs.run(inputs(BUCKETS[-1] + 1)) is None
    assert (len(graphs), graphs.failures) == (1, 0)


def test_after_a_capture_that_failed_calls_are_as_without(caplog: pytest.LogCaptureFixture) -> None:
    tried = 0

    def refuse(call: Callable[[], Tensor]) -> Captured:
        nonlocal tried
        tried += 1
        raise RuntimeError("operation not permitted when stream is capturing")

    with caplog.at_level(logging.WARNING, "tcd.engine"):
        graphs = learnt(inputs(2), inputs(1), capture=refuse)
    assert graphs.run(inputs(2)) is None
    assert (tried, graphs.failures, len(graphs)) == (1, 1, 0)
    assert len(caplog.records) == 1


def test_a_graph_that_found_no_memory_leaves_room_for_smaller_ones() -> None:
    def short(call: Callable[[], Tensor]) -> Captured:
        captured = again(call)
        if len(captured.output) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return captured

    graphs = learnt(inputs(4), inputs(2), capture=short)
    assert graphs.run(inputs(4)) is None
    exactly(ran(graphs, inputs(2)), unet(inputs(2)))
    assert graphs.failures == 1


def test_buckets_waste_at_most_a_third() -> None:
    for rows in range(1, BUCKETS[-1] + 1):
        bucket = bucket_of(rows)
        assert bucket is not None
        assert rows <= bucket <= rows * 4 / 3 + 1e-9, rows
    assert bucket_of(BUCKETS[-1] + 1) is None
    assert buckets_up_to(5) == [1, 2, 3, 4, 6]
    assert buckets_up_to(8) == [1, 2, 3, 4, 6, 8]


def test_plain_rows_are_replayed_and_others_are_not(
    demo_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole engine: rows with adapters, controls or pictures take the other way."""
    monkeypatch.setattr(runner_module, "CudaCapture", lambda _: again)
    checkpoint = Checkpoint(demo_models, "sd15", "sd15", ADAPTERS["sd15"])
    sizes = (WarmSize(width=WIDTH, height=HEIGHT, rows=3),)
    parts = replace(load(checkpoint.args()), compile="graphs", warm_sizes=sizes)
    limits = Limits(max_step_ms=float("inf"))
    config = ModelUserConfig(loras=demo_loras(demo_models, "sd15"), limits=limits)
    engine = Engine(parts, config)
    try:
        warm = engine.figures()
        assert (warm.compiled, warm.steps_total, warm.images_total) == (2, 0, 0)
        plain = [
            task("one", num_inference_steps=5),
            task("three", seeds=(2, 3, 4)),
            task("guided", guidance_scale=3.0),
        ]
        others = [
            task("style", loras=styles(ink=1.0)),
            task("depth", nets=[Net("depth")]),
            task("picture", sees=(checkpoint, 1, 0.5)),
            task("another size", width=128, height=128),
        ]

        def made(tasks: list[Task]) -> EngineFigures:
            """Figures that know of all the steps that these have taken."""
            images = engine.figures().images_total + sum(len(one.job.seeds) for one in tasks)
            for one in tasks:
                assert_all_same(make_all(engine, [one]), [one], Pipelines(checkpoint))
            assert eventually(lambda: engine.figures().images_total == images)
            return engine.figures()

        now = made(plain)
        assert now.graph_steps_total - warm.graph_steps_total == now.steps_total
        assert made(others).graph_steps_total == now.graph_steps_total
    finally:
        engine.stop()
