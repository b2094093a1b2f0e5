"""Room for jobs: how many of a kind may be unfinished, and how much is kept for a key."""

from collections.abc import AsyncGenerator, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from configs.app import ServiceArgs
from deployments.contracts.errors import QueueFull, RateLimited
from deployments.contracts.jobs import Caller
from deployments.contracts.places import Places
from deployments.ingress.jobs.looks import COUNTED_S, Looks
from deployments.ingress.keys.keyring import Keyring
from deployments.jobs.record import JobRecord, Kind

MIB = 2**20
FULL_RETRY_MS = 10_000
NAMES: dict[Kind, str] = {"image": "jobs of images", "video": "videos", "batch": "batches"}


@dataclass(eq=False)
class _Coming:
    """A job that is being accepted. `size`: bytes; `refused`: it takes no room after all."""

    kind: Kind
    caller: Caller
    job_id: str
    size: int
    refused: bool = False


class Room:
    """Whether there is room for a job: beside what a look shows, for what this process is
    accepting meanwhile. What other processes accept in the same moment may go beyond."""

    def __init__(self, args: ServiceArgs, keys: Keyring, looks: Looks) -> None:
        self._limits: dict[Kind, int] = {
            "image": args.jobs.max_images,
            "video": args.max_videos,
            "batch": args.jobs.max_batches,
        }
        self._keys = keys
        self._looks = looks
        self._coming: list[_Coming] = []

    @asynccontextmanager
    async def taken(
        self, kind: Kind, caller: Caller, job_id: str, size: int
    ) -> AsyncGenerator[None]:
        """Within it a job is accepted: it counts from before it is looked whether there is room, so
        that many who ask this process at once find no more room than there is.

        Raises `QueueFull`, if too many jobs of its kind have not ended (a caller who has less than
        its share may go beyond them); `RateLimited`, if what is kept for the caller takes as many
        bytes as its key may have; `StorageUnavailable`.

        Args:
            size: bytes of its pictures, or lines.
        """
        before = tuple(self._coming)
        coming = _Coming(kind, caller, job_id, size)
        self._coming.append(coming)
        try:
            await self._check_unfinished(coming, before)
            await self._check_kept(coming, before)
            yield
        except BaseException:
            coming.refused = True
            raise
        finally:
            self._coming.remove(coming)

    async def _check_unfinished(self, mine: _Coming, before: Collection[_Coming]) -> None:
        kind, caller = mine.kind, mine.caller

        def read(jobs: Sequence[JobRecord]) -> tuple[bool, int]:
            of_kind = [job for job in jobs if job.kind == kind and job.batch is None]
            unfinished = [(job.caller, 1) for job in of_kind if not job.ended]
            coming = _unseen(before, jobs, mine)
            unfinished += [(one.caller, 1) for one in coming if one.kind == kind]
            return Places(self._limits[kind], unfinished).allow(caller), len(unfinished)

        if kind not in self._limits:
            return
        there_is, unfinished = await self._looks.at_open(read)
        if not there_is:
            raise QueueFull(f"{unfinished} {NAMES[kind]} are unfinished already", FULL_RETRY_MS)

    async def _check_kept(self, mine: _Coming, before: Collection[_Coming]) -> None:
        entry = self._keys.named(mine.caller.name)
        if entry is None or entry.job_mb is None:
            return
        most = entry.job_mb * MIB - max(mine.size, 1)
        # Files never are open: those that others keep are seen by who looks at all.
        fresh_s = COUNTED_S if mine.kind in ("image", "video") else 0.0
        if (kept := await self._kept_bytes(mine, before, fresh_s)) > most:
            kept = await self._kept_bytes(mine, before)  # others may have deleted some
        if kept > most:
            more = f", and this would take {mine.size / MIB:.1f}" if mine.size else ""
            raise RateLimited(
                f"the jobs of key {mine.caller.name!r} hold {kept / MIB:.1f} MiB of the "
                f"{entry.job_mb} that it may have{more}: delete some, or wait until they expire",
                FULL_RETRY_MS,
            )

    async def _kept_bytes(
        self, mine: _Coming, before: Collection[_Coming], fresh_s: float = 0.0
    ) -> int:
        owner = mine.caller.name

        def read(jobs: Sequence[JobRecord]) -> int:
            coming = _unseen(before, jobs, mine)
            return sum(job.size for job in jobs if job.owner == owner) + sum(
                one.size for one in coming if one.caller.name == owner
            )

        return await self._looks.at_all(read, fresh_s)


def _unseen(
    before: Collection[_Coming], jobs: Iterable[JobRecord], mine: _Coming
) -> Sequence[_Coming]:
    """Which of those that came before take room that a look at the jobs has not shown, each job
    once."""
    seen = {job.id for job in jobs} | {mine.job_id}
    return list({c.job_id: c for c in before if not c.refused and c.job_id not in seen}.values())
