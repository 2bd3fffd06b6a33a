"""A photo as it would look at night: a simulation, for figures where no night is at hand.

The light of the day's photo is turned into that of a night, seen by a camera that amplifies the
little it gets. In this order, on linear light (sRGB's curve taken as a power of 2.2):

1. The sky is gone: light falls off from a lamp at a random place, `LAMP` times the photo's longer
   side wide, to a share `SKY` of it.
2. The lamps' colour, between sodium (red over blue 8) and moonlight (red over blue 0.6).
3. Few photons: a white pixel at the lamp gives `PHOTONS` electrons on average, Poisson; reading out
   adds normal noise of `READING` electrons. Both are independent by pixel and channel.
4. The camera's gain brings the brightest hundredth to `EXPOSED` of white; eight bits.

It is no night: real ones have lit windows, other shadows and longer exposures. It is what can be
repeated: the same photo and seed give the same pixels.
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
    """A photo as it would look at night, see above.

    Args:
        photo: H x W x 3 RGB, 0 to 255.
        rng: draws the lamp's place and colour, and the noise.

    Returns:
        H x W x 3 RGB of the same scene geometry.
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
    """Write a photo as it would look at night, without loss.

    Args:
        photo: the file.
        output: a PNG file; its folder is made if need be. Another name draws another night.
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
