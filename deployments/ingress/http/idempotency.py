"""`Idempotency-Key`: a request that is sent again gets the same answer (`once.py`).

An image request with a key and without a seed gets its seed from the key, so that it means the same
wherever and whenever it is done.
"""

import hashlib
from dataclasses import replace

from fastapi import Request

from deployments.contracts.jobs import ImageRequest
from deployments.ingress.jobs.desk import check_key

HEADER = "idempotency-key"


def idempotency_key(request: Request) -> str | None:
    """The key that a request carries. Raises `InvalidRequest` if it is empty or too long."""
    key = request.headers.get(HEADER)
    if key is not None:
        check_key(key)
    return key


def seeded(asked: ImageRequest, key: str | None) -> ImageRequest:
    """The request with a seed from its key, below 2^32, if it has a key and no seed."""
    if key is None or asked.seed is not None:
        return asked
    digest = hashlib.sha256(key.encode()).digest()
    return replace(asked, seed=int.from_bytes(digest[:4], "big"))
