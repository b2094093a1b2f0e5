"""What replicas say of themselves, through Serve's controller and back."""

import json
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.contracts.jobs import ImageJob, LoraWeight
from deployments.diffusion.engine.policy.report import Report, adapters_of, fingerprint

SECONDS = st.floats(0, 1e6)
REPORTS = st.builds(
    Report,
    st.integers(0, 10**6).map(lambda tenths: round(tenths / 10, 1)),
    SECONDS,
    SECONDS,
    st.integers(0, 2**40),
    st.frozensets(st.integers(0, 2**32 - 1), max_size=256),
    st.frozensets(st.integers(0, 2**32 - 1), max_size=256),
)


@given(REPORTS)
def test_it_comes_back_as_it_was(report: Report) -> None:
    assert Report.of(json.loads(json.dumps(report.stats))) == report


def test_who_rests_says_the_same() -> None:
    assert Report(0.04).stats == Report(0.01).stats
    assert Report(rows_total=1).stats != Report(rows_total=2).stats


@pytest.mark.parametrize("stats", [{}, {"pending_s": 1.0}, {**Report().stats, "failed": None}])
def test_what_says_nothing(stats: Mapping[str, object]) -> None:
    assert Report.of(stats) is None


def test_a_jobs_adapters() -> None:
    job = ImageJob("a", "b", (1,), 64, 64, loras=(LoraWeight("ink"), LoraWeight("neon", 0.5)))
    assert adapters_of(job) == (fingerprint("unet", "ink"), fingerprint("unet", "neon"))
    video = ImageJob(
        "a",
        "b",
        (1,),
        64,
        64,
        num_frames=8,
        loras=(LoraWeight("ink"),),
        motion_loras=(LoraWeight("pan"),),
    )
    names = [fingerprint("motion_unet", name) for name in ("ink", "pan")]
    assert list(adapters_of(video)) == names
    assert len({*adapters_of(job), *names}) == 4
