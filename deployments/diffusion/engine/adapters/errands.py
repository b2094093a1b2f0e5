"""Errands to sources that may never answer, on threads for which nobody has to wait."""

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError, wait
from contextlib import suppress
from threading import Lock, Thread, Timer
from time import monotonic
from typing import Generic, TypeVar

from configs.sources import SourceUnavailable

Found = TypeVar("Found")


class Silent(SourceUnavailable):
    """A source that does not answer. `str(error)` goes on after its name."""


class Errands(Generic[Found]):
    """Calls that may hang for ever, in a disk or a network. Thread-safe.

    A thread in such a call cannot be ended. It is left to itself when patience is over, and as
    long as it hangs its source is asked nothing: a source costs at most one thread.

    Args:
        most: errands under way at once, those given up counted, until they end.
        most_silent: none is begun while so many that were given up have not ended; `None`: they
            are to places that have nothing to do with each other.
    """

    def __init__(self, most: int, *, most_silent: int | None = None) -> None:
        self._most = most
        self._most_silent = most_silent
        self._lock = Lock()
        self._under_way: dict[str, Future[Found]] = {}

    def send(self, source: str, work: Callable[[], Found], patience_s: float) -> Future[Found]:
        """Begins an errand, or joins the one to this source that is under way.

        The future ends in `Silent` after `patience_s` seconds. Raises it at once if an
        errand to this source was given up and has not ended, or if there are too many.
        """
        with self._lock:
            known = self._under_way.get(source)
            if known is not None and known.done():
                raise Silent("still does not answer")
            if known is not None:
                return known
            silent = sum(one.done() for one in self._under_way.values())
            if self._most_silent is not None and silent >= self._most_silent:
                raise Silent("still does not answer")
            if len(self._under_way) >= self._most:
                raise Silent(f"was not asked: {self._most} others have not answered yet")
            future = self._under_way[source] = Future()
        timer = Timer(patience_s, _give_up, (future, patience_s))
        timer.daemon = True
        future.add_done_callback(lambda _: timer.cancel())
        errand = Thread(
            target=self._run, args=(source, work, future), name="tcd-errand", daemon=True
        )
        try:
            timer.start()
            errand.start()
        except RuntimeError as error:  # the system has no more threads
            self._end(source, future, Silent(f"was not asked: {error}"))
        return future

    def run(
        self, source: str, work: Callable[[], Found], patience_s: float, until: float | None = None
    ) -> Found:
        """An errand's result, waited for. Raises what `send` raises and what `work` does.

        Args:
            until: who asks waits no longer, on the clock of `time.monotonic`, while the errand has
                its time for others.
        """
        future = self.send(source, work, patience_s)
        wait([future], None if until is None else max(0.0, until - monotonic()))
        if not future.done():
            raise Silent("has not answered in time")
        return future.result()

    def _run(self, source: str, work: Callable[[], Found], future: Future[Found]) -> None:
        found: Found | Exception
        try:
            found = work()
        except Exception as error:
            found = error
        self._end(source, future, found)

    def _end(self, source: str, future: Future[Found], found: Found | Exception) -> None:
        with self._lock:
            del self._under_way[source]
        with suppress(InvalidStateError):  # it was given up
            if isinstance(found, Exception):
                future.set_exception(found)
            else:
                future.set_result(found)


def _give_up(future: "Future[Found]", after_s: float) -> None:
    with suppress(InvalidStateError):  # it has just ended
        future.set_exception(Silent(f"has not answered for {after_s:g} s"))
