"""When requests of the lowest priority may have a call. Told the time in seconds; no clock."""

from math import inf

ABOUT_S = 10.0  # for which others are about after they were last here


class Background:
    """While others are about, all its calls together, of the UNet and of the VAE for its images,
    previews and start pictures, take at most `share` of the time: whoever comes next is delayed by
    little more than that. Alone it has all.

    What is idle between requests is no room for more: a call that is under way is not taken back,
    and whatever else there is to do for an image, on other threads and in other processes, is in
    nobody's turn.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._alone_s = -inf  # from then on nobody else is about
        self._rested_s = -inf

    def others(self, now: float) -> None:
        """Others are here."""
        self._alone_s = now + ABOUT_S

    def about(self, now: float) -> bool:
        """Whether others are, or were until a moment ago."""
        return now < self._alone_s

    def rests(self, now: float) -> bool:
        """Whether it is to have no call now."""
        return now < min(self._alone_s, self._rested_s)

    def resumes(self, now: float) -> float:
        """When it may have one, if nobody else comes meanwhile."""
        return max(now, min(self._alone_s, self._rested_s))

    def had(self, seconds: float, since: float) -> None:
        """A call that began at this time takes so long for it, as far as is known, beside those
        that it had before."""
        if self.about(since):
            self._rested_s = max(self._rested_s, since) + seconds / self.share
