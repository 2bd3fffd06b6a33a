"""Corners of the grey photo as keypoints, to a fraction of a pixel.

Any small shift changes the photo at a corner, so corners have sharp positions: Shi and Tomasi,
"Good Features to Track", CVPR 1994 (the smaller eigenvalue of the structure tensor). The product of
two scales keeps corners of both: the larger scale rejects noise, and the smaller one locates.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.networks.base import Detections, View
from d2net.networks.detection import largest_around, quadratic_step

SCALES = ((1.0, 1.5), (2.0, 2.5))
"""Standard deviations in pixels of the Gaussians before the derivative and over the tensor."""

BORDER = 8
"""Corners this close to the border of a photo, in pixels, depend on pixels beyond it, so they are
dropped."""

RADIUS = 17
"""The result at a pixel depends on pixels at most this far away, along each axis."""

MIN_SCORE = 0.5
"""Corners with a lower score, in grey values per pixel, are dropped. Noise scores lower."""

DEEP_SCORE_RATIO = 80.0
"""Score of a corner of one grey value per pixel on the scale of the deep detector. With the
off-the-shelf weights the scores of both detectors then agree rank by rank (80 to 84 at ranks 100,
250 and 500, medians over photos). The shares of a budget do not depend on it."""

UNCERTAINTY = 0.4
"""Standard deviation per axis of a corner in pixels, at any scale. Measured like that of the deep
detector: 0.32 px without a pyramid, and with it 0.46 px at scale 0.5, 0.33 at 1, 0.40 at 2."""

_NEIGHBOURS = 2
"""A corner is the largest value of the 5 x 5 pixels around it."""

_LARGEST_STEP = 1.0
_TILE = 146
"""Side in pixels of the tiles on a CPU. With `RADIUS` around it a tile has 32,400 pixels. It stays
in cache, and torch uses no other threads up to 32,768: they would cost more than they save."""
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


class CornerDetector:
    """Corners of the grey photo, for any network."""

    border = BORDER

    def detect(self, view: View) -> Detections:
        """All corners of a view."""
        found = detect_corners(to_grey(view.pixels))
        return replace(found, scores=found.scores * DEEP_SCORE_RATIO)

    def uncertainty(self, scales: Tensor) -> Tensor:
        """Standard deviation per axis of positions found at `scales`, in pixels of the photo."""
        return torch.full_like(scales, UNCERTAINTY)


def to_grey(pixels: Tensor) -> Tensor:
    """Luma of ... x 3 RGB pixels of any range, float32."""
    red, green, blue = pixels.float().unbind(-1)
    return _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue


def detect_corners(grey: Tensor) -> Detections:
    """All corners of a grey photo, also those at its border (see `BORDER`).

    Args:
        grey: H x W float32, 0..255.

    Returns:
        Maxima of 5 x 5 pixels above `MIN_SCORE`, ordered by row, column; of equal neighbours the
        first in reading order. The score is the strength in grey values per pixel: the geometric
        mean over both scales of the smallest root-mean-square slope in any direction.
    """
    height, width = grey.shape
    padded = F.pad(grey[None], (RADIUS,) * 4, mode="replicate")[0]
    if grey.device.type != "cpu" or torch.compiler.is_exporting():
        rows, cols, patches = _maxima(_strength(padded))
    else:
        parts = []
        for top in range(0, height, _TILE):
            for left in range(0, width, _TILE):
                part = padded[top : top + _TILE + 2 * RADIUS, left : left + _TILE + 2 * RADIUS]
                rows, cols, patches = _maxima(_strength(part))
                parts.append((rows + top, cols + left, patches))
        rows, cols, patches = (torch.cat(part) for part in zip(*parts, strict=True))
        order = (rows * width + cols).argsort()
        rows, cols, patches = rows[order], cols[order], patches[order]
    # The logarithm of the peak is nearest to the paraboloid that the step is computed from.
    _, _, steps = quadratic_step(patches.clamp_min(torch.finfo(torch.float32).tiny).log())
    pixels = torch.stack([cols, rows], dim=1)
    return Detections(
        positions=pixels + steps.clamp(-_LARGEST_STEP, _LARGEST_STEP),
        scores=patches[:, 1, 1] ** 0.25,
        anchors=pixels,
        channels=torch.zeros_like(rows),
        located=torch.ones_like(rows, dtype=torch.bool),
    )


def _strength(grey: Tensor) -> Tensor:
    """The smaller eigenvalues of all scales, multiplied: fourth power of the score.

    Of H x W pixels, the inner H - 2 (RADIUS - _NEIGHBOURS) x W - 2 (RADIUS - _NEIGHBOURS).
    """
    height, width = (side - 2 * (RADIUS - _NEIGHBOURS) for side in grey.shape)
    product = grey.new_ones(height, width)
    for derivative, integration in SCALES:
        smooth = _blurred(grey, derivative)
        dx = (smooth[1:-1, 2:] - smooth[1:-1, :-2]) / 2
        dy = (smooth[2:, 1:-1] - smooth[:-2, 1:-1]) / 2
        xx, xy, yy = (_blurred(x, integration) for x in (dx * dx, dx * dy, dy * dy))
        mean, half_difference = (xx + yy) / 2, (xx - yy) / 2
        smaller = (mean - (half_difference.square() + xy.square()).sqrt()).clamp_min_(0)
        top, left = (smaller.shape[0] - height) // 2, (smaller.shape[1] - width) // 2
        product *= smaller[top : top + height, left : left + width]
    return product


def _blurred(x: Tensor, deviation: float) -> Tensor:
    """Gaussian blur of the pixels that are at least the kernel's radius inside."""
    radius = int(3 * deviation + 0.5)
    weights = [math.exp(-0.5 * (i / deviation) ** 2) for i in range(radius + 1)]
    total = weights[0] + 2 * sum(weights[1:])
    if torch.compiler.is_exporting():  # two operations of a graph in place of dozens
        kernel = x.new_tensor([weights[abs(i)] / total for i in range(-radius, radius + 1)])
        across, down = kernel[None, None, None], kernel[None, None, :, None]
        return F.conv2d(F.conv2d(x[None, None], across), down)[0, 0]
    for axis in (1, 0):
        size = x.shape[axis] - 2 * radius
        blurred = x.narrow(axis, radius, size) * (weights[0] / total)
        for i in range(1, radius + 1):
            pair = x.narrow(axis, radius - i, size) + x.narrow(axis, radius + i, size)
            blurred.add_(pair, alpha=weights[i] / total)
        x = blurred
    return x


def _maxima(strength: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of the local maxima, and the 3 x 3 values around them, N x 3 x 3.

    Counting starts two rows and columns inside of `strength`, where the searched area begins.
    """
    n, width = _NEIGHBOURS, strength.shape[1]
    peak = strength == largest_around(strength, n)
    peak = (peak & (strength >= MIN_SCORE**4))[n:-n, n:-n]
    rows, cols = peak.nonzero(as_tuple=True)
    around = torch.arange(2 * n + 1, device=strength.device)
    places = (rows[:, None, None] + around[:, None]) * width + cols[:, None, None] + around
    patches = strength.flatten()[places]
    earlier = patches.flatten(1)[:, : 2 * n * (n + 1)]
    first = (earlier < patches[:, n, n, None]).all(dim=1)  # of equal neighbours
    return rows[first], cols[first], patches[first, n - 1 : n + 2, n - 1 : n + 2]
