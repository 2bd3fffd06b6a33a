"""The half pixels of all resizing, map cells and file formats.

Pixel centres are at integers: the centre of the top-left pixel is (0, 0), so a photo of width w
spans -0.5 .. w - 0.5. Every change of grid in the package (resize, crop, map cell to pixel, COLMAP)
is made here, with one `AxisMap` per axis.

The 2019 release left the half pixel out in several places. Its rules are here, too, because
`original` reproduces them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Array: TypeAlias = NDArray[np.float64]

F = TypeVar("F", bound=np.floating[Any])


@dataclass(frozen=True)
class AxisMap:
    """target = scale * source + shift, along one axis."""

    scale: float
    shift: float

    def inverse(self) -> AxisMap:
        """The map source_from_target."""
        return AxisMap(1 / self.scale, -self.shift / self.scale)

    def after(self, first: AxisMap) -> AxisMap:
        """The map that applies `first`, then this one."""
        return AxisMap(self.scale * first.scale, self.scale * first.shift + self.shift)

    def of(self, value: float) -> float:
        """Map one coordinate."""
        return self.scale * value + self.shift


@dataclass(frozen=True)
class GridMap:
    """Maps points (x, y) of one pixel grid to another, each axis on its own."""

    x: AxisMap
    y: AxisMap

    @overload
    def __call__(self, points: Tensor) -> Tensor: ...
    @overload
    def __call__(self, points: NDArray[F]) -> NDArray[F]: ...
    def __call__(self, points: Tensor | NDArray[Any]) -> Tensor | NDArray[Any]:
        """Map N x 2 points, a tensor or an array of floats; the type is kept."""
        scale, shift = (self.x.scale, self.y.scale), (self.x.shift, self.y.shift)
        if isinstance(points, Tensor):
            return points * points.new_tensor(scale) + points.new_tensor(shift)
        scales, shifts = np.array([scale, shift], points.dtype)
        return np.asarray(points * scales + shifts)

    def inverse(self) -> GridMap:
        """The map source_from_target."""
        return GridMap(self.x.inverse(), self.y.inverse())

    def after(self, first: GridMap) -> GridMap:
        """The map that applies `first`, then this one."""
        return GridMap(self.x.after(first.x), self.y.after(first.y))


Size = tuple[int, int]  # (width, height) in pixels
Point = tuple[float, float]  # (x, y) in pixels


@dataclass(frozen=True)
class Rotation:
    """Maps points (x, y) to a pixel grid that is rotated counterclockwise on the screen.

    target = R (source - source_centre) + target_centre.
    """

    cosine: float
    sine: float
    source_centre: Point
    target_centre: Point

    def __call__(self, points: Tensor) -> Tensor:
        """Map ... x 2 (x, y) points; the type of `points` is kept."""
        x, y = (points - points.new_tensor(self.source_centre)).unbind(-1)
        turned = (self.cosine * x + self.sine * y, self.cosine * y - self.sine * x)
        return torch.stack(turned, dim=-1) + points.new_tensor(self.target_centre)

    @property
    def quarter(self) -> bool:
        """Whether it consists of quarter turns, which map pixels to pixels."""
        return min(abs(self.cosine), abs(self.sine)) < 1e-9

    def inverse(self) -> Rotation:
        """The map source_from_target."""
        return Rotation(self.cosine, -self.sine, self.target_centre, self.source_centre)


def resize(source: Size, target: Size) -> GridMap:
    """target_from_source of a resize: borders map to borders, (x + 0.5) * f - 0.5."""
    factors = [b / a for a, b in zip(source, target, strict=True)]
    return GridMap(*(AxisMap(factor, 0.5 * factor - 0.5) for factor in factors))


def resize_ratio(source: Size, target: Size) -> GridMap:
    """target_from_source as the release maps keypoints back: x * f, without the half pixel."""
    return GridMap(AxisMap(target[0] / source[0], 0.0), AxisMap(target[1] / source[1], 0.0))


def resize_corners(source: Size, target: Size) -> GridMap:
    """target_from_source of a resize with `align_corners=True`: corner pixels keep their centre."""
    last = [(a - 1, b - 1) for a, b in zip(source, target, strict=True)]
    return GridMap(*(AxisMap(b / a if a > 0 and b > 0 else 1.0, 0.0) for a, b in last))


def turn(source: Size, degrees: float) -> tuple[Size, Rotation]:
    """The size of a photo rotated counterclockwise about its centre, and target_from_source.

    Nothing is cut off: the size is that of the rotated photo's bounding box.
    """
    angle = math.radians(degrees)
    cosine, sine = math.cos(angle), math.sin(angle)
    width, height = source
    across = abs(cosine) * width + abs(sine) * height
    down = abs(sine) * width + abs(cosine) * height
    target = (math.ceil(across - 1e-6), math.ceil(down - 1e-6))
    centres = [((size[0] - 1) / 2, (size[1] - 1) / 2) for size in (source, target)]
    return target, Rotation(cosine, sine, *centres)


def crop(left: float, top: float) -> GridMap:
    """crop_from_image: the image's pixel (left, top) becomes (0, 0)."""
    return GridMap(AxisMap(1.0, -left), AxisMap(1.0, -top))


def pixels_from_cells(stride: float, first_centre: float) -> GridMap:
    """Cell c of a dense map is centred at pixel stride * c + first_centre."""
    axis = AxisMap(stride, first_centre)
    return GridMap(axis, axis)


EXTRACTION_CELLS = pixels_from_cells(4, 3.5)
"""Stride-4 map: two 2x2 max pools centre a cell at 4c + 1.5. The average pool of stride 1 joins two
such cells, so its centre is at 4c + 3.5."""

SHALLOW_CELLS = pixels_from_cells(4, 1.5)  # map of conv3_3 before its pool: two 2x2 max pools

ORIGINAL_EXTRACTION_CELLS = pixels_from_cells(4, 1.5)
"""Where the release reports the same cells: it forgets the average pool (2 px up and left)."""

TRAINING_CELLS = pixels_from_cells(8, 3.5)  # stride-8 map: three 2x2 max pools

COLMAP_FROM_PIXELS = GridMap(AxisMap(1.0, 0.5), AxisMap(1.0, 0.5))
"""COLMAP puts the centre of the top-left pixel at (0.5, 0.5)."""
