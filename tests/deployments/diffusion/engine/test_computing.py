"""What computes on the cores of those who bring it requests lets them go first."""

import os
import sys

import pytest
import torch

from deployments.diffusion.engine.computing import BEHIND, computing


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
@pytest.mark.parametrize(("device", "behind"), [("cpu", BEHIND), ("cuda", 0)])
def test_threads_that_compute_on_a_cpu_go_behind_the_others(device: str, behind: int) -> None:
    mine = os.getpriority(os.PRIO_PROCESS, 0)
    seen: list[int] = []
    thread = computing(
        lambda: seen.append(os.getpriority(os.PRIO_PROCESS, 0)), "tcd-test", torch.device(device)
    )
    thread.start()
    thread.join()
    assert seen == [min(mine + behind, 19)]
    assert os.getpriority(os.PRIO_PROCESS, 0) == mine
