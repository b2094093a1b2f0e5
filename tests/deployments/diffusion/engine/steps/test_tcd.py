"""The row-wise TCD step is `TCDScheduler.step`, for rows that stand at different steps."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from diffusers import TCDScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from deployments.diffusion.engine.models.schedule import KNOWN_SCHEDULES, Schedule
from deployments.diffusion.engine.steps.tcd import (
    coefficients,
    tcd_step,
)

SHAPE = (4, 6, 5)
PREDICTIONS = (
    "epsilon",
    "sample",
    "v_prediction",
    "v_prediction at zero SNR",
    "sample at zero SNR",
)
EXACT = 1e-5  # float32 rounding, of numbers around 1


@dataclass(frozen=True)
class Row:
    """A trajectory: its steps, eta and seed, and how many batch steps late it joins."""

    steps: int
    eta: float
    seed: int
    joins: int = 0


def scheduler(prediction_type: str = "epsilon") -> TCDScheduler:
    """Stable Diffusion's noise schedule, "at zero SNR" if its prediction is called so."""
    kind, zero_snr, _ = prediction_type.partition(" at zero SNR")
    return TCDScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type=kind,
        rescale_betas_zero_snr=bool(zero_snr),
    )


def model(x: Tensor, t: int) -> Tensor:
    """Something of the latents and the timestep, of about unit size."""
    return (x + t / 500).sin()


def alone(row: Row, prediction_type: str) -> list[Tensor]:
    """The row's latents after each step, by diffusers: (steps, C, H, W)."""
    theirs = scheduler(prediction_type)
    theirs.set_timesteps(row.steps)
    generator = torch.Generator().manual_seed(row.seed)
    x = torch.randn((1, *SHAPE), generator=generator)
    path: list[Tensor] = []
    for t in theirs.timesteps:
        output = model(x, int(t))
        x = theirs.step(output, t, x, eta=row.eta, generator=generator).prev_sample
        path.append(x[0])
    return path


def together(rows: Sequence[Row], prediction_type: str) -> list[list[Tensor]]:
    """The same for all rows in one batch, each joining in its time and leaving when done."""
    schedule = Schedule(scheduler(prediction_type))
    plans = [schedule.steps(row.steps, row.eta) for row in rows]
    generators = [torch.Generator().manual_seed(row.seed) for row in rows]
    paths: list[list[Tensor]] = [[] for _ in rows]
    x = [torch.randn((1, *SHAPE), generator=g)[0] for g in generators]
    for now in range(max(row.joins + row.steps for row in rows)):
        batch = [i for i, row in enumerate(rows) if 0 <= now - row.joins < row.steps]
        if not batch:
            continue
        steps = [plans[i][now - rows[i].joins] for i in batch]
        output = torch.stack([model(x[i], s.t) for i, s in zip(batch, steps, strict=True)])
        z = torch.stack(
            [
                torch.randn((1, *SHAPE), generator=generators[i])[0]
                if step.draws
                else torch.zeros(SHAPE)
                for i, step in zip(batch, steps, strict=True)
            ]
        )
        latents = torch.stack([x[i] for i in batch])
        numbers = coefficients(steps)
        x_prev = tcd_step(latents, output, numbers, z, schedule.prediction_type).x_prev
        for place, i in enumerate(batch):
            x[i] = x_prev[place]
            paths[i].append(x[i])
    return paths


def assert_equal(rows: Sequence[Row], prediction_type: str) -> None:
    for row, path in zip(rows, together(rows, prediction_type), strict=True):
        expected = alone(row, prediction_type)
        assert len(path) == len(expected) == row.steps
        for ours, theirs in zip(path, expected, strict=True):
            scale = max(1.0, float(theirs.abs().max()))
            torch.testing.assert_close(ours / scale, theirs / scale, rtol=EXACT, atol=EXACT)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 8, 13, 25, 49, 50])
def test_without_noise_one_row_is_the_schedulers(steps: int, prediction_type: str) -> None:
    assert_equal([Row(steps, eta=0.0, seed=1)], prediction_type)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_rows_at_different_steps_with_a_generator_each(prediction_type: str) -> None:
    rows = [
        Row(50, 0.3, seed=1),
        Row(1, 0.0, seed=2, joins=3),
        Row(2, 0.3, seed=3, joins=3),
        Row(4, 1.0, seed=4, joins=5),
        Row(8, 0.0, seed=5, joins=5),
        Row(8, 0.3, seed=5, joins=6),
        Row(13, 0.999, seed=6, joins=20),
        Row(4, 1.0, seed=4, joins=40),
    ]
    assert_equal(rows, prediction_type)


@given(
    rows=st.lists(
        st.builds(
            Row,
            steps=st.integers(1, 50),
            eta=st.sampled_from([0.0, 0.3, 1.0]) | st.floats(0, 1),
            seed=st.integers(0, 2**63 - 1),
            joins=st.integers(0, 20),
        ),
        min_size=1,
        max_size=6,
    ),
    prediction_type=st.sampled_from(PREDICTIONS),
)
@settings(max_examples=60)
def test_any_rows_together_are_each_alone(rows: list[Row], prediction_type: str) -> None:
    assert_equal(rows, prediction_type)


@pytest.mark.parametrize("prediction_type", PREDICTIONS)
def test_the_estimate_of_x0_is_what_the_noise_is_taken_from(prediction_type: str) -> None:
    """x_t = alpha_t x_0 + sigma_t eps holds for what the step reads out of the model."""
    schedule = Schedule(scheduler(prediction_type))
    steps = [schedule.steps(4, 0.3)[i] for i in range(4)]
    generator = torch.Generator().manual_seed(0)
    x_0, eps = torch.randn((2, 4, *SHAPE), generator=generator)
    alpha_t, sigma_t, *_ = coefficients(steps)
    x_t = alpha_t * x_0 + sigma_t * eps
    said = {"epsilon": eps, "sample": x_0, "v_prediction": alpha_t * eps - sigma_t * x_0}
    kind = schedule.prediction_type
    output = tcd_step(x_t, said[kind], coefficients(steps), eps, kind)
    torch.testing.assert_close(output.x_0, x_0, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    steps = Schedule(scheduler()).steps(4, 0.3)
    x, output, z = torch.randn((3, 4, *SHAPE), generator=torch.Generator().manual_seed(0)).to(dtype)
    numbers = coefficients(steps)
    half = tcd_step(x, output, numbers, z, "epsilon")
    full = tcd_step(x.float(), output.float(), numbers, z.float(), "epsilon")
    assert half.x_prev.dtype == half.x_0.dtype == dtype
    assert torch.equal(half.x_prev, full.x_prev.to(dtype))
    assert torch.equal(half.x_0, full.x_0.to(dtype))


@pytest.mark.parametrize(("eta", "draws"), [(0.0, 0), (0.3, 7), (1.0, 7)])
def test_noise_is_drawn_at_every_step_but_the_last_unless_eta_is_zero(
    eta: float, draws: int
) -> None:
    assert sum(step.draws for step in Schedule(scheduler()).steps(8, eta)) == draws


def test_schedules_of_ever_new_etas_are_not_all_remembered() -> None:
    schedule = Schedule(scheduler())
    for n in range(2 * KNOWN_SCHEDULES):
        schedule.steps(1, n / 1000)
    assert len(schedule._known) <= KNOWN_SCHEDULES


def test_the_default_eta_is_the_schedulers() -> None:
    from deployments.contracts.jobs import ImageJob

    default = inspect.signature(TCDScheduler.step).parameters["eta"].default
    assert ImageJob("job", "", (0,), 64, 64).eta == default


def test_a_prediction_type_that_tcd_does_not_know_is_refused() -> None:
    with pytest.raises(ValueError, match="'flow'"):
        Schedule(scheduler("flow"))


def test_more_steps_than_it_was_distilled_for_are_refused() -> None:
    with pytest.raises(ValueError, match=r"original_inference_steps|num_inference_steps"):
        Schedule(scheduler()).steps(51, 0.3)
