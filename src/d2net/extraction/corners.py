"""Keypoints from the grey photo: corners, to a fraction of a pixel.

The deep maps know what can be matched, but a cell of theirs is four pixels wide. Corners are where
a small shift in any direction changes the photo, so that their positions are sharp: Shi and Tomasi,
"Good Features to Track", CVPR 1994 (the smaller eigenvalue of the structure tensor). Here at two
scales, whose product keeps what is a corner at both: noise is none at the larger one, and the
smaller one says where it is.

Everything is sums of shifted slices, on a CPU in tiles that stay in cache; what comes out does not
depend on where they were cut.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from d2net.networks.detection import quadratic_step

SCALES = ((1.0, 1.5), (2.0, 2.5))
"""Deviations in pixels of the Gaussians before the derivative and over the structure tensor."""

FRAME = 8
"""Pixels along the frame of a photo without corners: derivatives there see what lies beyond it."""

REACH = 17
"""What happens at a pixel depends on pixels at most this far away, along each axis."""

LEAST_SCORE = 0.5
"""Weakest corner, in grey values per pixel: flat areas and their noise have none above."""

_NEIGHBOURS = 2
"""A corner is the largest value of the 5 x 5 pixels around it."""

_LARGEST_STEP = 1.0
_TILE = 146
"""Pixels along each side that are done at once on a CPU. With `REACH` around them they are 32,400,
which stay in cache; and up to 32,768 torch does not wake its other threads, for so little work that
waiting for them takes longer, by far where the cores are busy."""
_GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601


@dataclass(frozen=True)
class Corners:
    """Corners in one grey photo, ordered by row, column.

    Attributes:
        rows, cols: N int64, the pixel.
        scores: N float32, strength in grey values per pixel: the geometric mean over both scales
            of the smallest root-mean-square slope in any direction.
        steps: N x 2 float32, sub-pixel step (columns, rows) from the pixel.
    """

    rows: Tensor
    cols: Tensor
    scores: Tensor
    steps: Tensor

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def positions(self) -> Tensor:
        """N x 2 float32 (x, y) in pixels."""
        return torch.stack([self.cols, self.rows], dim=1) + self.steps


def to_grey(pixels: Tensor) -> Tensor:
    """Luma of ... x 3 RGB pixels of any range, float32."""
    red, green, blue = pixels.float().unbind(-1)
    return _GREY[0] * red + _GREY[1] * green + _GREY[2] * blue


def detect_corners(grey: Tensor) -> Corners:
    """All corners of a grey photo, its frame left to the caller (see `FRAME`).

    Args:
        grey: H x W float32, 0..255.

    Returns:
        Maxima of 5 x 5 pixels above `LEAST_SCORE`; of equal ones the first in reading order.
    """
    height, width = grey.shape
    tile = _TILE if grey.device.type == "cpu" else max(height, width)
    padded = F.pad(grey[None], (REACH,) * 4, mode="replicate")[0]
    parts = []
    for top in range(0, height, tile):
        for left in range(0, width, tile):
            part = padded[top : top + tile + 2 * REACH, left : left + tile + 2 * REACH]
            rows, cols, patches = _maxima(_strength(part))
            parts.append((rows + top, cols + left, patches))
    rows, cols, patches = (torch.cat(part) for part in zip(*parts, strict=True))
    order = (rows * width + cols).argsort()
    return _located(rows[order], cols[order], patches[order])


def detect_corners_at_once(grey: Tensor) -> Corners:
    """`detect_corners` without tiles, for a graph that other programs run."""
    padded = F.pad(grey[None], (REACH,) * 4, mode="replicate")[0]
    return _located(*_maxima(_strength(padded)))


def _located(rows: Tensor, cols: Tensor, patches: Tensor) -> Corners:
    """Corners at pixels, from the 3 x 3 values around them."""
    # The logarithm of the peak is nearest to the paraboloid that the step is computed from.
    _, _, steps = quadratic_step(patches.clamp_min(torch.finfo(torch.float32).tiny).log())
    return Corners(rows, cols, patches[:, 1, 1] ** 0.25, steps.clamp(-_LARGEST_STEP, _LARGEST_STEP))


def _strength(grey: Tensor) -> Tensor:
    """The smaller eigenvalues of all scales, multiplied: fourth power of the score.

    Args:
        grey: H x W.

    Returns:
        Of the inner pixels, H - 2 (REACH - _NEIGHBOURS) and W - 2 (REACH - _NEIGHBOURS).
    """
    size = [side - 2 * (REACH - _NEIGHBOURS) for side in grey.shape]
    product = grey.new_ones(size)
    for derivative, integration in SCALES:
        product *= _inner(_smaller_eigenvalue(grey, derivative, integration), size)
    return product


def _smaller_eigenvalue(grey: Tensor, derivative: float, integration: float) -> Tensor:
    """Smaller eigenvalue of the structure tensor, not negative, of the inner pixels."""
    smooth = _blurred(grey, derivative)
    dx = (smooth[1:-1, 2:] - smooth[1:-1, :-2]) / 2
    dy = (smooth[2:, 1:-1] - smooth[:-2, 1:-1]) / 2
    xx, xy, yy = (_blurred(x, integration) for x in (dx * dx, dx * dy, dy * dy))
    mean, half_difference = (xx + yy) / 2, (xx - yy) / 2
    return (mean - torch.hypot(half_difference, xy)).clamp_min_(0)


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


def _inner(x: Tensor, size: list[int]) -> Tensor:
    """The middle of x, (height, width) of `size`."""
    top, left = ((a - b) // 2 for a, b in zip(x.shape, size, strict=True))
    return x[top : top + size[0], left : left + size[1]]


def _maxima(strength: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows and columns of the local maxima, and the 3 x 3 values around them.

    Args:
        strength: (H + 4) x (W + 4): two more rows and columns on every side than are asked for.

    Returns:
        Rows and columns, N, from the first one asked for, and the values, N x 3 x 3.
    """
    n = _NEIGHBOURS
    height, width = (size - 2 * n for size in strength.shape)

    def shifted(x: Tensor, down: int) -> Tensor:
        return x[n + down : n + down + height]

    def beside(across: int) -> Tensor:
        return strength[n:-n, n + across : n + across + width]

    five = strength[:, :width].clone()
    for i in range(1, 2 * n + 1):
        torch.maximum(five, strength[:, i : i + width], out=five)
    earlier, later = shifted(five, -n).clone(), shifted(five, n).clone()
    for i in range(1, n + 1):
        if i < n:
            torch.maximum(earlier, shifted(five, -i), out=earlier)
            torch.maximum(later, shifted(five, i), out=later)
        torch.maximum(earlier, beside(-i), out=earlier)
        torch.maximum(later, beside(i), out=later)
    centre = beside(0)
    peak = (centre > earlier) & (centre >= later) & (centre >= LEAST_SCORE**4)
    rows, cols = peak.nonzero(as_tuple=True)
    around = torch.arange(n - 1, n + 2, device=strength.device)
    patches = strength[
        rows[:, None, None] + around[None, :, None], cols[:, None, None] + around[None, None, :]
    ]
    return rows, cols, patches
