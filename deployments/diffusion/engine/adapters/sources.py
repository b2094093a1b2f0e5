"""Where style adapters come from: what is asked of disks and networks, and what is said of them.

Clients read what is said: it names adapters, never the server's files; the log has those.
"""

import logging
from concurrent.futures import Future
from functools import partial

from configs.sources import SourceError, SourceUnavailable, fetch, state
from deployments.contracts.errors import GenerationFailed, InvalidRequest, NotReady
from deployments.diffusion.engine.adapters.errands import Errands, Silent
from deployments.diffusion.engine.adapters.files import LoraError, LoraFile, read_file
from deployments.diffusion.engine.policy.spec import LoraSource

MOST = 64  # errands at once of each kind
LOOK_PATIENCE_S = 2.0
BRING_PATIENCE_S = 30.0
log = logging.getLogger("tcd.engine")


class LoraSources:
    """Looks at sources and brings what they hold. Thread-safe.

    A source that hangs keeps nobody but those who ask for it, and them not for ever. What is
    brought after patience is over stays on this machine, for who asks again.
    """

    def __init__(self) -> None:
        self._looks: Errands[str] = Errands(MOST)
        self._brings: Errands[LoraFile] = Errands(MOST)

    def look(self, source: LoraSource) -> str:
        """What tells a local source from what stood there before. Waits for at most
        `LOOK_PATIENCE_S`; raises `NotReady`."""
        work = partial(state, source.source)
        try:
            return self._looks.run(source.source, work, LOOK_PATIENCE_S)
        except (Silent, OSError) as error:
            raise refusal(source, error) from error

    def bring(self, key: str, source: LoraSource) -> "Future[LoraFile]":
        """Brings an adapter's file into memory, in at most `BRING_PATIENCE_S`. Whatever it
        raises, now or in the future, is for `refusal`."""
        work = partial(_read, source.source)
        return self._brings.send(key, work, BRING_PATIENCE_S)


def refusal(source: LoraSource, error: Exception) -> Exception:
    """What to tell whoever asked for an adapter that cannot be had."""
    log.warning("lora %r, from %s: %s", source.name, source.source, error)
    name = f"lora {source.name!r}"
    match error:
        case Silent():
            return NotReady(f"{name}: its source {error}")
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


def _read(source: str) -> LoraFile:
    return read_file(fetch(source))
