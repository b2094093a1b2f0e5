"""Who waits for what: accepted jobs, their unanswered images, and the counts of it all.

Thread-safe, and the only part of the engine that is: callers open jobs here, the engine's and the
decoder's threads answer them, anyone may look at the figures.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from threading import Lock
from time import monotonic

from configs.app import Limits
from deployments.contracts.errors import Cancelled, InvalidRequest, QueueFull
from deployments.contracts.figures import CallerFigures, EngineFigures
from deployments.contracts.jobs import (
    FailedImage,
    FinishedImage,
    ImageJob,
    JobEvent,
    PartialImage,
    Progress,
)
from deployments.contracts.places import Places
from deployments.contracts.stages import Stages
from deployments.diffusion.engine.policy.account import Account, Accounts
from deployments.diffusion.engine.policy.arrivals import Arrivals
from deployments.diffusion.engine.policy.batch import Batch, Measured
from deployments.diffusion.engine.policy.compiling import EAGER, Compiling
from deployments.diffusion.engine.policy.estimate import (
    SMOOTHING,
    UNMEASURED_DECODE_S,
    UNMEASURED_STEP_S,
    Outlook,
    Pace,
    Work,
)
from deployments.diffusion.engine.policy.foresight import Foresight
from deployments.diffusion.engine.policy.report import Report
from deployments.diffusion.engine.policy.spec import RowSpec
from deployments.diffusion.engine.policy.stages import StageClock
from deployments.diffusion.engine.policy.trajectory import Trajectory

FORGOTTEN_AFTER_S = 5.0  # without a finished image: what one takes after its steps
IDLE_CALLERS = 64  # whose figures are still shown
Sink = Callable[[JobEvent], None]
_SERIAL = count()
log = logging.getLogger("tcd.engine")


class Entry:
    """A job in the engine.

    Attributes:
        key: of this job alone, also after its id has been used again.
        progress: whether its sink wants to hear of every step.
        since: when it was handed in, on the clock of `time.monotonic`.
        deadline: on the same clock; `None`: never.
        rows: its images still to be denoised, by index; only the engine's thread changes it.
        unanswered: its images still to be answered; only the registry changes it.
        clock: of its stages.
    """

    def __init__(
        self, job: ImageJob, sink: Sink, specs: list[RowSpec], *, progress: bool = True
    ) -> None:
        self.since = monotonic()
        self.deadline = None if job.timeout_s is None else self.since + job.timeout_s
        self.clock = StageClock(styled=bool(job.loras or job.motion_loras))
        self.job = job
        self.key = f"{job.job_id}#{next(_SERIAL)}"
        self.sink = sink
        self.progress = progress
        self.rows = {
            index: Trajectory(
                f"{self.key}/{index}", spec, job.priority, self.deadline, caller=job.caller
            )
            for index, spec in enumerate(specs)
        }
        self.unanswered = set(self.rows)


@dataclass(frozen=True)
class Standing:
    """How the engine's loop stands between two steps.

    Attributes:
        running_rows: rows with a slot.
        pending_unet_rows: UNet rows still to be computed, twins counted.
        batch_limit: rows that memory allows a UNet call.
        foresight: what is known of its times.
        adapters: fingerprints of those on the device, as a `Report` has them.
        failed: likewise of those that failed, and until when that is told, on the clock of
            `time.monotonic`.
    """

    work: Work
    running_rows: int
    pending_unet_rows: int
    batch_limit: int
    foresight: Foresight = field(default_factory=Foresight)
    loras_resident: int = 0
    lora_bytes: int = 0
    lora_loads: int = 0
    lora_evictions: int = 0
    lora_failures: int = 0
    adapters: frozenset[int] = frozenset()
    failed: Mapping[int, float] = field(default_factory=dict)
    compiling: Compiling = EAGER


class Registry:
    """Answers every image of every job that it opened, exactly once.

    Args:
        clock: seconds, for what has come in of late.
    """

    def __init__(self, name: str, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._arrivals = Arrivals()
        self._lock = Lock()
        self._entries: dict[str, Entry] = {}
        self._closed: Exception | None = None
        self._figures = EngineFigures(name)
        self._accounts = Accounts(IDLE_CALLERS)
        self._unet_pace = Pace(UNMEASURED_STEP_S)
        self._vae_pace = Pace(UNMEASURED_DECODE_S)
        self._preview_pace = Pace(UNMEASURED_DECODE_S)
        self._encode_pace = Pace(UNMEASURED_DECODE_S)
        self._after_steps_s, self._finished_at = 0.0, 0.0
        self._work, self._foresight = Work(), Foresight()
        self._adapters: frozenset[int] = frozenset()
        self._failed: Mapping[int, float] = {}
        self._uncounted: set[Entry] = set()  # taken in since the loop last counted its work
        self._seen: list[Entry] = []  # those of them that it will count next

    def open(self, entry: Entry, limits: Limits) -> None:
        """Takes a job in, whole.

        Raises `QueueFull` if more than `limits.max_pending` images would wait and the caller has
        its share of them, or twice as many would (see `Places`), or if it would be too late for the
        job's time when it has its turn (see `Foresight`); `InvalidRequest` if the id is in use, and
        what `close` was given once that was called.
        """
        job, images = entry.job, len(entry.unanswered)
        with self._lock:
            if self._closed is not None:
                raise self._closed
            if job.job_id in self._entries:
                raise InvalidRequest(f"job_id {job.job_id!r} is already in the engine", "job_id")
            account = self._accounts.of(job.caller)
            queue = Places(
                limits.max_pending,
                ((other.caller, other.pending) for other in self._accounts.all() if other.pending),
            )
            pending, promised = self._figures.pending_images, account.promised(monotonic())
            if not queue.allow(job.caller, images):
                wait_s = self._wait_s(account, queue, images, promised)
                why = (
                    f"{pending} of {limits.max_pending} images are pending; room for {images} more "
                    f"is expected in {wait_s:.1f} s"
                )
                full_s = self._wait_s(account, queue, images, 0)
                raise self._refused(account, queue, job, why, wait_s, full_s)
            rows = list(entry.rows.values())
            if late_s := self._late_s(entry, rows):
                if not job.refused_elsewhere:
                    self._arrived(entry)  # more replicas would have time for it
                mine_s = self._foresight.work_s(rows)
                wait_s = min(late_s + promised * mine_s / images, self._accepted().pending_s)
                why = (
                    f"what is pending leaves no time for {images} more within "
                    f"{job.timeout_s:.1f} s; ask again in {wait_s:.1f} s"
                )
                # Of those who ask then, two come at a time: one more has to have room.
                raise self._refused(account, queue, job, why, wait_s, late_s + mine_s)
            self._entries[job.job_id] = entry
            self._uncounted.add(entry)
            self._arrived(entry)
            account.pending += images
            self._figures = replace(self._figures, pending_images=pending + images)

    def seen(self, entry: Entry) -> None:
        """The loop has a job: what it publishes next counts it."""
        with self._lock:
            self._seen.append(entry)

    def _arrived(self, entry: Entry) -> None:
        """What a job asks for, of which as much more is to come."""
        whole = _with(Work(), list(entry.rows.values()))
        encode_pixels = entry.rows[0].spec.encode_pixels  # once for all of them
        self._arrivals.add(self._clock(), whole.unet_pixels, whole.row_pixels, encode_pixels)

    def _refused(
        self,
        account: Account,
        queue: Places,
        job: ImageJob,
        why: str,
        wait_s: float,
        full_s: float,
    ) -> QueueFull:
        """Counts a job that found no room, which is expected back when it is told to."""
        self._figures = replace(self._figures, refused_total=self._figures.refused_total + 1)
        now = monotonic()
        # Of those who refuse it, only the first expects it back: it comes once.
        if account.promised(now) < queue.limit and not job.refused_elsewhere:
            account.promise(now + wait_s, len(job.seeds))
        return QueueFull(why, _ms(wait_s), _ms(full_s))

    def _wait_s(self, account: Account, queue: Places, images: int, promised: int) -> float:
        """Seconds until a caller may have so many more: until enough of all images, or of its own,
        are answered, those not counted that it was already told to come back for. Never longer than
        everything accepted takes."""
        caller = account.caller
        by_anybody, by_itself = queue.lacking(caller, images)
        outlook = self._accepted()
        wait_s = outlook.room_s(by_anybody + promised)
        if by_itself < by_anybody and by_itself + promised <= account.pending:
            alone = self._outlook(self._work_of(account))
            wait_s = min(wait_s, alone.room_s(by_itself + promised) / queue.part(caller))
        return min(wait_s, outlook.pending_s)

    def _late_s(self, entry: Entry, rows: Sequence[Trajectory]) -> float:
        """By how much a job would be too late for its time."""
        now, held = self._clock(), _rows_of(self._entries.values())
        lately = {account.caller: account.lately(now) for account in self._accounts.all()}
        return self._foresight.late_s(rows, held, entry.since, lately)

    def _work_of(self, account: Account) -> Work:
        """What is to be done of a caller's images."""
        name = account.caller.name
        rows = _rows_of(one for one in self._entries.values() if one.job.caller.name == name)
        decoding = account.pending - len(rows)
        pixels = decoding * self._work.decode_pixels // max(1, self._work.decoding)
        work = Work(decoding=decoding, decode_pixels=pixels, at_once=self._work.at_once)
        return _with(work, rows)

    def _accepted(self) -> Outlook:
        """Of everything, also of what the loop has not counted yet."""
        return self._outlook(_with(self._work, _rows_of(self._uncounted)))

    def _outlook(self, work: Work) -> Outlook:
        return Outlook.of(work, self._unet_pace, self._vae_pace)

    def close(self, error: Exception) -> tuple[Entry, ...]:
        """Opens nothing from now on, but raises `error`. Returns the jobs still open. The
        first error stays."""
        with self._lock:
            self._closed = self._closed or error
            return tuple(self._entries.values())

    def find(self, job_id: str) -> Entry | None:
        """An open job."""
        with self._lock:
            return self._entries.get(job_id)

    def stages(self, job_id: str) -> Stages | None:
        """How far an open job is."""
        with self._lock:
            entry, name = self._entries.get(job_id), self._figures.replica
        return None if entry is None else entry.clock.read(name)

    def tell(self, entry: Entry, event: Progress | PartialImage) -> None:
        """Tells a job how one of its images stands, unless it has been answered."""
        if self.waits(entry, event.image_index):
            _deliver(entry, event)

    def waits(self, entry: Entry, index: int) -> bool:
        """Whether an image of a job has not been answered."""
        with self._lock:
            return index in entry.unanswered

    def answer(self, entry: Entry, event: FinishedImage | FailedImage) -> None:
        """Answers an image. A second answer (a decoder after a cancellation) is not heard."""
        with self._lock:
            if event.image_index not in entry.unanswered:
                return
            entry.unanswered.discard(event.image_index)
            if not entry.unanswered:
                del self._entries[entry.job.job_id]
            self._accounts.of(entry.job.caller).pending -= 1
            self._figures = _counted(self._figures, event)
            stages = entry.clock.read(self._figures.replica)
            if isinstance(event, FinishedImage) and "decode" in stages.seconds:
                more = stages.seconds["decode"] - self._after_steps_s
                self._after_steps_s += SMOOTHING * more
                self._finished_at = self._clock()
        _deliver(entry, replace(event, stages=stages))

    @property
    def after_steps_s(self) -> float:
        """Seconds from an image's last step until it is answered, of late. 0 where none was for
        `FORGOTTEN_AFTER_S`: nothing is learnt while all are thought to be too late for it."""
        with self._lock:
            known = self._clock() - self._finished_at < FORGOTTEN_AFTER_S
            return self._after_steps_s if known else 0.0

    def end(self, entry: Entry, error: Exception) -> None:
        """Answers what is unanswered of a job with an error."""
        with self._lock:
            unanswered = sorted(entry.unanswered)
        for index in unanswered:
            self.answer(entry, FailedImage(index, error))

    def count_first(self, entry: Entry) -> None:
        """An image of a job has taken its first step."""
        with self._lock:
            figures = self._figures
            self._figures = replace(
                figures,
                begun_total=figures.begun_total + 1,
                wait_seconds_total=figures.wait_seconds_total + monotonic() - entry.since,
            )

    def count_out_of_memory(self) -> None:
        """A UNet call found too little memory."""
        with self._lock:
            figures = self._figures
            self._figures = replace(figures, out_of_memory_total=figures.out_of_memory_total + 1)

    def count_step(self, batch: Batch) -> None:
        """A UNet call was made."""
        with self._lock:
            now = self._clock()
            for row in batch.rows:
                account = self._accounts.of(row.caller)
                account.work += row.call_pixels
                account.had(now, self._foresight.turn_s(row))
            figures = self._figures
            self._figures = replace(
                figures,
                steps_total=figures.steps_total + 1,
                rows_total=figures.rows_total + batch.unet_rows,
            )

    def measure_step(self, call: Measured) -> None:
        """A UNet call was timed."""
        per_row = call.seconds / call.unet_rows
        with self._lock:
            self._unet_pace.measure(call.pixels, call.seconds)
            figures = self._figures
            known = figures.seconds_per_row_step or per_row
            self._figures = replace(
                figures,
                seconds_per_row_step=known + SMOOTHING * (per_row - known),
                timed_steps_total=figures.timed_steps_total + 1,
                timed_step_seconds_total=figures.timed_step_seconds_total + call.seconds,
            )

    def count_decode(self, pixels: int, seconds: float, preview: bool = False) -> None:
        """So many latent pixels took so long to decode."""
        with self._lock:
            if preview:
                self._preview_pace.measure(pixels, seconds)
                return
            self._vae_pace.measure(pixels, seconds)
            figures = self._figures
            self._figures = replace(figures, vae_seconds_total=figures.vae_seconds_total + seconds)

    def decode_s(self, pixels: int, *, preview: bool = False) -> float:
        """Seconds that so many latent pixels are thought to take to decode, by the best calls of
        late; 0 until two were timed."""
        with self._lock:
            pace = self._preview_pace if preview else self._vae_pace
            return pixels * pace.known_pixel_s

    def count_encode(self, pixels: int, seconds: float) -> None:
        """So many latent pixels of start pictures took so long to encode."""
        with self._lock:
            self._encode_pace.measure(pixels, seconds)
            known = self._figures
            seconds += known.vae_encode_seconds_total
            self._figures = replace(known, vae_encode_seconds_total=seconds)

    def encode_s(self, pixels: int) -> float:
        """The same as `decode_s`, of encoding them."""
        with self._lock:
            return pixels * self._encode_pace.known_pixel_s

    def publish(self, standing: Standing) -> None:
        """Shows the loop's state to other threads. Called on the engine's thread."""
        with self._lock:
            self._work, self._foresight = standing.work, standing.foresight
            self._uncounted.difference_update(self._seen)
            self._seen.clear()
            self._adapters, self._failed = standing.adapters, standing.failed
            outlook = self._outlook(standing.work)
            self._figures = replace(
                self._figures,
                running_rows=standing.running_rows,
                pending_steps=standing.pending_unet_rows,
                decoding_images=standing.work.decoding,
                decode_seconds=outlook.decode_s,
                loras_resident=standing.loras_resident,
                lora_bytes=standing.lora_bytes,
                lora_loads_total=standing.lora_loads,
                lora_evictions_total=standing.lora_evictions,
                lora_failures_total=standing.lora_failures,
                batch_limit=standing.batch_limit,
                compiled=standing.compiling.level,
                compiles_total=standing.compiling.compiles,
                compile_failures_total=standing.compiling.failures,
                graph_steps_total=standing.compiling.replays,
            )

    def report(self) -> Report:
        """What is told to those who choose between replicas."""
        with self._lock:
            now = self._clock()
            return Report(
                pending_s=self._accepted().pending_s,
                step_pixel_s=self._unet_pace.pixel_s,
                decode_pixel_s=self._vae_pace.pixel_s,
                rows_total=self._figures.rows_total,
                adapters=self._adapters,
                failed=frozenset(one for one, until in self._failed.items() if now < until),
            )

    def figures(self) -> EngineFigures:
        """The engine at this moment."""
        with self._lock:
            running: Counter[str] = Counter()
            for entry in self._entries.values():
                rows = list(entry.rows.values())
                running[entry.job.caller.name] += sum(row.slot is not None for row in rows)
            callers = (
                CallerFigures(name, running[name], account.pending, account.work)
                for account in self._accounts.all()
                for name in [account.caller.name]
            )
            return replace(
                self._figures,
                pending_seconds=self._accepted().pending_s,
                arriving_seconds=self._arrivals.seconds_a_second(
                    self._clock(),
                    self._unet_pace.best_pixel_s,
                    self._vae_pace.best_pixel_s,
                    self._encode_pace.known_pixel_s,
                ),
                callers=tuple(callers),
            )


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _rows_of(entries: Iterable[Entry]) -> list[Trajectory]:
    """Images of jobs that the UNet has not finished."""
    return [row for entry in entries for row in list(entry.rows.values())]


def _with(work: Work, rows: Sequence[Trajectory]) -> Work:
    """`work`, and rows that nobody has begun."""
    return work.and_(
        len(rows),
        sum(row.pending_pixels for row in rows),
        sum(row.decode_pixels for row in rows),
    )


def _counted(figures: EngineFigures, event: FinishedImage | FailedImage) -> EngineFigures:
    figures = replace(figures, pending_images=figures.pending_images - 1)
    if isinstance(event, FinishedImage):
        return replace(figures, images_total=figures.images_total + 1)
    if isinstance(event.error, Cancelled):
        return replace(figures, cancelled_total=figures.cancelled_total + 1)
    return replace(figures, failed_total=figures.failed_total + 1)


def _deliver(entry: Entry, event: JobEvent) -> None:
    """A sink that raises loses its event; it must not take the engine down."""
    try:
        entry.sink(event)
    except Exception:
        log.exception("the sink of job %s raised", entry.job.job_id)
