"""One replica as a router knows it: what it reported, and what this router has sent it."""

from collections import OrderedDict, deque
from dataclasses import dataclass

from deployments.contracts.jobs import ImageJob
from deployments.contracts.work import decoding_of, work_of
from deployments.diffusion.engine.policy.report import MOST_ADAPTERS, Report, adapters_of

FRESH_S = 10.0  # so long an adapter that was asked for is taken to be there, or on its way
COUNTED_S = 30.0  # since a report that its work is taken to have gone on
FRESH_REPORTS = 2  # and until so many reports have come since, however seldom they do


@dataclass(frozen=True)
class Asked:
    """What a router looks at of a call.

    Attributes:
        key: of the job: the same if it is sent again.
        call: Serve's id of the call; several calls may have the same.
        unet_pixels, decode_pixels: its work; 0 of what makes no image.
        adapters: fingerprints of those that it needs.
        prompt: `None`: it has none.
    """

    key: str
    call: str
    unet_pixels: int = 0
    decode_pixels: int = 0
    adapters: tuple[int, ...] = ()
    prompt: str | None = None

    @staticmethod
    def of(job: ImageJob, call: str) -> "Asked":
        """Of a job."""
        adapters = tuple(dict.fromkeys(adapters_of(job)))
        work = work_of(job), decoding_of(job)
        return Asked(job.job_id, call, *work, adapters, job.prompt)


@dataclass(eq=False)
class Sent:
    """A call that a replica has, as far as this router knows.

    Attributes:
        at: on the router's clock.
        reports: that had come from the replica by then.
    """

    asked: Asked
    replica: str
    at: float
    reports: int


@dataclass
class Pixels:
    """Work that is under way, in latent pixels of the UNet's steps and of the VAE."""

    unet: int = 0
    decode: int = 0

    def add(self, asked: Asked, sign: int = 1) -> None:
        """So much more, or less."""
        self.unet += sign * asked.unet_pixels
        self.decode += sign * asked.decode_pixels

    def seconds(self, pace: Report) -> float:
        """How long it takes: UNet and VAE work side by side."""
        return max(self.unet * pace.step_pixel_s, self.decode * pace.decode_pixel_s)


class Standing:
    """What is known of one replica. Its size is bounded by `MOST_ADAPTERS` and by what is under
    way."""

    def __init__(self) -> None:
        self.report: Report | None = None
        self._reports = 0
        self._heard = 0.0  # when the report came, on the router's clock
        self._calls: dict[str, deque[Sent]] = {}
        self._own = Pixels()  # all that is under way
        self._since = Pixels()  # of it, what was sent after the report came
        self._sent: OrderedDict[int, tuple[float, int]] = OrderedDict()  # when, before which report

    def hear(self, report: Report, now: float) -> None:
        """Takes a report."""
        self.report = report
        self._reports += 1
        self._heard = now
        self._since = Pixels()
        for adapter in report.failed:
            self._sent.pop(adapter, None)

    def take(self, asked: Asked, replica: str, now: float) -> Sent:
        """A call goes there, and its adapters with it."""
        sent = Sent(asked, replica, now, self._reports)
        self._calls.setdefault(asked.call, deque()).append(sent)
        self._own.add(asked)
        self._since.add(asked)
        for adapter in asked.adapters:
            if self.failed(adapter):
                continue
            self._sent[adapter] = now, self._reports
            self._sent.move_to_end(adapter)
        while len(self._sent) > MOST_ADAPTERS:
            self._sent.popitem(last=False)
        return sent

    def end(self, sent: Sent) -> None:
        """A call is over, or went elsewhere. What has ended before ends no more."""
        calls = self._calls.get(sent.asked.call)
        if calls is None or sent not in calls:
            return
        calls.remove(sent)
        if not calls:
            del self._calls[sent.asked.call]
        self._own.add(sent.asked, -1)
        if sent.reports == self._reports:
            self._since.add(sent.asked, -1)

    def oldest(self, call: str) -> Sent | None:
        """The first call of this id that is under way."""
        calls = self._calls.get(call)
        return calls[0] if calls else None

    def pending_s(self, now: float, pace: Report) -> float:
        """How long the replica is busy: by its report, less the time since, and what was sent after
        it; by what this router alone has under way there, if that is more.

        Args:
            pace: whose measured times count while the replica has reported none.
        """
        pace = self.report or pace
        own_s = self._own.seconds(pace)
        if self.report is None:
            return own_s
        left_s = max(0.0, self.report.pending_s - min(now - self._heard, COUNTED_S))
        return max(own_s, left_s + self._since.seconds(pace))

    def holds(self, adapter: int, now: float) -> bool:
        """Whether an adapter is on its device, or on its way there."""
        if self.report is not None and adapter in self.report.adapters:
            return True
        if adapter not in self._sent:
            return False
        at, reports = self._sent[adapter]
        unsure = self.report is None or self._reports - reports < FRESH_REPORTS
        return unsure or now - at < FRESH_S

    def failed(self, adapter: int) -> bool:
        """Whether it says that an adapter could not be brought to its device."""
        return self.report is not None and adapter in self.report.failed
