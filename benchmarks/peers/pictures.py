"""Whether two servers answer with the same pictures."""

import base64
import io
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
from PIL import Image

from benchmarks.peers.running import Server
from benchmarks.peers.traffic import SIDE, Kind, Request, requests
from deployments.contracts.jobs import Pixels

LEVELS = 2  # of 255, at any pixel
COMPARED = 16  # requests of each kind
SEED = -1  # of no measured turn


def compare(ours: Server, peer: Server, kind: Kind) -> int:
    """The largest difference at any pixel of some requests that are asked at once.

    Raises SystemExit if it is above `LEVELS`.
    """
    asked = list(islice(requests(kind, SEED), COMPARED))
    pairs = zip(asked, _pictures(ours, asked), _pictures(peer, asked), strict=True)
    largest = 0
    for request, left, right in pairs:
        levels = int(np.abs(left.astype(int) - right.astype(int)).max())
        largest = max(largest, levels)
        if levels > LEVELS:
            raise SystemExit(
                f"{peer.name} and {ours.name} differ by {levels} levels of 255 on {request}"
            )
    return largest


def _pictures(server: Server, asked: Sequence[Request]) -> list[Pixels]:
    with ThreadPoolExecutor(len(asked)) as callers:
        return [_pixels(body) for body in callers.map(server.ask, asked)]


def _pixels(body: bytes) -> Pixels:
    file = base64.b64decode(json.loads(body)["data"][0]["b64_json"])
    pixels = np.asarray(Image.open(io.BytesIO(file)).convert("RGB"))
    assert pixels.shape == (SIDE, SIDE, 3), pixels.shape
    return pixels
