"""What images are in these rooms. No torch."""

import numpy as np
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]  # (height, width, 3), RGB
Plane = NDArray[np.uint8]  # (height, width): an alpha channel, a mask
