"""Whose turn it is on the device: between callers, by work and weight. No torch, no clock.

Start-time fair queueing (Goyal, Vin, Cheng 1996): every caller has a tag, which grows by the work
done for it, divided by its weight; the lowest tag goes first. A caller who comes, or comes back,
has at least the tag at which the last call was led: nobody saves turns up while idle, and a
newcomer goes before those who were just served. Who has no slot has no turns, either: shares hold
as long as every caller holds one, so for twice as many as `max_running` (`places.py`).
"""

from deployments.contracts.jobs import Caller
from deployments.diffusion.engine.policy.batch import Batch


class Turns:
    """The tags of all callers, in latent pixels computed for a caller of weight 1."""

    def __init__(self) -> None:
        self._now = 0.0  # where the last call was led; no tag is below
        self._tags: dict[str, float] = {}  # those that are above, by caller

    def tag(self, caller: Caller) -> float:
        """Where a caller stands."""
        return self._tags.get(caller.name, self._now)

    def charge(self, batch: Batch) -> None:
        """Books a call that was made: all pay for their own rows."""
        now = self.tag(batch.rows[0].caller)
        for row in batch.rows:
            self._tags[row.caller.name] = self.tag(row.caller) + row.charge
        self._now = max(self._now, now)
        self._tags = {name: tag for name, tag in self._tags.items() if tag > self._now}

    def reset(self) -> None:
        """Nobody waits any more: all are equal again."""
        self._now, self._tags = 0.0, {}
