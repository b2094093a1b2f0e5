"""What is drawn before requests come, and that nothing is left of it."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from configs.app import ModelUserConfig, WarmSize
from configs.families import FamilyName
from deployments.diffusion.engine.adapters.bank import Bank, RowWeights
from deployments.diffusion.engine.engine import Engine
from deployments.diffusion.engine.models.components import Components, load
from deployments.diffusion.engine.steps.preparation import Preparation
from deployments.diffusion.engine.steps.runner import Runner
from deployments.diffusion.engine.steps.warm_up import WarmUp
from tests.deployments.diffusion.engine.oracle import assert_same
from tests.deployments.diffusion.engine.pipelines import Pipelines
from tests.deployments.diffusion.engine.tasks import ADAPTERS, Checkpoint, make_all, task

SIZES = (WarmSize(width=72, height=64, rows=3), WarmSize(width=64, height=64))


def said(caplog: pytest.LogCaptureFixture) -> set[str]:
    return {record.getMessage() for record in caplog.records if record.name == "tcd.engine"}


def loaded(models: Path, family: FamilyName, folder: str) -> Components:
    checkpoint = Checkpoint(models, family, folder, ADAPTERS.get(family))
    return load(checkpoint.args().model_copy(update={"warmup": SIZES}))


class Calls:
    """Every UNet call of some components: its shape, and what else acted in it."""

    def __init__(self, parts: Components) -> None:
        self.seen: list[tuple[int, int, int, str]] = []
        bank, forward = parts.banks["unet"], parts.unet.forward
        attention = parts.image_attention
        assert attention is not None

        def watched(sample: Tensor, *args: object, **more: object) -> object:
            acting = {
                "adapters": bank.in_use,
                "pictures": attention.in_use,
                "controls": more["mid_block_additional_residual"] is not None,
                "a mask": more["encoder_attention_mask"] is not None,
            }
            names = " and ".join(name for name, acts in acting.items() if acts)
            rows, _, height, width = sample.shape
            self.seen.append((rows, height, width, names or "plain"))
            return forward(sample, *args, **more)

        parts.unet.forward = watched


@pytest.mark.parametrize("folder", ["sd15", "sd15-inpainting"])
def test_each_size_is_drawn_alone_and_together(folder: str, demo_models: Path) -> None:
    parts = loaded(demo_models, "sd15", folder)
    calls = Calls(parts)
    engine = Engine(parts, ModelUserConfig())
    figures = engine.figures()
    engine.stop()
    kinds = ["plain", "controls", "pictures", "adapters and pictures", "adapters"]
    first = [
        one
        for kind in kinds
        for one in (
            (1, 8, 9, kind),
            (2, 8, 9, kind),
            (2, 8, 9, "a mask" if kind == "plain" else f"{kind} and a mask"),
            *[(2, 8, 9, kind), (2, 8, 9, f"{kind} and a mask")] * ("pictures" in kind),
        )
    ]
    assert calls.seen == [*first, (1, 8, 8, "plain"), (2, 8, 8, "plain")]
    assert (figures.steps_total, figures.rows_total, figures.seconds_per_row_step) == (0, 0, 0.0)


def test_nothing_is_left_of_it(demo_models: Path) -> None:
    checkpoint = Checkpoint(demo_models, "sdxl", "sdxl", ADAPTERS["sdxl"])
    parts = loaded(demo_models, "sdxl", "sdxl")
    engine = Engine(parts, ModelUserConfig())
    one = [task("one")]
    try:
        assert parts.banks["unet"].keys == frozenset()
        assert not engine._runner._rows
        assert not engine._preparation._jobs
        made = make_all(engine, one)
        assert not parts.banks["unet"].in_use
    finally:
        engine.stop()
    assert_same(made["one", 0], Pipelines(checkpoint).image(one[0]))


def test_an_adapter_of_nothing_acts_on_every_layer_and_changes_none(demo_models: Path) -> None:
    unet = loaded(demo_models, "sd15", "sd15").unet
    bank = Bank(unet, torch.float32)
    source = torch.Generator().manual_seed(0)
    sample = torch.randn(1, 4, 8, 8, generator=source)
    hidden = torch.randn(1, 77, unet.config.cross_attention_dim, generator=source)

    def called(row: RowWeights) -> Tensor:
        with torch.inference_mode():
            bank.weigh(torch.tensor(bank.mix([row])))
            output: Tensor = unet(sample, 1, encoder_hidden_states=hidden, return_dict=False)[0]
        return output

    plain = called({})
    bank.hold("nothing", bank.nothing())
    torch.testing.assert_close(called({"nothing": 1.0}), plain, rtol=0, atol=0)


def test_what_cannot_be_drawn_is_said_and_does_not_keep_the_replica_from_starting(
    demo_models: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = replace(loaded(demo_models, "sd15", "sd15"), warm_sizes=SIZES[:1])
    runner, preparation = Runner(parts), Preparation(parts, 2**20)
    forward = parts.unet.forward

    def short(sample: Tensor, *args: object, **more: Mapping[str, object]) -> object:
        if len(sample) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(sample, *args, **more)

    monkeypatch.setattr(parts.unet, "forward", short)
    with caplog.at_level(logging.WARNING, "tcd.engine"):
        WarmUp(parts, preparation, runner).run()
    assert said(caplog) == {"warming up 2 rows: CUDA out of memory"}


@pytest.mark.parametrize("tiled_fits", [True, False])
def test_a_size_that_is_decoded_in_tiles_can_be_warm(
    demo_models: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tiled_fits: bool,
) -> None:
    parts = replace(loaded(demo_models, "sd15", "sd15"), warm_sizes=SIZES[1:])
    tried: list[bool] = []

    def decode(latents: Tensor, *, tiled: bool = False) -> Tensor:
        tried.append(tiled)
        if tiled and tiled_fits:
            return latents
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(parts.vae, "decode", decode)
    with caplog.at_level(logging.WARNING, "tcd.engine"):
        WarmUp(parts, Preparation(parts, 2**20), Runner(parts)).run()
    assert tried == [False, True]
    assert said(caplog) == (set() if tiled_fits else {"warming up failed"})
