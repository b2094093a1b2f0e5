"""Which faults a soak has, and in which order."""

import random
from collections.abc import Collection

from tests.soak import faults
from tests.soak.faults import Fault
from tests.soak.gate import MODES
from tests.soak.kinds import HUB_STYLE, S3_STYLE
from tests.soak.load import Crowd
from tests.soak.servers import Servers

SHORT_S, LONG_S, OUTAGE_S = 8.0, 60.0, 15.0
JUMPS_S = (3600.0, -3600.0)
BURST = 100
# Those feared most stand first: a short run gets through them.
KINDS = (
    *("model-sd15/Diffusion", "tcd/MapStore", "model-sdxl/Diffusion", "tcd/Ingress"),
    *("tcd/Directory", "tcd/Depth", "tcd/Canny", "tcd/ImageEncoder-sd15", "tcd/JobWorker"),
    *("tcd/JobStore", "controller", "proxy"),
)
ENGINE = "/Diffusion"
LONG_STOPS = ("model-sdxl/Diffusion", "tcd/MapStore", "tcd/Depth")


def plan(servers: Servers, crowd: Crowd, kinds: Collection[str], seed: int) -> list[Fault]:
    """Every fault once, the first three always the same. `kinds`: the processes that there are."""
    known = [kind for kind in KINDS if kind in kinds]
    first = [faults.kill(known[0]), faults.kill(known[1]), faults.stop(known[2], SHORT_S)]
    rest = [
        *(faults.kill(kind) for kind in known[2:]),
        *(faults.stop(kind, SHORT_S) for kind in known if kind != known[2]),
        *(faults.stop(kind, LONG_S) for kind in LONG_STOPS),
        *(faults.outage("S3", servers.s3, mode, OUTAGE_S, crowd, S3_STYLE) for mode in MODES),
        *(faults.outage("hub", servers.hub, mode, OUTAGE_S, crowd, HUB_STYLE) for mode in MODES),
        *(faults.clock_jump(servers.clock, jump, SHORT_S) for jump in JUMPS_S),
        *(faults.engine_fault(kind, servers.broken) for kind in known if kind.endswith(ENGINE)),
        faults.full_disk(servers.disk, OUTAGE_S),
        faults.cancelled_burst(crowd, BURST),
    ]
    random.Random(seed).shuffle(rest)
    return first + rest
