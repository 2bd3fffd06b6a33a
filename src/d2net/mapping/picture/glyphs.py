"""How large points and cameras are drawn, in the world's unit, and the shapes of cameras."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from d2net.mapping.cloud import Array, Cloud

_ISOLATED = 6  # times the median gap between points; points so far apart are mostly wrong
_SMALLEST, _LARGEST = 0.002, 0.0085  # radius of a point, over half the picture's size
_LENGTH = 0.12  # of a camera, over half the picture's size
_MANY = 60  # cameras, from which on they are drawn smaller
_SOME = 200  # cameras are enough for the median distance to the next


def point_radii(cloud: Cloud, half_width: float) -> Array:
    """N radii: surfaces close where points are dense enough, and isolated points are small.

    Args:
        cloud: the points.
        half_width: half the width of what is seen, in the world's unit.
    """
    number, gaps = len(cloud.points), cloud.gaps
    if not len(gaps):
        return np.full(number, _LARGEST * half_width)
    median = float(np.median(gaps))
    radius = max(0.5 * median, 0.38 * half_width / number**0.5)
    radius = float(np.clip(radius, _SMALLEST * half_width, _LARGEST * half_width))
    return np.where(gaps > _ISOLATED * median, 0.5 * radius, radius)


def frustums(cloud: Cloud, half_width: float) -> Array:
    """M x 5 x 3 in the world: the tip of each camera, and the corners of its photo in order."""
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    length = _frustum_length(cloud.centres, half_width)
    shapes = np.zeros((len(cloud.views), 5, 3))
    for shape, view in zip(shapes, cloud.views, strict=True):
        corners = np.concatenate([signs * view.slope, np.ones((4, 1))], axis=1)
        # Photos of long lenses would be spikes, so all get nearly the same size instead.
        corners *= length / max(1.2 * float(np.linalg.norm(view.slope)), 0.6)
        shape[:] = view.centre
        shape[1:] += corners @ view.world_from_cam.T
    return shapes


def _frustum_length(centres: Array, half_width: float) -> float:
    """Small beside the scene and beside the way from one camera to the next."""
    longest: float = _LENGTH * half_width / (1 + len(centres) / _MANY) ** 0.5
    if len(centres) < 2:
        return longest
    some = centres[:: -(-len(centres) // _SOME)]
    distances = np.asarray(cKDTree(centres).query(some, 2)[0])
    return min(max(0.8 * float(np.median(distances[:, 1])), 0.4 * longest), longest)
