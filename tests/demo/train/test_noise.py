"""The schedule's arithmetic against diffusers' schedulers."""

import torch
from diffusers import DDIMScheduler, TCDScheduler

from demo.base import NOISE_SCHEDULE
from demo.train.noise import Schedule, alphas_cumprod

SCHEDULE = Schedule(torch.device("cpu"))


def draw(seed: int) -> torch.Tensor:
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_noising_is_that_of_the_served_scheduler() -> None:
    scheduler = TCDScheduler.from_config(NOISE_SCHEDULE)
    t = torch.tensor([0, 400, 999])
    torch.testing.assert_close(alphas_cumprod(), scheduler.alphas_cumprod)
    torch.testing.assert_close(
        SCHEDULE.add_noise(draw(0), draw(1), t), scheduler.add_noise(draw(0), draw(1), t)
    )


def test_a_move_is_a_ddim_step() -> None:
    scheduler = DDIMScheduler.from_config(NOISE_SCHEDULE)
    scheduler.set_timesteps(10)
    t, s = int(scheduler.timesteps[3]), int(scheduler.timesteps[4])
    expected = scheduler.step(draw(1), t, draw(0), eta=0.0).prev_sample
    times = torch.tensor([t] * 3), torch.tensor([s] * 3)
    torch.testing.assert_close(SCHEDULE.move(draw(0), draw(1), *times), expected)


def test_a_move_and_the_right_noise_give_the_picture_back() -> None:
    t = torch.tensor([100, 500, 900])
    x = SCHEDULE.add_noise(draw(0), draw(1), t)
    torch.testing.assert_close(SCHEDULE.x0(x, draw(1), t), draw(0), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(SCHEDULE.move(x, draw(1), t, t), x, atol=1e-5, rtol=1e-5)


def test_weights_are_capped_and_fall_with_the_noise() -> None:
    weights = SCHEDULE.weight(torch.tensor([0, 300, 600, 999]))
    assert (weights <= 1).all()
    assert weights[0] < weights[1] <= weights[2] == 1  # little noise weighs little
