"""How far a caller's requests are, as A1111 says it of its one queue."""

import time
from collections.abc import Sequence

from pydantic import BaseModel

from deployments.ingress.http.a1111.runs import Run

LEAST = 0.01  # of something that runs, so that clients see that it does


class ProgressState(BaseModel):
    """Of all requests together; the steps are those of the oldest one's next image."""

    skipped: bool = False
    interrupted: bool = False
    stopping_generation: bool = False
    job: str = ""
    job_count: int = 0
    job_timestamp: str = "0"
    job_no: int = 0
    sampling_step: int = 0
    sampling_steps: int = 0


class ProgressBody(BaseModel):
    """`GET /sdapi/v1/progress`: `progress` from 0 to 1, `eta_relative` in seconds."""

    progress: float = 0.0
    eta_relative: float = 0.0
    state: ProgressState = ProgressState()
    current_image: None = None
    textinfo: None = None


def progress_of(runs: Sequence[Run]) -> ProgressBody:
    """`runs`: the oldest first."""
    if not runs:
        return ProgressBody()
    images = sum(run.images for run in runs)
    done = max(sum(run.part * run.images for run in runs) / images, LEAST)
    oldest = runs[0]
    elapsed_s = time.monotonic() - oldest.began
    step, steps = min(oldest.steps.values(), default=(0, 0))
    return ProgressBody(
        progress=done,
        eta_relative=elapsed_s / done - elapsed_s,
        state=ProgressState(
            interrupted=any(run.interrupted for run in runs),
            job="drawing",
            job_count=images,
            job_no=sum(len(run.finished) + len(run.failed) for run in runs),
            sampling_step=step,
            sampling_steps=steps,
        ),
    )
