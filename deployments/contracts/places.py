"""Who may hold how many of what is limited: slots on the device, the queue. No torch.

A place is held until its image is done, and nobody is sent away from one. So that a newcomer finds
some all the same, a limit holds for those who have their share of it; who has less may go beyond
it, until all together hold twice the limit. A sole caller has exactly the limit. Those in the
background have half of it together, and nothing beyond it: others find places whatever they hold.
"""

from collections.abc import Iterable
from math import ceil

from deployments.contracts.jobs import Caller

OVERFLOW = 2  # times the limit: what all callers may hold together


class Places:
    """Places, shared by weight.

    Args:
        limit: how many there are.
        held: everyone who is there, and how many places they have (0: they only wait). May name
            a caller more than once.
    """

    def __init__(self, limit: int, held: Iterable[tuple[Caller, int]]) -> None:
        self.limit = limit
        self._held: dict[str, int] = {}
        self._background = 0
        self._weights: dict[str, float] = {}
        for caller, places in held:
            self.take(caller, places)

    def take(self, caller: Caller, places: int = 1) -> None:
        """A caller has so many more."""
        self._held[caller.name] = self._held.get(caller.name, 0) + places
        if caller.background:
            self._background += places
        else:
            self._weights[caller.name] = caller.weight

    def part(self, caller: Caller) -> float:
        """A caller's part of what is shared, beside those who are there but for the background;
        above 0, at most 1."""
        others = sum(weight for name, weight in self._weights.items() if name != caller.name)
        return caller.weight / (others + caller.weight)

    def lacking(self, caller: Caller, places: int = 1) -> tuple[int, int]:
        """How many must be given back before a caller may have so many more: by anybody, or
        else by this caller alone. It may have them now if one of the two is not above 0."""
        used, held = sum(self._held.values()), self._held.get(caller.name, 0)
        if caller.background:
            lack = used + places - self.limit
            if self._background:  # the first may have more at once than the rest together
                lack = max(lack, self._background + places - self.limit // 2)
            return lack, lack
        share = ceil(self.limit * self.part(caller))
        beyond = max(held + places - share, used + places - OVERFLOW * self.limit)
        return used + places - self.limit, beyond

    def allow(self, caller: Caller, places: int = 1) -> bool:
        """Whether a caller may have so many more now."""
        return min(self.lacking(caller, places)) <= 0
