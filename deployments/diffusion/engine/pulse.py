"""Heartbeats: a thread that has been at one piece of work for too long hangs."""

import sys
import traceback
from collections.abc import Callable, Mapping
from threading import Event, Thread, get_ident
from time import monotonic

LOOK_EVERY_S = 1.0


class Pulse:
    """When a thread last took something up. Its own thread calls `beat` and `rest`."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._thread = 0

    def beat(self) -> None:
        """The thread takes up a piece of work."""
        self._since, self._thread = monotonic(), get_ident()

    def rest(self) -> None:
        """The thread waits for work: it may do so for ever."""
        self._since = None

    def at_it_s(self, counted_from: float) -> float:
        """Seconds for which it has been at one piece of work; 0 while it waits for some. What was
        before `counted_from`, on the clock of `time.monotonic`, does not count."""
        since = self._since
        return 0.0 if since is None else monotonic() - max(since, counted_from)

    @property
    def place(self) -> str:
        """Where in the code its thread is, as a traceback has it."""
        frame = sys._current_frames().get(self._thread)
        return "".join(traceback.format_stack(frame)) if frame is not None else ""


class Hang(Exception):
    """A thread did not turn for longer than it may. Its note says where it stands."""


class Watch:
    """A thread that looks at pulses, and says once if one of them stands still.

    It runs in the process that it watches: a thread that hangs and keeps the interpreter's lock
    stops it too. Against that helps only who asks from outside, as Serve's health check does.
    Time for which the whole process stood still is nobody's: all are counted anew after it.

    Args:
        pulses: by what the thread is called.
        patience_s: how long one piece of work may take now, in seconds.
        stands_still: called on this thread, once.
    """

    def __init__(
        self,
        pulses: Mapping[str, Pulse],
        patience_s: Callable[[], float],
        stands_still: Callable[[Hang], None],
    ) -> None:
        self._pulses = pulses
        self._patience_s = patience_s
        self._stands_still = stands_still
        self._closed = Event()
        self._thread = Thread(target=self._look, name="tcd-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Ends the thread. Not called on it."""
        self._closed.set()
        self._thread.join()

    def _look(self) -> None:
        counted_from = looked = monotonic()
        while not self._closed.wait(min(LOOK_EVERY_S, self._patience_s() / 4)):
            last, looked = looked, monotonic()
            if looked - last > self._patience_s() / 2:
                counted_from = looked
            for name, pulse in self._pulses.items():
                at_it_s = pulse.at_it_s(counted_from)
                if at_it_s > self._patience_s():
                    hang = Hang(f"the {name} has not turned for {at_it_s:.0f} s")
                    hang.add_note(pulse.place)
                    self._stands_still(hang)
                    return
