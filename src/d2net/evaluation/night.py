"""A simulated night photo, for evaluations where no real night photos are at hand.

The steps work on linear light (sRGB's curve is taken as a power of 2.2):

1. Light falls off from a lamp at a random position, with a standard deviation of `LAMP` times the
   longer edge of the photo, down to the share `SKY`.
2. The colour of the lamp is drawn between sodium (red over blue 8) and moonlight (red over blue
   0.6).
3. A white pixel at the lamp gives `PHOTONS` electrons on average, with Poisson noise. Reading out
   adds normal noise of `READING` electrons. Both are independent for each pixel and channel.
4. The gain brings the brightest hundredth of the pixels to `EXPOSED` of white; 8 bits.

Real nights have lit windows, other shadows and longer exposures. The simulation is repeatable: the
same photo and seed give the same pixels.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from d2net.io.atomic import output_errors, replacing
from d2net.io.images import Pixels, to_pixels

PHOTONS = 40.0
READING = 2.0
SKY = 0.04
LAMP = 0.3
EXPOSED = 0.3
_SODIUM = np.array([1.0, 0.55, 0.125])
_MOON = np.array([0.6, 0.75, 1.0])
_GAMMA = 2.2


def at_night(photo: Pixels, rng: np.random.Generator) -> Pixels:
    """Simulate the night photo of a photo.

    Args:
        photo: H x W x 3 RGB, 0 to 255.
        rng: draws the position and colour of the lamp, and the noise.

    Returns:
        H x W x 3 RGB of the same view.
    """
    height, width = photo.shape[:2]
    light = np.asarray(photo / 255.0, np.float64) ** _GAMMA
    x0, y0 = rng.uniform(0.2, 0.8, 2) * (width, height)
    x, y = np.arange(width) - x0, np.arange(height)[:, None] - y0
    fall = np.exp(-(x**2 + y**2) / (2 * (LAMP * max(width, height)) ** 2))
    light = light * (SKY + (1 - SKY) * fall)[..., None]
    share = rng.random()
    light = light * (share * _SODIUM + (1 - share) * _MOON)
    electrons = rng.poisson(PHOTONS * light) + rng.normal(0, READING, light.shape)
    white = max(float(np.percentile(electrons, 99)), 1.0)
    shown = np.clip(EXPOSED * electrons / white, 0, 1) ** (1 / _GAMMA)
    night: Pixels = np.rint(255 * shown).astype(np.uint8)
    return night


def write_at_night(photo: Path, output: Path, seed: int) -> None:
    """Write the simulated night photo of a photo as PNG.

    Args:
        photo: the file.
        output: a PNG file; its folder is created. The name changes the random draws.
        seed: of the random draws.

    Raises:
        ImageError: the photo cannot be read.
        OutputError: the output cannot be written.
    """
    rng = np.random.default_rng([seed, zlib.crc32(output.name.encode())])
    dark = at_night(to_pixels(photo), rng)
    with output_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(output) as temporary:
        Image.fromarray(dark).save(temporary, format="png")
