"""How long accepted work will take, against arithmetic by hand."""

import pytest

from deployments.diffusion.engine.policy.estimate import Outlook, Pace, Work


def paces(unet_s: float, vae_s: float) -> tuple[Pace, Pace]:
    unet, vae = Pace(1.0), Pace(1.0)
    unet.measure(1, unet_s)
    vae.measure(1, vae_s)
    return unet, vae


def test_a_pace_is_taken_from_the_first_measurement_and_follows_the_others() -> None:
    pace = Pace(0.5)
    assert pace.pixel_s * 64 * 64 == pytest.approx(0.5)
    pace.measure(100, 2.0)
    assert pace.pixel_s == pytest.approx(0.02)
    pace.measure(100, 3.0)
    assert pace.pixel_s == pytest.approx(0.021)


def test_nothing_to_do_takes_no_time() -> None:
    assert Outlook.of(Work(), *paces(1.0, 1.0)) == Outlook()


def test_what_waits_for_the_vae_alone_takes_the_vaes_time() -> None:
    outlook = Outlook.of(Work(decoding=8, decode_pixels=800), *paces(99.0, 0.01))
    assert outlook.decode_s == outlook.pending_s == pytest.approx(8.0)
    assert outlook.first_s == pytest.approx(1.0)
    assert outlook.room_s(8) == pytest.approx(8.0)


def test_rows_are_to_be_decoded_too() -> None:
    work = Work(rows=4, unet_pixels=1600, until_first=400, row_pixels=400)
    slow_unet = Outlook.of(work, *paces(0.01, 0.001))
    assert slow_unet.pending_s == pytest.approx(16.0)
    assert slow_unet.first_s == pytest.approx(4.0 + 0.1), "its steps, then its decoding"
    slow_vae = Outlook.of(work, *paces(0.001, 0.1))
    assert slow_vae.pending_s == pytest.approx(40.0)


@pytest.mark.parametrize(("come", "together"), [(1, 2), (3, 4), (99, 4)])
def test_who_joins_the_firsts_calls_makes_them_longer(come: int, together: int) -> None:
    work = Work(rows=1, unet_pixels=1000, until_first=1000, row_pixels=100, at_once=4)
    assert work.and_(come, come * 1000, come * 100).until_first == together * 1000
    assert Work(at_once=4).and_(1 + come, (1 + come) * 1000, 0).until_first == together * 1000


def test_who_finds_the_firsts_calls_full_changes_them_not() -> None:
    work = Work(rows=9, unet_pixels=9000, until_first=2000, row_pixels=900, at_once=4)
    assert work.and_(5, 5000, 500).until_first == 2000
    assert work.and_(0, 0, 0) == work
    assert Work().and_(0, 0, 0) == Work()


def test_unet_and_vae_work_side_by_side() -> None:
    work = Work(rows=2, unet_pixels=1000, row_pixels=200, decoding=3, decode_pixels=300)
    outlook = Outlook.of(work, *paces(0.01, 0.01))
    assert outlook.pending_s == pytest.approx(10.0)
    assert outlook.each_s == pytest.approx(2.0)
    assert outlook.first_s == pytest.approx(1.0), "the decoder answers first"


def test_a_pace_of_mixed_sizes_is_that_of_all_their_pixels() -> None:
    """Small calls take longer for each of their pixels; the queue has few of those."""
    pace = Pace(0.5)
    for _ in range(100):
        pace.measure(64, 0.016)
        pace.measure(8 * 4096, 0.6)
    assert 1000 * (64 + 8 * 4096) * pace.pixel_s == pytest.approx(1000 * 0.616, rel=0.1)
