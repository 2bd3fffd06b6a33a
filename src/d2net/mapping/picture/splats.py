"""Points drawn as small discs into an image with depth, so that near ones cover far ones.

Each disc has a dark rim that lies a little behind it: on a surface the neighbours' discs cover the
rims, and where the surface ends they stay and outline it. Bright points are seen on white paper so.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from d2net.mapping.cloud import Array

_SUPERSAMPLING = 2
_RIM = 0.45  # brightness of a rim, as a share of its disc's
_NEAREST = 0.15  # of the distance to the target: what is nearer would cover everything
_SIZES = (0.6, 1.8)  # limits of a disc's radius over that of one at the target
_OPACITY, _HIDDEN_OPACITY, _FACE_OPACITY = 0.95, 0.3, 0.1


@dataclass(frozen=True)
class Viewer:
    """A pinhole camera without distortion, looking at a target.

    Attributes:
        view_from_world: 3 x 3 rotation; x right, y down, z away.
        target: 3, in the world; it is seen in the middle.
        distance: to the target.
        slope: half the width of the picture on the plane at distance 1.
        size: (width, height) of the picture in pixels.
    """

    view_from_world: Array
    target: Array
    distance: float
    slope: float
    size: tuple[int, int]

    def see(self, points: Array) -> tuple[Array, Array]:
        """Where points are seen.

        Args:
            points: ... x 3 in the world.

        Returns:
            ... x 2 in pixels (pixel centres at integers), and their depths over the distance.
        """
        seen = (points - self.target) @ self.view_from_world.T
        depth = seen[..., 2] + self.distance
        scale = self.size[0] / 2 / self.slope
        with np.errstate(divide="ignore", invalid="ignore"):
            places = scale * seen[..., :2] / depth[..., None]
        return places + (np.array(self.size) - 1) / 2, depth / self.distance


class Splats:
    """A picture that points and frustums are drawn into."""

    def __init__(self, viewer: Viewer, background: int = 255) -> None:
        self._viewer = viewer
        width, height = viewer.size
        self._shape = (height * _SUPERSAMPLING, width * _SUPERSAMPLING)
        self._image = np.full((*self._shape, 3), background, np.uint8)
        self._depth = np.full(self._shape, np.inf)

    def draw_points(self, points: Array, colours: NDArray[np.uint8], radii: Array) -> None:
        """Draw N x 3 points in N x 3 colours with N radii, in pixels for one at the target."""
        places, depth = self._viewer.see(points)
        height, width = self._viewer.size
        inside = (depth > _NEAREST) & (np.abs(places) < 2 * (height + width)).all(axis=1)
        places, depth, colours = places[inside], depth[inside], colours[inside]
        radii = _SUPERSAMPLING * radii[inside] * np.clip(1 / depth, *_SIZES)
        sizes = np.maximum(np.rint(2 * radii), 2).astype(np.int64)  # diameters in samples
        corners = np.rint((places + 0.5) * _SUPERSAMPLING - sizes[:, None] / 2).astype(np.int64)
        # Discs and rims in one order of depth; each sample keeps the first of those that cover it.
        best = np.full(self._shape[0] * self._shape[1], np.iinfo(np.int64).max)
        order = np.argsort(np.argsort(np.concatenate([depth, 1.01 * depth]), kind="stable"))
        for size in np.unique(sizes):
            rows = np.flatnonzero(sizes == size)
            for y, x, is_rim in _disc(int(size)):
                self._stamp(best, corners[rows] + (x, y), order[rows + is_rim * len(depth)])
        hit = np.flatnonzero(best < np.iinfo(np.int64).max)
        at = np.argsort(order)[best[hit]]
        is_rim, row = at >= len(depth), at % max(len(depth), 1)
        shade = np.where(is_rim, _RIM, 1.0)[:, None]
        self._image.reshape(-1, 3)[hit] = np.rint(colours[row] * shade).astype(np.uint8)
        self._depth.reshape(-1)[hit] = depth[row]

    def _stamp(
        self, best: NDArray[np.int64], places: NDArray[np.int64], order: NDArray[np.intp]
    ) -> None:
        """Keep at each of K x 2 samples (x, y) the smallest order."""
        x, y = places.T
        inside = (x >= 0) & (x < self._shape[1]) & (y >= 0) & (y < self._shape[0])
        np.minimum.at(best, y[inside] * self._shape[1] + x[inside], order[inside])

    def draw_frustums(self, shapes: Array, colour: tuple[int, int, int], width: float) -> None:
        """Draw M x 5 x 3 frustums (tip and four corners), fainter where points lie before them."""
        places, depth = self._viewer.see(shapes)
        for row in np.argsort(-depth[:, 0], kind="stable"):
            if depth[row].min() > _NEAREST and np.abs(places[row]).max() < 1e5:
                self._draw_frustum(places[row], float(depth[row].mean()), colour, width)

    def _draw_frustum(
        self, places: Array, depth: float, colour: tuple[int, int, int], width: float
    ) -> None:
        margin = round(4 * width) * _SUPERSAMPLING
        fixed = np.rint(((places + 0.5) * _SUPERSAMPLING - 0.5) * 16).astype(np.int32)
        low = np.maximum(fixed.min(axis=0) // 16 - margin, 0)
        high = np.minimum(fixed.max(axis=0) // 16 + margin, self._shape[::-1])
        if (low >= high).any():
            return
        box = (slice(low[1], high[1]), slice(low[0], high[0]))
        fixed -= (low * 16).astype(np.int32)
        tip, corners = fixed[0], fixed[1:]
        ink = np.zeros(tuple(high - low)[::-1], np.uint8)
        cv2.fillConvexPoly(ink, corners, round(255 * _FACE_OPACITY), cv2.LINE_AA, shift=4)
        lines = np.zeros_like(ink)
        thick = max(1, round(width * _SUPERSAMPLING))
        cv2.polylines(lines, [corners], True, 255, thick, cv2.LINE_AA, shift=4)
        for corner in corners:
            cv2.line(lines, tip.tolist(), corner.tolist(), 255, thick, cv2.LINE_AA, shift=4)
        visible = np.where(self._depth[box] < depth, _HIDDEN_OPACITY, _OPACITY)
        opacity = (np.maximum(ink, lines) / 255 * visible)[..., None]
        blended = opacity * np.array(colour) + (1 - opacity) * self._image[box]
        self._image[box] = np.rint(blended).astype(np.uint8)

    def finish(self) -> NDArray[np.uint8]:
        """H x W x 3 RGB."""
        image = cv2.resize(self._image, self._viewer.size, interpolation=cv2.INTER_AREA)
        return image.astype(np.uint8, copy=False)


def _disc(size: int) -> list[tuple[int, int, bool]]:
    """Samples (y, x) of a disc of so many samples across, and whether they are its rim."""
    axis = np.arange(size + 2) - (size + 1) / 2
    distance = np.hypot(axis[:, None], axis[None])
    rim = (distance <= size / 2 + 0.9) & (distance > size / 2)
    inner = distance <= size / 2
    return [(int(y) - 1, int(x) - 1, False) for y, x in np.argwhere(inner)] + [
        (int(y) - 1, int(x) - 1, True) for y, x in np.argwhere(rim)
    ]
