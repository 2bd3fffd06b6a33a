"""Square crops of photos, which may be rotated, scaled and seen in perspective."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.geometry import coordinates
from d2net.geometry.coordinates import Array, GridMap, Size
from d2net.geometry.homography import transfer
from d2net.settings import Settings

RGB = NDArray[np.uint8]  # H x W x 3 pixels

_SQUARE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])  # corners, clockwise

_MIN_BILINEAR_SCALE = 0.75
"""Below this scale bilinear sampling alone would skip pixels, so the photo is reduced first."""


@dataclass(frozen=True)
class Warp(Settings):
    """Limits of the random homographies between crops."""

    rotation: float = 0.0
    """Maximum rotation of one crop against the other, degrees."""

    scale: float = 1.0
    """Maximum ratio of the scales of two crops, at least 1."""

    perspective: float = 0.0
    """Maximum shift of a crop's corner as a share of half its edge, below 0.5."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.rotation <= 180:
            raise InputError(f"rotation must be 0 to 180 degrees, not {self.rotation}")
        if not 1 <= self.scale < np.inf:
            raise InputError(f"scale must be a ratio of at least 1, not {self.scale}")
        if not 0 <= self.perspective < 0.5:  # a larger shift could fold the crop
            raise InputError(
                f"perspective must be at least 0 and below 0.5, not {self.perspective}"
            )

    def random_corners(self, edge: float, rng: np.random.Generator) -> Array:
        """4 x 2 corners of a warped square around (0, 0), `edge` pixels of the photo wide."""
        shifts = rng.uniform(-self.perspective, self.perspective, (4, 2))
        angle = np.radians(rng.uniform(-self.rotation, self.rotation))
        rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return np.asarray((_SQUARE + shifts) @ rotation.T * (edge / 2), np.float64)

    def random_ratio(self, rng: np.random.Generator) -> float:
        """A ratio of scales, as likely as its inverse."""
        return float(np.exp(rng.uniform(-np.log(self.scale), np.log(self.scale))))


@dataclass(frozen=True, eq=False)
class Crop:
    """A square crop of a photo.

    Attributes:
        crop_from_photo: 3 x 3 homography, pixel centres at integers in both.
        edge: edge of the crop in pixels.
    """

    crop_from_photo: Array
    edge: int

    def from_photo(self, points: Array) -> Array:
        """Map N x 2 points (x, y) of the photo to pixels of the crop."""
        return transfer(self.crop_from_photo, points)

    def to_photo(self, points: Array) -> Array:
        """Map N x 2 points (x, y) of the crop to pixels of the photo."""
        return transfer(np.asarray(np.linalg.inv(self.crop_from_photo), np.float64), points)

    def contains(self, points: Array) -> NDArray[np.bool_]:
        """Whether each of N x 2 points lies between the centres of the crop's corner pixels."""
        with np.errstate(invalid="ignore"):
            inside = (points >= 0) & (points <= self.edge - 1)
        return np.asarray(inside.all(axis=1), np.bool_)

    def cut(self, photo: RGB) -> RGB:
        """Resample the photo to edge x edge x 3 pixels, black beyond its borders."""
        matrix, centre = self.crop_from_photo, np.full((1, 2), (self.edge - 1) / 2)
        scale = local_scale(matrix, self.to_photo(centre)[0])
        if scale < _MIN_BILINEAR_SCALE:
            height, width = photo.shape[:2]
            small = max(1, round(width * scale)), max(1, round(height * scale))
            matrix = matrix @ as_matrix(coordinates.resize(small, (width, height)))
            photo = np.asarray(cv2.resize(photo, small, interpolation=cv2.INTER_AREA), np.uint8)
        size = self.edge, self.edge
        warped = cv2.warpPerspective(photo, matrix, size, flags=cv2.INTER_LINEAR)
        return np.asarray(warped, np.uint8)


def as_matrix(grid: GridMap) -> Array:
    """The 3 x 3 matrix of a change of grid."""
    return np.array(
        [[grid.x.scale, 0, grid.x.shift], [0, grid.y.scale, grid.y.shift], [0, 0, 1]], np.float64
    )


def local_scale(matrix: Array, point: Array) -> float:
    """Scale of a homography at a point (x, y): the root of its area factor."""
    x, y = point
    w = matrix[2] @ (x, y, 1.0)
    return float(np.sqrt(abs(np.linalg.det(matrix)) / abs(w) ** 3))


def crop_around(point: Array, size: Size, edge: int) -> Crop:
    """A crop centred on a point as the 2019 release cuts it: whole pixels, no resampling.

    Near the photo's border the crop is moved inside. A photo smaller than the crop is enlarged.
    """
    scale = max(1.0, edge / min(size))
    if scale > 1:
        enlarged_size = max(edge, round(size[0] * scale)), max(edge, round(size[1] * scale))
        enlarged = as_matrix(coordinates.resize(size, enlarged_size))
        crop = crop_around(transfer(enlarged, point[None])[0], enlarged_size, edge)
        return Crop(crop.crop_from_photo @ enlarged, edge)
    left, top = (
        min(max(round(centre) - edge // 2, 0), side - edge)
        for centre, side in zip(point, size, strict=True)
    )
    return Crop(as_matrix(coordinates.crop(left, top)), edge)


def random_crop(
    point: Array, size: Size, edge: int, scale: float, warp: Warp, rng: np.random.Generator
) -> Crop:
    """A randomly warped crop that lies wholly inside the photo, as near to a point as possible.

    `scale` is in pixels of the crop per pixel of the photo; it is increased for small photos.
    """
    corners = warp.random_corners(edge / scale, rng)
    corners *= min(1.0, *(np.array(size) / np.ptp(corners, axis=0)))
    low = -corners.min(axis=0) - 0.5
    high = np.array(size) - 0.5 - corners.max(axis=0)
    corners += np.clip(point, low, np.maximum(low, high))
    return Crop(crop_from_corners(corners, edge), edge)


def crop_from_corners(corners: Array, edge: int) -> Array:
    """crop_from_photo of the crop with 4 x 2 corners (x, y) in pixels of the photo."""
    target = (_SQUARE + 1) * (edge / 2) - 0.5
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), target.astype(np.float32))
    return np.asarray(matrix, dtype=np.float64)
