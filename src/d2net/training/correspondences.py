"""Which points of two crops show the same thing: by a homography, by depth and pose, by tracks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from d2net.geometry import coordinates
from d2net.geometry.cameras import project, rays
from d2net.geometry.coordinates import TRAINING_CELLS
from d2net.training.views import Array, View

if TYPE_CHECKING:
    import pycolmap

Points = NDArray[np.float32]
Pairs: TypeAlias = tuple[Points, Points]
"""K x 2 and K x 2 float32 points of crops a and b."""

Warp: TypeAlias = Callable[[Array], Array]
"""Takes N x 2 points of photo a to photo b; not a number where b does not show them."""


def cell_centres(edge: int) -> Array:
    """Centres of the cells of the training network in a crop, row by row: N x 2 (x, y).

    Args:
        edge: of the crop in pixels, a multiple of 8.
    """
    cells = np.arange(edge // 8, dtype=np.float64)
    columns, rows = np.meshgrid(cells, cells)
    grid = torch.from_numpy(np.stack([columns.ravel(), rows.ravel()], axis=1))
    return np.asarray(TRAINING_CELLS(grid).numpy(), dtype=np.float64)


def dense(view_a: View, view_b: View, warp: Warp) -> Pairs:
    """Cell centres of crop a that are seen in crop b, and where."""
    centres = cell_centres(view_a.edge)
    return _seen(view_b, centres, warp(view_a.in_photo(centres)))


def sparse(view_a: View, view_b: View, points_a: Array, points_b: Array) -> Pairs:
    """Pairs of points of photos a and b, N x 2 each, that lie in both crops, in their pixels."""
    in_a = view_a.locate(points_a)
    inside = view_a.contains(in_a)
    return _seen(view_b, in_a[inside], points_b[inside])


def _seen(view_b: View, in_a: Array, points_b: Array) -> Pairs:
    in_b = view_b.locate(points_b)
    with np.errstate(invalid="ignore"):
        seen = view_b.contains(in_b)
    return in_a[seen].astype(np.float32), in_b[seen].astype(np.float32)


@dataclass(frozen=True, eq=False)
class DepthView:
    """A photo whose camera, pose and depth are known.

    Attributes:
        camera: COLMAP's camera of the photo, lens distortion and all.
        cam_from_world: 3 x 4.
        depth: h x w float32, along the optical axis in the unit of the poses; 0 where unknown. It
            may be smaller than the photo, with the same borders.
        size: (width, height) of the photo.
    """

    camera: pycolmap.Camera
    cam_from_world: Array
    depth: NDArray[np.float32]
    size: coordinates.Size

    def depth_at(self, points: Array) -> Array:
        """Depth at N x 2 points of the photo, not a number where it is unknown.

        Bilinear; all four pixels around a point must be known, as in the 2019 release.
        """
        height, width = self.depth.shape
        grid = coordinates.resize(self.size, (width, height))
        places = grid(torch.from_numpy(points)).numpy()
        with np.errstate(invalid="ignore"):
            inside = ((places >= 0) & (places <= (width - 1, height - 1))).all(axis=1)
        depths = np.full(len(points), np.nan)
        x, y = places[inside].T
        left, top = np.floor(x).astype(int), np.floor(y).astype(int)
        right, bottom = np.ceil(x).astype(int), np.ceil(y).astype(int)
        corners = [self.depth[row, column] for row in (top, bottom) for column in (left, right)]
        u, v = x - left, y - top
        sampled = (1 - v) * ((1 - u) * corners[0] + u * corners[1]) + v * (
            (1 - u) * corners[2] + u * corners[3]
        )
        known = np.all([np.isfinite(corner) & (corner > 0) for corner in corners], axis=0)
        depths[inside] = np.where(known, sampled, np.nan)
        return depths


@dataclass(frozen=True, eq=False)
class Tolerance:
    """How far two depths of the same point may differ.

    Attributes:
        value: a share of the depth, or a length in the unit of the poses.
        relative: whether it is a share. The release's 0.05 is a length, which in a reconstruction
            of arbitrary unit means nothing.
    """

    value: float = 0.05
    relative: bool = True

    def allows(self, depths: Array, others: Array) -> NDArray[np.bool_]:
        """Which depths agree; not those that are not a number."""
        limits = self.value * others if self.relative else self.value
        with np.errstate(invalid="ignore"):
            agree: NDArray[np.bool_] = np.abs(depths - others) < limits
        return agree


@dataclass(frozen=True, eq=False)
class DepthWarp:
    """Takes points of photo a to photo b by depth and pose.

    The release's rule (`lib/loss.py`, `warp`): depth of a is known at the point, the point lies in
    front of camera b and in photo b, depth of b is known there, and agrees with the point's, so
    that nothing is in between.
    """

    a: DepthView
    b: DepthView
    tolerance: Tolerance = Tolerance()

    def __call__(self, points: Array) -> Array:
        """N x 2 points of photo a in photo b, not a number where b does not see them."""
        places, expected, measured = self.compare(points)
        places[~self.tolerance.allows(expected, measured)] = np.nan
        return places

    def compare(self, points: Array) -> tuple[Array, Array, Array]:
        """Where N x 2 points of photo a project to in b, how deep, and how deep b is there.

        Returns:
            N x 2 places in pixels of photo b, N depths of the points along the axis of b, N depths
            of photo b there; not a number where unknown.
        """
        depths = self.a.depth_at(points)
        directions = np.hstack([rays(self.a.camera, points), np.ones((len(points), 1))])
        world = _to_world(self.a.cam_from_world, directions * depths[:, None])
        in_b = _from_world(self.b.cam_from_world, world)
        places = project(self.b.camera, in_b)
        return places, in_b[:, 2], self.b.depth_at(places)


def _from_world(pose: Array, points: Array) -> Array:
    return np.asarray(points @ pose[:, :3].T + pose[:, 3], dtype=np.float64)


def _to_world(pose: Array, points: Array) -> Array:
    return np.asarray((points - pose[:, 3]) @ pose[:, :3], dtype=np.float64)
