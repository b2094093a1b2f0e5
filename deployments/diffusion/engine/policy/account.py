"""What one caller has in an engine, has had of it, and was told. No torch."""

from dataclasses import dataclass, field
from math import exp

from deployments.contracts.jobs import Caller

OF_LATE_S = 10.0  # after so long, what was counts for little more than a third


@dataclass(eq=False)
class Account:
    """A caller's account.

    Attributes:
        pending: images accepted and not yet answered.
        work: UNet pixel-steps done.
    """

    caller: Caller
    pending: int = 0
    work: int = 0
    _promises: list[tuple[float, int]] = field(default_factory=list)  # due when, images
    _lately: float = 0.0
    _had_at: float = 0.0

    def promised(self, now: float) -> int:
        """Images that were refused and told to come back after `now`."""
        self._promises = [(due, images) for due, images in self._promises if due > now]
        return sum(images for _, images in self._promises)

    def promise(self, due: float, images: int) -> None:
        """So many images were told to come back then."""
        self._promises.append((due, images))

    def lately(self, now: float) -> float:
        """The part of the device's time that it had of late."""
        return self._lately * exp((self._had_at - now) / OF_LATE_S)

    def had(self, now: float, seconds: float) -> None:
        """It has so much of the device's time."""
        self._lately, self._had_at = self.lately(now) + seconds / OF_LATE_S, now


class Accounts:
    """The accounts of those who have something pending, and of those who had last.

    Args:
        idle: most accounts that are kept of callers with nothing pending.
    """

    def __init__(self, idle: int) -> None:
        self._idle = idle
        self._accounts: dict[str, Account] = {}  # by caller, the one opened last at the end

    def of(self, caller: Caller) -> Account:
        """A caller's account, opened if there is none; its weight from now on is `caller`'s."""
        account = self._accounts.pop(caller.name, None) or Account(caller)
        account.caller = caller
        idle = [name for name, other in self._accounts.items() if not other.pending]
        for name in idle[: max(0, len(idle) - self._idle)]:
            del self._accounts[name]
        self._accounts[caller.name] = account
        return account

    def all(self) -> tuple[Account, ...]:
        """Every account that is kept."""
        return tuple(self._accounts.values())
