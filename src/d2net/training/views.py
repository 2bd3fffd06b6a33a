"""Where a crop lies in its photo: squares cut from photos, turned, scaled and seen askew."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.geometry import coordinates
from d2net.geometry.coordinates import GridMap, Size
from d2net.geometry.homography import transfer

Array = NDArray[np.float64]

Crop = NDArray[np.uint8]
"""H x W x 3 RGB."""


@dataclass(frozen=True)
class Geometry:
    """How far views may depart from the photo as it was taken.

    Attributes:
        rotation: largest turn, in degrees either way.
        scale: largest ratio of scales between two views, at least 1.
        perspective: largest shift of a corner of the crop, as a share of half its edge, below 0.5.
    """

    rotation: float = 0.0
    scale: float = 1.0
    perspective: float = 0.0

    def __post_init__(self) -> None:
        """Refuse what makes no view.

        Raises:
            InputError: a value out of its range.
        """
        if not 0 <= self.rotation <= 180:
            raise InputError(f"rotation is 0 to 180 degrees, not {self.rotation}")
        if not 1 <= self.scale < np.inf:
            raise InputError(f"scale is a ratio of at least 1, not {self.scale}")
        if not 0 <= self.perspective < 0.5:  # a corner beyond the diagonal would fold the view
            raise InputError(f"perspective is below 0.5 of half the edge, not {self.perspective}")

    @property
    def is_plain(self) -> bool:
        """Whether views are cut from the photo as it was taken."""
        return self == Geometry()

    def corners(self, edge: float, rng: np.random.Generator) -> Array:
        """Corners of a square of the photo that a view shows, 4 x 2 around (0, 0).

        Args:
            edge: of the square, in pixels of the photo.
            rng: draws the turn and the corners' shifts.
        """
        shifts = rng.uniform(-self.perspective, self.perspective, (4, 2))
        angle = np.radians(rng.uniform(-self.rotation, self.rotation))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        return np.asarray((_UNIT_SQUARE + shifts) @ turn.T * (edge / 2), np.float64)

    def ratio(self, rng: np.random.Generator) -> float:
        """A ratio of scales, as likely as its inverse."""
        return float(np.exp(rng.uniform(-np.log(self.scale), np.log(self.scale))))


_UNIT_SQUARE = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])


@dataclass(frozen=True, eq=False)
class View:
    """A square crop of a photo.

    Attributes:
        crop_from_photo: 3 x 3 homography, pixel centres at integers in both.
        edge: of the crop, in pixels.
    """

    crop_from_photo: Array
    edge: int

    def locate(self, points: Array) -> Array:
        """N x 2 points of the photo in pixels of the crop."""
        return transfer(self.crop_from_photo, points)

    def in_photo(self, points: Array) -> Array:
        """N x 2 points of the crop in pixels of the photo."""
        return transfer(np.asarray(np.linalg.inv(self.crop_from_photo), np.float64), points)

    def contains(self, points: Array) -> NDArray[np.bool_]:
        """Which of N x 2 points of the crop lie in it, so that it can be sampled there."""
        inside = (points >= 0) & (points <= self.edge - 1)
        return np.asarray(inside.all(axis=1), np.bool_)

    def cut(self, photo: Crop) -> Crop:
        """The crop itself, H x W x 3; black where it lies beyond the photo."""
        offset = _integer_offset(self.crop_from_photo)
        if offset is not None:
            left, top = offset
            height, width = photo.shape[:2]
            if 0 <= left <= width - self.edge and 0 <= top <= height - self.edge:
                return np.array(photo[top : top + self.edge, left : left + self.edge])
        return self._resampled(photo)

    def _resampled(self, photo: Crop) -> Crop:
        matrix, centre = self.crop_from_photo, np.full((1, 2), (self.edge - 1) / 2)
        scale = local_scale(matrix, self.in_photo(centre)[0])
        if scale < _ANTI_ALIAS_BELOW:
            height, width = photo.shape[:2]
            small = max(1, round(width * scale)), max(1, round(height * scale))
            matrix = matrix @ as_matrix(coordinates.resize(small, (width, height)))
            photo = np.asarray(cv2.resize(photo, small, interpolation=cv2.INTER_AREA), np.uint8)
        size = self.edge, self.edge
        return np.asarray(
            cv2.warpPerspective(photo, matrix, size, flags=cv2.INTER_LINEAR), dtype=np.uint8
        )


_ANTI_ALIAS_BELOW = 0.75
"""Scale below which bilinear sampling alone would skip pixels."""


def as_matrix(grid: GridMap) -> Array:
    """3 x 3 matrix of a change of grid."""
    return np.array(
        [[grid.x.scale, 0, grid.x.shift], [0, grid.y.scale, grid.y.shift], [0, 0, 1]], np.float64
    )


def local_scale(matrix: Array, point: Array) -> float:
    """How much longer a homography makes short lines at a point (x, y), over all directions."""
    x, y = point
    w = matrix[2] @ (x, y, 1.0)
    return float(np.sqrt(abs(np.linalg.det(matrix)) / abs(w) ** 3))


def widest_scale(size: Size, crop: int) -> float:
    """Scale at which a crop shows the whole of the photo's shorter side."""
    return crop / min(size)


def view_around(point: Array, size: Size, crop: int) -> View:
    """A crop with a point in its middle as the 2019 release cuts it: whole pixels, no resampling.

    Near the photo's border the crop moves inward. A photo smaller than the crop is enlarged.

    Args:
        point: (x, y) in pixels of the photo.
        size: (width, height) of the photo.
        crop: edge of the crop.
    """
    scale = max(1.0, widest_scale(size, crop))
    if scale > 1:
        big = max(crop, round(size[0] * scale)), max(crop, round(size[1] * scale))
        enlarged = as_matrix(coordinates.resize(size, big))
        shifted = view_around(transfer(enlarged, point[None])[0], big, crop)
        return View(shifted.crop_from_photo @ enlarged, crop)
    left, top = (
        min(max(round(centre) - crop // 2, 0), edge - crop)
        for centre, edge in zip(point, size, strict=True)
    )
    return View(as_matrix(coordinates.crop(left, top)), crop)


def random_view(
    point: Array,
    size: Size,
    crop: int,
    scale: float,
    geometry: Geometry,
    rng: np.random.Generator,
) -> View:
    """A view of a photo with a point near its middle, wholly inside the photo.

    Args:
        point: (x, y) in pixels of the photo; the view moves away from it as far as it must to stay
            inside the photo.
        size: (width, height) of the photo.
        crop: edge of the crop.
        scale: pixels of the crop in one of the photo; made larger where the photo is too small.
        geometry: draws the turn and the corners.
        rng: for `geometry`.
    """
    corners = geometry.corners(crop / scale, rng)
    extent = np.ptp(corners, axis=0)
    corners *= min(1.0, *(np.array(size) / extent))
    low = -corners.min(axis=0) - 0.5
    high = np.array(size) - 0.5 - corners.max(axis=0)
    corners += np.clip(point, low, np.maximum(low, high))
    whole = (_UNIT_SQUARE + 1) * (crop / 2) - 0.5
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), whole.astype(np.float32))
    return View(np.asarray(matrix, dtype=np.float64), crop)


def random_point(size: Size, rng: np.random.Generator) -> Array:
    """Any point of a photo of (width, height), (x, y)."""
    return np.asarray(rng.uniform((-0.5, -0.5), np.array(size) - 0.5), dtype=np.float64)


def _integer_offset(matrix: Array) -> tuple[int, int] | None:
    """(left, top) if the matrix is a shift by whole pixels."""
    left, top = -matrix[:2, 2]
    shift = np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]])
    if np.array_equal(matrix, shift) and float(left).is_integer() and float(top).is_integer():
        return int(left), int(top)
    return None
