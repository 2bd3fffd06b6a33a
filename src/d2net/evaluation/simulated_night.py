"""A simulated night photo, for evaluations where no real night photos are at hand.

Real nights have lit windows, other shadows and longer exposures.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
from PIL import Image

from d2net.io.atomic import output_errors
from d2net.io.drawn_pictures import write_picture
from d2net.io.images import Pixels, to_pixels

WHITE_ELECTRONS = 40.0  # of a white pixel beside the lamp, on average
READ_NOISE = 2.0  # standard deviation, in electrons
SKY = 0.04  # share of the light far from the lamp
LAMP_RADIUS = 0.3  # standard deviation of the fall-off of the lamp's light, per longer edge
BRIGHTEST = 0.3  # share of white, in linear light, to which the 99th percentile is scaled
_SODIUM, _MOON = np.array([1.0, 0.55, 0.125]), np.array([0.6, 0.75, 1.0])
_GAMMA = 2.2


def at_night(photo: Pixels, rng: np.random.Generator) -> Pixels:
    """Simulate how a photo (H x W x 3 RGB, 0 to 255) would look at night.

    A lamp at a random position, of a colour between sodium and moonlight, lights the scene. The
    sensor adds Poisson noise and normal read noise.
    """
    height, width = photo.shape[:2]
    light = np.asarray(photo / 255.0, np.float64) ** _GAMMA
    x0, y0 = rng.uniform(0.2, 0.8, 2) * (width, height)
    x, y = np.arange(width) - x0, np.arange(height)[:, None] - y0
    fall = np.exp(-(x**2 + y**2) / (2 * (LAMP_RADIUS * max(width, height)) ** 2))
    light = light * (SKY + (1 - SKY) * fall)[..., None]
    share = rng.random()
    light = light * (share * _SODIUM + (1 - share) * _MOON)
    electrons = rng.poisson(WHITE_ELECTRONS * light) + rng.normal(0, READ_NOISE, light.shape)
    white = max(float(np.percentile(electrons, 99)), 1.0)
    shown = np.clip(BRIGHTEST * electrons / white, 0, 1) ** (1 / _GAMMA)
    night: Pixels = np.rint(255 * shown).astype(np.uint8)
    return night


def write_at_night(photo: Path, output: Path) -> None:
    """Simulate how a photo would look at night, and write it as PNG.

    The same photo and name of the output give the same pixels. A file that has them is kept.
    """
    rng = np.random.default_rng([0, zlib.crc32(output.name.encode())])
    dark = at_night(to_pixels(photo), rng)
    with output_errors(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    if not (output.exists() and np.array_equal(to_pixels(output), dark)):
        write_picture(output, Image.fromarray(dark))
