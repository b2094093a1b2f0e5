"""What a device takes for its work: fitted to figures of docs/performance.md, "On a GPU"."""

from dataclasses import dataclass

PIXELS = 128 * 128  # latent pixels of an image of 1024 x 1024: the size that was measured
# Table "UNet", sdxl on one H100, eager, float16, milliseconds of a bare call by rows.
UNET_MS = {1: 60.6, 2: 61.5, 4: 80.4, 8: 154.3}
# Table "VAE", sdxl in float16, milliseconds an image by images in a call.
VAE_MS = {1: 91.0, 2: 98.0, 4: 86.0}


@dataclass(frozen=True)
class Device:
    """One GPU with one model.

    Attributes:
        least_s: of a UNet call, however small: the host launches no faster.
        call_s, row_s: otherwise, of a call itself and of each row of 1024 x 1024.
        image_s: of the VAE for an image of 1024 x 1024.
        adapted: times as long as else a call takes in which a row has an adapter ("Traffic": 0.91
            of the rows a second).
        load_s: from asking for an adapter to its use ("Adapters": 228 MB in 0.52 s).
        adapter_mb: MiB that one takes on the device ("Style adapters": 218).
    """

    least_s: float = 0.061
    call_s: float = 0.0075
    row_s: float = 0.01835
    image_s: float = 0.0885
    adapted: float = 1 / 0.91
    load_s: float = 0.52
    adapter_mb: float = 218.0

    def unet_s(self, rows: int, pixels: int, *, adapted: bool) -> float:
        """A UNet call of so many rows, each of so many latent pixels."""
        seconds = max(self.least_s, self.call_s + self.row_s * rows * pixels / PIXELS)
        return seconds * self.adapted if adapted else seconds

    def vae_s(self, pixels: int) -> float:
        """The VAE for so many latent pixels."""
        return self.image_s * pixels / PIXELS


H100 = Device()
