"""Where style adapters come from: what is asked of disks and networks, and what is said of them.

Clients read what is said: it names adapters, never the server's files; the log has those.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from functools import partial
from os.path import dirname
from threading import Lock
from time import monotonic

from configs.collection import Held, collection_at
from configs.sources import SourceChanged, SourceError, SourceUnavailable, fetch, state
from deployments.contracts.errors import GenerationFailed, InvalidRequest, NotReady
from deployments.diffusion.engine.adapters.errands import Errands, Silent
from deployments.diffusion.engine.adapters.files import (
    LoraError,
    LoraFile,
    read_file,
    read_weights,
)
from deployments.diffusion.engine.adapters.search import LoraSearch
from deployments.diffusion.engine.policy.spec import LoraSource

MIB = 2**20
MOST = 64  # errands at once of each kind
MOST_SILENT = 4  # looks into one folder that were given up: as many as there are threads for jobs
LOOK_PATIENCE_S = 2.0
SEEK_PATIENCE_S = 5.0  # for all names of a job together
BRING_PATIENCE_S = 30.0
log = logging.getLogger("tcd.engine")


class LoraSources:
    """Looks at sources and brings what they hold. Thread-safe.

    A source that hangs keeps nobody but those who ask for it, and them not for ever. What is
    brought after patience is over stays on this machine, for who asks again.
    """

    def __init__(self) -> None:
        self._looks: dict[str, Errands[str]] = {}  # by folder: what is on one disk hangs together
        self._brings: Errands[LoraFile] = Errands(MOST)
        self._lock = Lock()
        self._searches: dict[tuple[str, int], LoraSearch] = {}  # one: of the configuration in force

    def find(self, root: str, disk_mb: int, names: Sequence[str]) -> dict[str, Held | None]:
        """The adapters of these names in a config's `loras_from`; `None`: there is none. Raises
        `NotReady` if that cannot be told of all, after `SEEK_PATIENCE_S` at most."""
        search, until = self._search(root, disk_mb), monotonic() + SEEK_PATIENCE_S
        found: dict[str, Held | None] = {}
        for name in names:
            try:
                with _passing():
                    found[name] = search.find(name, until)
            except (SourceError, OSError) as error:
                raise refusal(LoraSource(name, root), error) from error
        return found

    def knows(self, root: str, disk_mb: int, name: str) -> bool:
        """Whether `find` would ask nobody."""
        return self._search(root, disk_mb).knows(name)

    def _search(self, root: str, disk_mb: int) -> LoraSearch:
        with self._lock:
            if (root, disk_mb) not in self._searches:
                found = LoraSearch(collection_at(root, disk_mb * MIB))
                self._searches = {(root, disk_mb): found}
            return self._searches[root, disk_mb]

    def look(self, source: LoraSource) -> str:
        """What tells a local source from what stood there before. Waits for at most
        `LOOK_PATIENCE_S`, and not at all where others in its folder do not answer; raises
        `NotReady`."""
        if source.held is not None:
            return source.held.state
        work = partial(state, source.source)
        with self._lock:
            looks = self._looks.setdefault(
                dirname(source.source), Errands(MOST, most_silent=MOST_SILENT)
            )
        try:
            return looks.run(source.source, work, LOOK_PATIENCE_S)
        except (Silent, OSError) as error:
            raise refusal(source, error) from error

    def bring(self, key: str, source: LoraSource) -> "Future[LoraFile]":
        """Brings an adapter's file into memory, in at most `BRING_PATIENCE_S`. Whatever it
        raises, now or in the future, is for `refusal`."""
        work = partial(_read, source)
        return self._brings.send(key, work, BRING_PATIENCE_S)


def refusal(source: LoraSource, error: Exception) -> Exception:
    """What to tell whoever asked for an adapter that cannot be had."""
    log.warning("lora %r, from %s: %s", source.name, source.source, error)
    name = f"lora {source.name!r}"
    match error:
        case Silent():
            return NotReady(f"{name}: its source {error}")
        case SourceChanged():
            return NotReady(f"{name}: its source has just changed")
        case SourceUnavailable():
            return NotReady(f"{name}: its source cannot be reached now")
        case SourceError():
            return InvalidRequest(f"{name}: its source does not exist or cannot be read", "loras")
        case LoraError():
            return InvalidRequest(f"{name}: {error}", "loras")
        case OSError():
            return NotReady(f"{name}: its source cannot be read ({error.strerror or error})")
        case _:
            return GenerationFailed(f"{name} could not be loaded: {error}")


def _read(source: LoraSource) -> LoraFile:
    if source.held is None:
        return read_file(fetch(source.source))
    with _passing():
        return read_weights(source.held.bring())


@contextmanager
def _passing() -> Iterator[None]:
    """What a collection cannot be asked for is no fault of the name."""
    try:
        yield
    except SourceUnavailable:
        raise
    except SourceError as error:
        raise SourceUnavailable(str(error)) from error
