"""Where any point of a crop lies in the other one, from the correspondences around it.

One rule serves dense warps and sparse tracks alike: the affine map that fits the nearest
correspondences, if it fits them all.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from d2net.extraction.corners import BORDER, detect_corners, to_grey
from d2net.training.correspondences import Pairs
from d2net.training.views import Array, Crop

MOST_CORNERS = 200
"""Corners of a crop that are looked for in the other: with both crops', keypoints enough."""

_NEIGHBOURS = 12  # correspondences that an affine map is fitted to: more than two rows of cells
_FEWEST = 4
_REACH = 24.0  # px, furthest of them
_MISFIT = 2.0  # px


def transferred(points: NDArray[Any], known_a: NDArray[Any], known_b: NDArray[Any]) -> Array:
    """Where points of the first crop lie in the second, from correspondences around them.

    Args:
        points: N x 2 (x, y) in the first crop.
        known_a: K x 2, correspondences in the first crop.
        known_b: K x 2, their partners in the second.

    Returns:
        N x 2 float64; NaN where it cannot be told.
    """
    result = np.full((len(points), 2), np.nan)
    if len(points) == 0 or len(known_a) < _FEWEST:
        return result
    count = min(_NEIGHBOURS, len(known_a))
    distance, index = cKDTree(known_a).query(points, k=count, distance_upper_bound=_REACH)
    near = np.isfinite(distance)
    index = np.where(near, index, 0)
    # An affine map around each point by weighted least squares; absent neighbours weigh nothing.
    offsets = (known_a[index] - points[:, None]).astype(np.float64)
    design = np.concatenate([np.ones((*offsets.shape[:2], 1)), offsets / _REACH], axis=2)
    design = design * near[..., None]
    targets = known_b[index].astype(np.float64) * near[..., None]
    normal = design.transpose(0, 2, 1) @ design
    # Correspondences in one line leave the map open.
    solvable = (near.sum(1) >= _FEWEST) & (np.linalg.eigvalsh(normal)[:, 0] > 1e-2)
    normal[~solvable] = np.eye(3)
    affine = np.linalg.solve(normal, design.transpose(0, 2, 1) @ targets)
    misfit = np.linalg.norm(design @ affine - targets, axis=2).max(1)
    good = solvable & (misfit <= _MISFIT)
    result[good] = affine[good, 0]
    return result


def at_corners(crops: tuple[Crop, Crop], known: Pairs) -> Pairs:
    """The corners of either crop, and where they lie in the other.

    Args:
        crops: both, H x W x 3 RGB.
        known: correspondences between them.

    Returns:
        K x 2 and K x 2, first the corners of a, then those of b; of each at most `MOST_CORNERS`,
        the strongest.
    """
    a, b = known
    corners_a, corners_b = (_corners(crop) for crop in crops)
    there, back = transferred(corners_a, a, b), transferred(corners_b, b, a)
    in_a, in_b = np.concatenate([corners_a, back]), np.concatenate([there, corners_b])
    seen = _inside(in_a, crops[0]) & _inside(in_b, crops[1])
    return in_a[seen].astype(np.float32), in_b[seen].astype(np.float32)


def _corners(crop: Crop) -> Array:
    """The strongest corners of a crop, N x 2 (x, y)."""
    found = detect_corners(to_grey(torch.from_numpy(crop)))
    points = found.positions.numpy()
    strengths = np.where(_inside(points, crop), found.scores.numpy(), -1)
    order = np.argsort(-strengths, kind="stable")[:MOST_CORNERS]
    return np.asarray(points[order[strengths[order] >= 0]], np.float64)


def _inside(points: Array, crop: Crop) -> NDArray[np.bool_]:
    """Which points lie in a crop, away from its frame."""
    limit = (crop.shape[1] - 1 - BORDER, crop.shape[0] - 1 - BORDER)
    with np.errstate(invalid="ignore"):
        return np.asarray(((points >= BORDER) & (points <= limit)).all(axis=1), np.bool_)
