"""Which points of two crops show the same thing: by homography, by depth and pose, by tracks.

`interpolate` says where points between known correspondences lie. It works the same for dense
warps and for sparse tracks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from d2net.geometry import coordinates
from d2net.geometry.cameras import project, rays
from d2net.geometry.coordinates import TRAINING_CELLS, Array
from d2net.training.crops import RGB, Crop

if TYPE_CHECKING:
    import pycolmap

Points: TypeAlias = NDArray[np.float32]
PointPairs: TypeAlias = tuple[Points, Points]
"""K x 2 points (x, y) of crop a and their K x 2 partners in crop b."""

PhotoWarp: TypeAlias = Callable[[Array], Array]
"""Maps N x 2 points of photo a to photo b; NaN where photo b does not show them."""

MAX_CORNERS = 200  # strongest corners of each crop with an interpolated correspondence

_BORDER = 8  # px; corners closer to the border of a crop are not used

_NEIGHBOURS = 12  # correspondences in a local affine fit: more than two rows of cells
_MIN_NEIGHBOURS = 4
_MAX_DISTANCE = 24.0  # px, from a point to the correspondences of its fit
_MAX_RESIDUAL = 2.0  # px


def cell_centres(edge: int) -> Array:
    """N x 2 centres (x, y) of the stride-8 cells of a crop of `edge` pixels, row by row."""
    cells = np.arange(edge // 8, dtype=np.float64)
    columns, rows = np.meshgrid(cells, cells)
    return TRAINING_CELLS(np.stack([columns.ravel(), rows.ravel()], axis=1))


def dense_correspondences(crop_a: Crop, crop_b: Crop, warp: PhotoWarp) -> PointPairs:
    """The cell centres of crop a that crop b shows, and their partners there."""
    centres = cell_centres(crop_a.edge)
    return _visible(crop_b, centres, warp(crop_a.to_photo(centres)))


def sparse_correspondences(
    crop_a: Crop, crop_b: Crop, points_a: Array, points_b: Array
) -> PointPairs:
    """Correspondences of the photos, N x 2 and N x 2, that lie in both crops, in crop pixels."""
    in_a = crop_a.from_photo(points_a)
    inside = crop_a.contains(in_a)
    return _visible(crop_b, in_a[inside], points_b[inside])


def _visible(crop_b: Crop, in_a: Array, points_b: Array) -> PointPairs:
    in_b = crop_b.from_photo(points_b)
    visible = crop_b.contains(in_b)
    return in_a[visible].astype(np.float32), in_b[visible].astype(np.float32)


@dataclass(frozen=True, eq=False)
class PosedDepth:
    """The depth map of a photo with its camera and pose.

    Attributes:
        camera: COLMAP's camera of the photo, with its lens distortion.
        cam_from_world: 3 x 4.
        depth: h x w float32 along the optical axis in the unit of the poses, 0 where unknown. It
            may be smaller than the photo, with the same borders.
        size: (width, height) of the photo.
    """

    camera: pycolmap.Camera
    cam_from_world: Array
    depth: NDArray[np.float32]
    size: coordinates.Size

    def depth_at(self, points: Array) -> Array:
        """Depth at N x 2 points of the photo, NaN where it is unknown.

        Bilinear. All four pixels around a point must be known, as in the 2019 release.
        """
        height, width = self.depth.shape
        in_map = coordinates.resize(self.size, (width, height))(points)
        with np.errstate(invalid="ignore"):
            inside = ((in_map >= 0) & (in_map <= (width - 1, height - 1))).all(axis=1)
        x, y = in_map[inside].T
        (left, top), (right, bottom) = (
            f(in_map[inside].T).astype(int) for f in (np.floor, np.ceil)
        )
        corners = np.stack([self.depth[v, h] for v in (top, bottom) for h in (left, right)])
        u, v = x - left, y - top
        weights = np.stack([(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u])
        known = (np.isfinite(corners) & (corners > 0)).all(axis=0)
        depths = np.full(len(points), np.nan)
        depths[inside] = np.where(known, (weights * corners).sum(axis=0), np.nan)
        return depths


@dataclass(frozen=True, eq=False)
class DepthWarp:
    """Maps points of photo a to photo b by depth and pose.

    The rule is the release's (`lib/loss.py`, `warp`): depth of a is known at the point, the point
    lies in front of camera b and inside photo b, and depth of b is known there and agrees, so that
    nothing occludes the point. `tolerance` is the largest difference of both depths, as a share of
    the depth. (The release's is a length, which means nothing at arbitrary scale.)
    """

    a: PosedDepth
    b: PosedDepth
    tolerance: float = 0.05

    def __call__(self, points: Array) -> Array:
        """Map N x 2 points of photo a to photo b; NaN where b does not show them."""
        projected, expected, measured = self.project(points)
        projected[~self.agrees(expected, measured)] = np.nan
        return projected

    def project(self, points: Array) -> tuple[Array, Array, Array]:
        """Project N x 2 points of photo a into photo b.

        Returns:
            N x 2 pixels of photo b, N depths of the points along the axis of b, and N depths that
            the depth map of b has there; NaN where unknown.
        """
        depths = self.a.depth_at(points)
        directions = np.hstack([rays(self.a.camera, points), np.ones((len(points), 1))])
        pose_a, pose_b = self.a.cam_from_world, self.b.cam_from_world
        world = (directions * depths[:, None] - pose_a[:, 3]) @ pose_a[:, :3]
        in_b = world @ pose_b[:, :3].T + pose_b[:, 3]
        projected = project(self.b.camera, in_b)
        return projected, in_b[:, 2], self.b.depth_at(projected)

    def agrees(self, expected: Array, measured: Array) -> NDArray[np.bool_]:
        """Whether N pairs of depths agree; False where one of them is NaN."""
        with np.errstate(invalid="ignore"):
            return np.asarray(np.abs(expected - measured) < self.tolerance * measured, np.bool_)


def interpolate(points: NDArray[Any], known_a: NDArray[Any], known_b: NDArray[Any]) -> Array:
    """Map N x 2 points of the first crop to the second, by K known correspondences around them.

    Each point is mapped by the affine map that fits its nearest correspondences. The result is
    N x 2 float64; NaN where too few correspondences are near, or the map does not fit all of them.
    """
    result = np.full((len(points), 2), np.nan)
    if len(points) == 0 or len(known_a) < _MIN_NEIGHBOURS:
        return result
    count = min(_NEIGHBOURS, len(known_a))
    distance, index = cKDTree(known_a).query(points, k=count, distance_upper_bound=_MAX_DISTANCE)
    near = np.isfinite(distance)
    index = np.where(near, index, 0)
    # Weighted least squares around each point. Absent neighbours have weight 0.
    offsets = (known_a[index] - points[:, None]).astype(np.float64)
    design = np.concatenate([np.ones((*offsets.shape[:2], 1)), offsets / _MAX_DISTANCE], axis=2)
    design = design * near[..., None]
    targets = known_b[index].astype(np.float64) * near[..., None]
    normal = design.transpose(0, 2, 1) @ design
    # Collinear correspondences do not determine the map.
    solvable = (near.sum(1) >= _MIN_NEIGHBOURS) & (np.linalg.eigvalsh(normal)[:, 0] > 1e-2)
    normal[~solvable] = np.eye(3)
    affine = np.linalg.solve(normal, design.transpose(0, 2, 1) @ targets)
    residual = np.linalg.norm(design @ affine - targets, axis=2).max(1)
    fits = solvable & (residual <= _MAX_RESIDUAL)
    result[fits] = affine[fits, 0]
    return result


def corner_correspondences(image_a: RGB, image_b: RGB, known: PointPairs) -> PointPairs:
    """Corners of either crop and their partners in the other.

    A corner is never matched with a detected corner of the other crop. Its partner is
    interpolated, so it is exact to a fraction of a pixel.

    Returns:
        K x 2 and K x 2, first the corners of a, then those of b, at most `MAX_CORNERS` of each.
    """
    known_a, known_b = known
    corners_a, corners_b = _strongest_corners(image_a), _strongest_corners(image_b)
    in_a = np.concatenate([corners_a, interpolate(corners_b, known_b, known_a)])
    in_b = np.concatenate([interpolate(corners_a, known_a, known_b), corners_b])
    visible = _within_border(in_a, image_a) & _within_border(in_b, image_b)
    return in_a[visible].astype(np.float32), in_b[visible].astype(np.float32)


def _strongest_corners(image: RGB) -> Array:
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    inside = np.zeros_like(grey)
    inside[_BORDER:-_BORDER, _BORDER:-_BORDER] = 1
    corners = cv2.goodFeaturesToTrack(grey, MAX_CORNERS, 1e-4, 3, mask=inside, blockSize=5)
    return np.zeros((0, 2)) if corners is None else corners[:, 0].astype(np.float64)


def _within_border(points: NDArray[Any], image: RGB) -> NDArray[np.bool_]:
    limit = (image.shape[1] - 1 - _BORDER, image.shape[0] - 1 - _BORDER)
    with np.errstate(invalid="ignore"):
        return np.asarray(((points >= _BORDER) & (points <= limit)).all(axis=1), np.bool_)
