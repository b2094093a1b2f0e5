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
    claim: Claim
    asked_at: float


class Pool:
    """What the models of a pool want, as far as their policies have been asked."""

    def __init__(self) -> None:
        self._names: WeakKeyDictionary[object, str] = WeakKeyDictionary()  # of its members
        self._standing: dict[str, _Standing] = {}

    def join(self, member: object) -> None:
        """A policy that Serve has made: of a new model, or of one that is deployed anew. Which it
        is shows when it is first asked."""
        self._names[member] = ""

    def tell(self, member: object, name: str, claim: Claim, now: float) -> None:
        """What a model wants from now on, in seconds of a clock that all have; until its policy,
        the `member`, is no more and no other can have come in its place."""
        self._names[member] = name
        self._standing[name] = _Standing(claim, now)

    def claims(self, now: float) -> Mapping[str, Claim]:
        """What each model wants, by name. Serve takes a model without replicas to one as soon as a
        request waits for it, and does not ask its policy until that one runs: so long that one
        is its floor, whatever the others want."""
        names = set(self._names.values())
        if "" not in names:
            self._standing = {name: one for name, one in self._standing.items() if name in names}
        found: dict[str, Claim] = {}
        for name, standing in self._standing.items():
            claim = standing.claim
            if not claim.held and now - standing.asked_at > WAKING_S:
                wanted, alone = max(1.0, claim.wanted), max(1, claim.alone)
                claim = replace(claim, wanted=wanted, alone=alone, held=1, floor=1)
            found[name] = claim
        return found


POOLS: Final[WeakValueDictionary[str, Pool]] = WeakValueDictionary()  # of this process


def pool_of(name: str) -> Pool:
    """The pool of this name; it goes with the last policy that holds it."""
    return POOLS.setdefault(name, Pool())
