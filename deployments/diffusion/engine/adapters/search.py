"""Adapters that are looked for by name: who asks twice, or with many others, asks once."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Lock
from time import monotonic

from configs.collection import Collection, Held
from configs.sources import SourceChanged, SourceError, SourceUnavailable
from deployments.diffusion.engine.adapters.errands import Errands, Silent

MOST = 64  # names that are looked for at a time
REMEMBERED = 4096  # names
PATIENCE_S = 5.0
AGAIN_S = 5.0  # what is known is taken to be so still, where nobody answered
OUTAGE_S = 1.0  # nothing is asked after somebody answered that nothing can be had
log = logging.getLogger("tcd.engine")


@dataclass(frozen=True)
class _Seen:
    held: Held | None
    until: float  # on the clock of `time.monotonic`


@dataclass(frozen=True)
class _Outage:
    said: str  # and no error, which would hold on to whomever it was raised for
    until: float  # on the clock of `time.monotonic`


class LoraSearch:
    """Looks for adapters in one collection. Thread-safe.

    While a collection does not answer whom it was given up for, nobody else waits for it: they
    are told so at once, and adapters that were found before are taken to be as they were. Nor
    does anybody ask within `OUTAGE_S` of an answer that was none.
    """

    def __init__(self, collection: Collection) -> None:
        self._collection = collection
        self._errands: Errands[Held | None] = Errands(MOST, most_silent=1)
        self._lock = Lock()
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._outage: _Outage | None = None

    def knows(self, name: str) -> bool:
        """Whether `find` would ask nobody."""
        with self._lock:
            seen = self._seen.get(name)
        return seen is not None and seen.until > monotonic()

    def find(self, name: str, until: float | None = None) -> Held | None:
        """The adapter of this name; `None`: there is none. Waits for at most `PATIENCE_S`, and no
        longer than `until`, on the clock of `time.monotonic`.

        Raises `SourceError` or `OSError` if nobody can tell.
        """
        with self._lock:
            seen = self._seen.get(name)
        if seen is not None and seen.until > monotonic():
            return seen.held
        try:
            return self._ask(name, until)
        except (SourceError, OSError) as error:
            if seen is None or seen.held is None:
                raise
            log.warning("lora %r may have changed, it cannot be looked for: %s", name, error)
            self._remember(name, seen.held, AGAIN_S)
            return seen.held

    def _ask(self, name: str, until: float | None) -> Held | None:
        outage = self._outage
        if outage is not None and outage.until > monotonic():
            raise SourceUnavailable(outage.said)
        try:
            return self._errands.run(name, partial(self._look, name), PATIENCE_S, until)
        except Silent:
            raise
        except SourceError as error:
            self._outage = _Outage(str(error), monotonic() + OUTAGE_S)
            raise

    def _look(self, name: str) -> Held | None:
        with self._lock:
            seen = self._seen.get(name)
        if seen is not None and seen.until > monotonic():
            return seen.held  # another errand has just come back
        held = self._collection.find(name)
        if held is not None:
            held = replace(held, bring=partial(self._bring, name, held.bring))
        fresh_s = self._collection.missing_s if held is None else self._collection.fresh_s
        self._remember(name, held, fresh_s)
        return held

    def _bring(self, name: str, bring: Callable[[], Path]) -> Path:
        """Who asks after somebody met a change has it looked for."""
        try:
            return bring()
        except SourceChanged:
            with self._lock:
                self._seen.pop(name, None)
            raise

    def _remember(self, name: str, held: Held | None, for_s: float) -> None:
        with self._lock:
            self._seen[name] = _Seen(held, monotonic() + for_s)
            self._seen.move_to_end(name)
            while len(self._seen) > REMEMBERED:
                self._seen.popitem(last=False)
