"""What came in the last half a minute, in seconds of the device."""

import pytest

from deployments.diffusion.engine.policy.arrivals import WINDOW_S, Arrivals
from deployments.diffusion.engine.policy.estimate import Pace


def test_work_that_comes_by_hand() -> None:
    """Every second 100 latent pixels of the UNet at 2 ms, and of the VAE 10 at 10 ms, and 20 of
    start pictures at 5 ms: 0.4 s."""
    arrivals = Arrivals()
    for second in range(100):
        arrivals.add(float(second), 100, 10, 20)
    paces = 0.002, 0.01, 0.005
    assert arrivals.seconds_a_second(99.0, *paces) == pytest.approx(0.4)
    assert arrivals.seconds_a_second(99.0 + WINDOW_S / 2, *paces) == pytest.approx(0.2)
    assert arrivals.seconds_a_second(99.0 + WINDOW_S, *paces) == 0.0


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
