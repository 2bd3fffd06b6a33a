"""Alignment of a reconstruction with the truth by a similarity, and the errors that remain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pycolmap

from d2net.geometry.coordinates import Array

MAX_ERROR = 0.05
"""Largest position error of cameras that take part in the alignment, as a share of the cameras'
spread. One misplaced photo must not spoil the errors of the others."""


@dataclass(frozen=True)
class CameraErrors:
    """Errors of cameras by photo, after alignment with the truth by a similarity."""

    position: dict[str, float]  # distance from the true position, in units of the truth
    rotation: dict[str, float]  # angle to the true rotation, in degrees
    spread: float  # root mean square distance of the true cameras from their centroid


def camera_errors(
    estimated: dict[str, pycolmap.Rigid3d], true: dict[str, pycolmap.Rigid3d], seed: int = 0
) -> CameraErrors | None:
    """Errors of the cameras in both reconstructions, given as poses `cam_from_world` by name.

    The similarity is fitted to the camera centres that RANSAC finds to agree within `MAX_ERROR`.
    None if fewer than three cameras agree, or all are on one line.
    """
    names = sorted(estimated.keys() & true.keys())
    if len(names) < 3:
        return None
    mine, theirs = (
        np.array([poses[name].inverse().translation for name in names])
        for poses in (estimated, true)
    )
    spread = spread_of(np.array([pose.inverse().translation for pose in true.values()]))
    if spread == 0:
        return None
    true_from_mine = estimate_similarity(mine, theirs, MAX_ERROR * spread, seed)
    if true_from_mine is None:
        return None
    turn = np.asarray(true_from_mine.rotation.matrix(), dtype=np.float64)
    distances = _distances(true_from_mine, mine, theirs)
    return CameraErrors(
        {name: float(distance) for name, distance in zip(names, distances, strict=True)},
        {
            name: rotation_angle(
                np.asarray(estimated[name].rotation.matrix()) @ turn.T,
                np.asarray(true[name].rotation.matrix()),
            )
            for name in names
        },
        spread,
    )


def estimate_similarity(
    sources: Array, targets: Array, max_error: float, seed: int = 0
) -> pycolmap.Sim3d | None:
    """`targets_from_sources`: the least-squares similarity between points that RANSAC selects.

    Both are N x 3. Selected points agree within `max_error`, in units of the targets. None if fewer
    than three points agree, or all are on one line.
    """
    options = pycolmap.RANSACOptions()
    options.max_error = max_error
    options.random_seed = seed
    before, after = _off_origin(sources), _off_origin(targets)
    moved, expected = sources + before, targets + after
    # pycolmap's annotation is wrong: it returns a dictionary.
    found: Any = pycolmap.estimate_sim3d_robust(moved, expected, options)
    if found is None:
        return None
    agree = _distances(found["tgt_from_src"], moved, expected) <= max_error
    if np.count_nonzero(agree) < 3:
        return None
    similarity = pycolmap.estimate_sim3d(moved[agree], expected[agree])
    if similarity is None:
        return None
    shift = similarity * before - after
    return pycolmap.Sim3d(similarity.scale, similarity.rotation, shift)


def spread_of(centres: Array) -> float:
    """Root mean square distance of N x 3 points from their centroid."""
    return float(np.sqrt(((centres - centres.mean(axis=0)) ** 2).sum(axis=1).mean()))


def rotation_angle(a: Array, b: Array) -> float:
    """Angle in degrees of the rotation between two 3 x 3 rotations."""
    # From the chord |a - b| = 2 sqrt(2) sin(angle / 2), exact for small angles, too.
    return float(np.degrees(2 * np.arcsin(min(np.linalg.norm(a - b) / np.sqrt(8), 1.0))))


def _off_origin(points: Array) -> Array:
    """A shift of N x 3 points: COLMAP calls a plane of points through the origin degenerate."""
    mean = points.mean(axis=0)
    normal = np.linalg.svd(points - mean)[2][2]
    return np.asarray(normal * (1 + np.abs(points - mean).max()) - mean, dtype=np.float64)


def _distances(true_from_mine: pycolmap.Sim3d, mine: Array, theirs: Array) -> Array:
    moved = np.array([true_from_mine * point for point in mine])
    return np.asarray(np.linalg.norm(moved - theirs, axis=1), dtype=np.float64)
