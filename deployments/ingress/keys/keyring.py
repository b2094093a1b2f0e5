"""The keys that are accepted: read at the start, and again when their file changes."""

import asyncio
import hmac
import logging
import os
import time
from collections.abc import Callable, Sequence
from contextvars import Context
from pathlib import Path

from configs.app import KeysArgs, ServiceArgs
from configs.keys import KeyEntry, KeysError, check_distinct, digest, read_keys

LOOK_S = 2.0  # between two looks at the file
PATIENCE_S = 0.5  # that the request which has it looked at waits for the disk
log = logging.getLogger("ray.serve.tcd.keys")

_Stamp = tuple[int, int, int]  # of a file: inode, when it was written, size


class Keyring:
    """Who may ask.

    Args:
        source: where the named keys are.
        plain_env: environment variable with keys in plain text, separated by commas.
        needs_admin: whether a list in which no key is `admin` is wrong.

    Raises `KeysError` if there are no keys where some should be, or a list is wrong. The same in a
    file that changes is logged, and shown as `faulty`: the last good list stays in force.
    """

    def __init__(
        self,
        source: KeysArgs | None = None,
        plain_env: str | None = None,
        needs_admin: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = None if source is None or source.file is None else Path(source.file)
        self._env = None if source is None else source.env
        self._needs_admin = needs_admin
        self._plain = _plain_keys(plain_env) if plain_env is not None else ()
        self._clock = clock
        self._looked = clock()
        self._looking: asyncio.Task[None] | None = None
        self._stamp: _Stamp | None = None
        self._fault = ""
        self._put_in_force(self._read())

    @property
    def faulty(self) -> bool:
        """Whether the file that is there now could not be taken."""
        return bool(self._fault)

    @property
    def closed(self) -> bool:
        """Whether a key is needed at all."""
        return bool(self._by_digest)

    @property
    def entries(self) -> Sequence[KeyEntry]:
        """All keys, in the order of the lists."""
        return tuple(self._by_name.values())

    def named(self, name: str) -> KeyEntry | None:
        """The key of this name."""
        return self._by_name.get(name)

    def find(self, presented: str) -> KeyEntry | None:
        """The key that was presented, as a header's text.

        How long this takes tells nothing of a key: what is looked up and compared is its digest,
        and whoever sends keys cannot choose what their digests begin with.
        """
        sha256 = digest(presented.encode("latin-1", "replace"))
        entry = self._by_digest.get(sha256)
        return entry if entry is not None and hmac.compare_digest(entry.sha256, sha256) else None

    async def renew(self) -> None:
        """Looks at the file again, in a thread, if the last look is `LOOK_S` old; there is
        one look at a time, and who asks for it waits at most `PATIENCE_S`."""
        if self._path is None or self._clock() - self._looked < LOOK_S:
            return
        if self._looking is None or self._looking.done():
            self._looked = self._clock()
            # Of no request: what it logs is not the news of the one that was there first.
            self._looking = asyncio.create_task(self._look(), context=Context())
            await asyncio.wait({self._looking}, timeout=PATIENCE_S)

    async def _look(self) -> None:
        try:
            entries = await asyncio.to_thread(self._changed)
        except KeysError as error:
            if str(error) != self._fault:
                log.error("the last good keys stay in force: %s", error)
            self._fault = str(error)
            return
        if entries is not None:
            self._put_in_force(entries)
            log.info("%d keys are in force", len(entries))

    def _changed(self) -> Sequence[KeyEntry] | None:
        """The keys, if the file is another than at the last look. Where the file is a link, as
        Kubernetes mounts secrets, what counts is what it leads to."""
        return None if self._stamp_now() == self._stamp else self._read()

    def _stamp_now(self) -> _Stamp | None:
        if self._path is None:
            return None
        try:
            found = self._path.stat()
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    def _read(self) -> Sequence[KeyEntry]:
        """All keys as they stand now."""
        named: tuple[KeyEntry, ...] = ()
        place = ""
        if self._path is not None:
            place = f"keys file {self._path}: "
            self._stamp = self._stamp_now()  # before the file is read: it may change under us
            try:
                text = self._path.read_text()
            except (OSError, UnicodeDecodeError) as error:
                self._stamp = None  # to be tried again, unless it is gone
                raise KeysError(f"{place}cannot be read ({type(error).__name__})") from None
            named = _named_keys(text, place)
        elif self._env is not None:
            place = f"keys.env is {self._env}: that variable "
            named = _named_keys(os.environ.get(self._env, ""), place)
        entries = (*named, *self._plain)
        try:
            check_distinct(entries)
        except KeysError as error:
            raise KeysError(f"{place}{error}") from None
        if self._needs_admin and not any(entry.admin for entry in entries):
            raise KeysError(f"{place}no key is `admin`, and `protect` asks for one")
        return entries

    def _put_in_force(self, entries: Sequence[KeyEntry]) -> None:
        self._by_name = {entry.name: entry for entry in entries}
        self._by_digest = {entry.sha256: entry for entry in entries}
        self._fault = ""


def make_keyring(args: ServiceArgs) -> Keyring:
    """The keys of the configuration. Raises `KeysError`."""
    return Keyring(args.keys, args.api_keys_env, needs_admin=bool(args.protect))


def _plain_keys(env: str) -> tuple[KeyEntry, ...]:
    listed = [key.strip().encode() for key in os.environ.get(env, "").split(",") if key.strip()]
    if not listed:
        raise KeysError(f"api_keys_env is {env}, but that variable holds no key")
    distinct = dict.fromkeys(listed)
    return tuple(
        KeyEntry(name=f"key-{number}", sha256=digest(key)) for number, key in enumerate(distinct, 1)
    )


def _named_keys(text: str, place: str) -> tuple[KeyEntry, ...]:
    try:
        return read_keys(text)
    except KeysError as error:
        raise KeysError(f"{place}{error}") from None
