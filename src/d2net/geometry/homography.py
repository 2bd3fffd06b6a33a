"""Points mapped by a homography."""

from __future__ import annotations

import numpy as np

from d2net.geometry.coordinates import Array


def transfer(b_from_a: Array, points: Array) -> Array:
    """Map N x 2 points by a 3 x 3 homography; not finite where they are mapped to infinity."""
    mapped = points @ b_from_a[:, :2].T + b_from_a[:, 2]
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(mapped[:, :2] / mapped[:, 2:], dtype=np.float64)


def transfer_error(b_from_a: Array, points_a: Array, points_b: Array) -> Array:
    """Distances in pixels of photo b between mapped N x 2 points and their matches."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = transfer(b_from_a, points_a) - points_b
        return np.asarray(np.hypot(difference[:, 0], difference[:, 1]), dtype=np.float64)
