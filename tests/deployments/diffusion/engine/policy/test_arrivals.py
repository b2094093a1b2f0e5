"""What came in the last half a minute, in seconds of the device."""

import pytest

from deployments.diffusion.engine.policy.arrivals import WINDOW_S, Arrivals
from deployments.diffusion.engine.policy.estimate import Pace


def test_work_that_comes_by_hand() -> None:
    """Every second 100 latent pixels of the UNet at 2 ms, and 10 of the VAE at 10 ms: 0.3 s."""
    arrivals = Arrivals()
    for second in range(100):
        arrivals.add(float(second), 100, 10)
    assert arrivals.seconds_a_second(99.0, 0.002, 0.01) == pytest.approx(0.3)
    assert arrivals.seconds_a_second(99.0 + WINDOW_S / 2, 0.002, 0.01) == pytest.approx(0.15)
    assert arrivals.seconds_a_second(99.0 + WINDOW_S, 0.002, 0.01) == 0.0


def test_the_best_pace_is_that_of_full_calls_whatever_comes_after() -> None:
    pace = Pace(1.0)
    pace.measure(100, 5.0)  # the first call tunes
    pace.measure(100, 0.6)
    pace.measure(800, 1.6)
    for _ in range(50):
        pace.measure(100, 0.6)
    assert pace.pixel_s > 0.005
    assert pace.best_pixel_s == pytest.approx(0.002, rel=0.06)
    for _ in range(2000):  # a device that has become slower
        pace.measure(100, 0.6)
    assert pace.best_pixel_s == pytest.approx(0.006)
