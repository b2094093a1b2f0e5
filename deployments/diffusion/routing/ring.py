"""Consistent hashing: where a key is at home among members that come and go."""

from bisect import bisect
from collections.abc import Collection, Iterator
from hashlib import blake2b

POINTS = 64  # of each member: its share of the keys is even within an eighth or so


class Ring:
    """Members on a circle of hashes, each at many points; a key's homes are those met from its own
    place on. A member that comes or goes moves only keys that it has or had. Every process
    that knows the same members finds the same homes."""

    def __init__(self) -> None:
        self._owners: dict[int, str] = {}
        self._points: list[int] = []
        self._members: frozenset[str] = frozenset()

    def update(self, members: Collection[str]) -> None:
        """These are the members from now on. Takes time in their number only if they changed."""
        now = frozenset(members)
        come, gone = now - self._members, self._members - now
        if not come and not gone:
            return
        new = {_hash(f"{member}/{number}"): member for member in come for number in range(POINTS)}
        kept = {p: self._owners[p] for p in self._points if self._owners[p] not in gone}
        self._owners = kept | new
        self._points = sorted(self._owners)  # those that were there are in order already
        self._members = now

    def homes(self, key: str) -> Iterator[str]:
        """Every member once, the nearest home first."""
        start = bisect(self._points, _hash(key))
        seen: set[str] = set()
        for place in range(len(self._points)):
            owner = self._owners[self._points[(start + place) % len(self._points)]]
            if owner not in seen:
                seen.add(owner)
                yield owner
            if len(seen) == len(self._members):
                return


def _hash(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest())
