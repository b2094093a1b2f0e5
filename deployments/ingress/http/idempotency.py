"""`Idempotency-Key`: a request that is sent again gets the same answer.

Images need no memory for it: the same request with the same seed gives the same image, on every
replica and after every restart. So a request with a key and without a seed gets its seed from
the key.
"""

import hashlib
from dataclasses import replace

from fastapi import Request

from deployments.contracts.errors import InvalidRequest
from deployments.contracts.jobs import ImageRequest

HEADER = "idempotency-key"
MAX_CHARS = 255


def idempotency_key(request: Request) -> str | None:
    """The key that a request carries. Raises `InvalidRequest` if it is empty or too long."""
    key = request.headers.get(HEADER)
    if key is not None and not 1 <= len(key) <= MAX_CHARS:
        raise InvalidRequest(f"Idempotency-Key must have 1 to {MAX_CHARS} characters", HEADER)
    return key


def seeded(asked: ImageRequest, key: str | None) -> ImageRequest:
    """The request with a seed from its key, below 2^32, if it has a key and no seed."""
    if key is None or asked.seed is not None:
        return asked
    digest = hashlib.sha256(key.encode()).digest()
    return replace(asked, seed=int.from_bytes(digest[:4], "big"))
