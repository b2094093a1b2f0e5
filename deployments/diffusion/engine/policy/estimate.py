"""How long what has been accepted will take, by measured times. No torch."""

from dataclasses import dataclass, replace
from math import inf

SMOOTHING = 0.1  # of measured times: weight of the newest
FORGETTING = 0.001  # of the best pace, with each call that is slower
UNMEASURED_STEP_S = 0.5  # of 64 x 64 latent pixels, until the first step has been measured
UNMEASURED_DECODE_S = 0.5  # likewise, of decoding them


class Pace:
    """Seconds that a latent pixel takes: moving averages of seconds and of pixels, divided.

    An average of their ratios would count a call of few pixels, which takes longer for each, as
    much as a call of many: a queue of mixed sizes would seem several times as long as it is.

    Args:
        unmeasured_s: what 64 x 64 of them are taken to need until one was measured.
    """

    def __init__(self, unmeasured_s: float) -> None:
        self._pixels = 64.0**2
        self._seconds = unmeasured_s
        self._best = unmeasured_s / self._pixels
        self._times = 0

    @property
    def pixel_s(self) -> float:
        """Seconds per latent pixel."""
        return self._seconds / self._pixels

    @property
    def best_pixel_s(self) -> float:
        """Seconds per latent pixel in the fastest call of late: about what one takes that is full
        and shares the device with nothing. What a device can do does not depend on its load."""
        return self._best

    @property
    def known_pixel_s(self) -> float:
        """The same; 0 until two calls were timed: a first one may compile, tune and allocate."""
        return self._best if self._times > 1 else 0.0

    def measure(self, pixels: int, seconds: float) -> None:
        """So many latent pixels took so long."""
        weight = SMOOTHING if self._times else 1.0
        slower = self._best * (1 + FORGETTING) if self._times else inf
        self._best = min(seconds / pixels, slower)
        self._pixels += weight * (pixels - self._pixels)
        self._seconds += weight * (seconds - self._seconds)
        self._times += 1


@dataclass(frozen=True)
class Work:
    """What stands before the UNet and the VAE, in images and latent pixels.

    Attributes:
        rows: images that the UNet has not finished.
        unet_pixels: of all their steps to come.
        until_first: of the steps until the first of them is finished.
        row_pixels: what the VAE will have to decode of them.
        decoding: images that wait for the VAE or are in it.
        decode_pixels: of those.
        at_once: UNet rows of a call; about as many images are denoised together.
    """

    rows: int = 0
    unet_pixels: int = 0
    until_first: int = 0
    row_pixels: int = 0
    decoding: int = 0
    decode_pixels: int = 0
    at_once: int = 1

    def and_(self, rows: int, unet_pixels: int, row_pixels: int) -> "Work":
        """This, and rows that nobody has begun: they join the first one's calls while those have
        room, which take longer for it."""
        total = replace(
            self,
            rows=self.rows + rows,
            unet_pixels=self.unet_pixels + unet_pixels,
            row_pixels=self.row_pixels + row_pixels,
        )
        if not total.rows:
            return total
        each = (
            self.until_first // min(self.rows, self.at_once) if self.rows else unet_pixels // rows
        )
        return replace(total, until_first=each * min(total.rows, self.at_once))


@dataclass(frozen=True)
class Outlook:
    """How long it takes until work is done, and until there is room for more.

    UNet and VAE work side by side, and each one's measured time includes what it loses to the
    other: the slower of the two decides.

    Attributes:
        decode_s: of what waits for the VAE now.
        pending_s: until everything accepted is done.
        first_s: until the first image is answered.
        each_s: between answers after that, on average.
    """

    decode_s: float = 0.0
    pending_s: float = 0.0
    first_s: float = 0.0
    each_s: float = 0.0

    @staticmethod
    def of(work: Work, unet: Pace, vae: Pace) -> "Outlook":
        """The outlook on this work at this pace."""
        unet_s = work.unet_pixels * unet.pixel_s
        decode_s = work.decode_pixels * vae.pixel_s
        all_decoded_s = decode_s + work.row_pixels * vae.pixel_s
        pending_s = max(unet_s, all_decoded_s)
        if work.decoding:
            first_s = decode_s / work.decoding
        else:
            decoded_s = work.row_pixels * vae.pixel_s / max(1, work.rows)
            first_s = work.until_first * unet.pixel_s + decoded_s
        images = work.rows + work.decoding
        return Outlook(decode_s, pending_s, min(first_s, pending_s), pending_s / max(1, images))

    def room_s(self, images: int) -> float:
        """Seconds until so many images have been answered."""
        return self.first_s + (images - 1) * self.each_s
