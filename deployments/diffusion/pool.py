"""What models want that share GPUs, wherever their policies run together.

Serve's controller runs the policies of all applications in one process, and tells each of its own
deployment alone (docs/adr/0015): what they know of each other they have from here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from weakref import WeakKeyDictionary, WeakValueDictionary

from deployments.diffusion.shares import Claim

WAKING_S = 5.0  # without being asked, while others are: then Serve wakes a model by itself


@dataclass(frozen=True)
class _Standing:
    name: str
    claim: Claim
    asked_at: float


class Pool:
    """What the models of a pool want, as far as their policies have been asked."""

    def __init__(self) -> None:
        self._standing: WeakKeyDictionary[object, _Standing] = WeakKeyDictionary()

    def tell(self, member: object, name: str, claim: Claim, now: float) -> None:
        """What a model wants from now on, in seconds of a clock that all have; until its policy,
        the `member`, is no more."""
        self._standing[member] = _Standing(name, claim, now)

    def claims(self, now: float) -> Mapping[str, Claim]:
        """What each model wants, by name. Serve takes a model without replicas to one as soon as a
        request waits for it, and does not ask its policy until that one runs: so long that one
        is its floor, whatever the others want."""
        found: dict[str, Claim] = {}
        for standing in self._standing.values():
            claim = standing.claim
            if not claim.held and now - standing.asked_at > WAKING_S:
                wanted, alone = max(1.0, claim.wanted), max(1, claim.alone)
                claim = replace(claim, wanted=wanted, alone=alone, held=1, floor=1)
            found[standing.name] = claim
        return found


POOLS: Final[WeakValueDictionary[str, Pool]] = WeakValueDictionary()  # of this process


def pool_of(name: str) -> Pool:
    """The pool of this name; it goes with the last policy that holds it."""
    return POOLS.setdefault(name, Pool())
