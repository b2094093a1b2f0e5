"""How much work comes in, by what came last. No torch."""

from collections import deque
from typing import NamedTuple

WINDOW_S = 30.0  # that counts


class _Arrival(NamedTuple):
    at: float
    unet_pixels: int
    decode_pixels: int
    encode_pixels: int


class Arrivals:
    """Latent pixels that UNet and VAE were given in the last `WINDOW_S`; nothing after that."""

    def __init__(self) -> None:
        self._last: deque[_Arrival] = deque()

    def add(self, now: float, unet_pixels: int, decode_pixels: int, encode_pixels: int) -> None:
        """A job has been accepted: latent pixels of all its rows' steps, of its images, and of what
        the VAE encodes for them."""
        self._last.append(_Arrival(now, unet_pixels, decode_pixels, encode_pixels))

    def seconds_a_second(
        self, now: float, unet_pixel_s: float, decode_pixel_s: float, encode_pixel_s: float
    ) -> float:
        """What came, in seconds of the device, for each second: the devices that it keeps busy."""
        while self._last and self._last[0].at <= now - WINDOW_S:
            self._last.popleft()
        unet_s = sum(one.unet_pixels for one in self._last) * unet_pixel_s
        decode_s = sum(one.decode_pixels for one in self._last) * decode_pixel_s
        encode_s = sum(one.encode_pixels for one in self._last) * encode_pixel_s
        return (unet_s + decode_s + encode_s) / WINDOW_S
