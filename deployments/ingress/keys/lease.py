"""What a request holds of its key's limits: all of it comes back, however the request ends."""

import asyncio
from dataclasses import replace
from types import TracebackType
from typing import Literal, Self

from deployments.contracts.errors import (
    Cancelled,
    EngineFault,
    Forbidden,
    InvalidRequest,
    Moderated,
    NotReady,
    QueueFull,
)
from deployments.contracts.jobs import Caller
from deployments.ingress.keys.account import Account, Place

REFUSALS = (Forbidden, InvalidRequest, QueueFull)
UNDONE = (*REFUSALS, NotReady, EngineFault)  # no work of these is charged

Outcome = Literal["answered", "refused", "failed", "cancelled", "moderated"]


class Lease:
    """The part of a key that one request has, between `with` and its end.

    Args:
        images: how many it asks for.
    """

    def __init__(self, account: Account, caller: Caller, images: int) -> None:
        self.caller = caller
        self._account = account
        self._images = images
        self._place: Place | None = None
        self._work = 0
        self._made = 0

    def __enter__(self) -> Self:
        return self

    def check(self, model: str, priority: int) -> None:
        """Raises `Forbidden` if the key may not ask this."""
        self._account.check_asked(model, priority)

    async def turn(self) -> None:
        """Waits until the request may go on; at once if it has gone on before. Raises `Forbidden`
        if it never may, `RateLimited` if it is not even to wait."""
        if self._place is None:
            self._account.check_work()
            self._place = self._account.enter(self._images)
        await self._place.given

    def charge(self, work: int) -> None:
        """Takes the work of the request, known by now, in UNet pixel-steps; what was charged
        before comes back. Raises `RateLimited` if others took what was left."""
        self._give_back_work()
        self._account.check_work()
        self._account.spend(work)
        self._work = work

    def made(self, images: int) -> None:
        """So many more images are done."""
        self._made += images

    def __exit__(
        self,
        _: type[BaseException] | None,
        error: BaseException | None,
        __: TracebackType | None,
    ) -> None:
        if isinstance(error, UNDONE):
            self._give_back_work()
        outcome = outcome_of(error)
        before = self._account.totals
        self._account.totals = replace(
            before,
            **{outcome: getattr(before, outcome) + 1},
            images=before.images + self._made,
            work=before.work + self._work,
        )
        if self._place is not None:
            self._account.leave(self._place)

    def _give_back_work(self) -> None:
        self._account.spend(-self._work)
        self._work = 0


def outcome_of(error: BaseException | None) -> Outcome:
    """How a request ended."""
    if error is None:
        return "answered"
    if isinstance(error, Cancelled | GeneratorExit | asyncio.CancelledError):
        return "cancelled"
    if isinstance(error, Moderated):
        return "moderated"
    return "refused" if isinstance(error, REFUSALS) else "failed"
