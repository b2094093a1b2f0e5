"""A handle call with a limit of its own."""

import asyncio
from typing import TypeVar

from ray.serve.handle import DeploymentResponse

Answer = TypeVar("Answer")


async def asked(response: DeploymentResponse[Answer], patience_s: float) -> Answer:
    """What a call comes to. Raises TimeoutError after `patience_s`; the call is cancelled then."""
    try:
        async with asyncio.timeout(patience_s):
            return await response
    finally:
        response.cancel()  # does nothing to a call that has ended
