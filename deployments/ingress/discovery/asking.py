"""A handle call that ends with whoever waits for it."""

import asyncio
from typing import TypeVar

from ray.serve.handle import DeploymentResponse

Answer = TypeVar("Answer")


async def asked(response: DeploymentResponse[Answer], patience_s: float | None = None) -> Answer:
    """What a call comes to. Raises TimeoutError after `patience_s`. The call is cancelled then, and
    if its caller is."""
    try:
        async with asyncio.timeout(patience_s):
            return await response
    finally:
        response.cancel()  # does nothing to a call that has ended
