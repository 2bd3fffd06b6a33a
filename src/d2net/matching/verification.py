"""Geometric verification: which matches of two photos agree with one motion of the camera."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.geometry import robust
from d2net.geometry.coordinates import Array
from d2net.geometry.epipolar import fundamental_from_essential, sampson_distance
from d2net.geometry.homography import transfer_error
from d2net.geometry.robust import Model, RobustOptions
from d2net.geometry.significance import epipolar_significance, homography_significance

MIN_THRESHOLD = 1.5
"""Smallest default threshold of a Sampson distance in pixels. Lens distortion and blur leave errors
of this size even at precise keypoints. (Poses from points known to 0.4 px are best from 1.5 px.)"""

SIGMAS = 3.64
"""Default threshold of a Sampson distance in standard deviations of a keypoint's position: the 0.99
quantile of MAGSAC++'s noise model (Barath et al., CVPR 2020): 5.5 px for a VGG, 1.8 for light."""

PRECISE_SHARE = 0.25
"""Where keypoints differ in uncertainty, this share of the matches, the most precise, sets the
threshold. They determine the model."""

_STILL, _BORDER = 2.0, 0.1
"""Matches that move by fewer pixels near the border prove nothing: they may be a time stamp, a logo
or one's own vehicle. Near is this share of the diagonal, or a quarter of the shorter side."""

HOMOGRAPHY_FACTOR = math.sqrt(2)
"""A transfer error contains the noise of both points of a pair, a Sampson distance that of one."""


def verify(
    a: Features,
    b: Features,
    matches: Matches,
    model: Model = "fundamental",
    *,
    threshold: float | None = None,
    intrinsics: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
) -> Matches:
    """Fit a model to matches and mark the inliers.

    Args:
        a: features of the first photo.
        b: features of the second photo.
        matches: pairs of rows of `a` and `b`. Give all that a matcher found: with inliers alone,
            the significance is too high.
        model: "fundamental" (any scene), "homography" (a plane, or a camera that only turns) or
            "essential" (any scene, known cameras).
        threshold: largest error of an inlier in pixels of the photos, see `RobustOptions`; None
            for `default_threshold`, which is larger for photos that were reduced for extraction.
        intrinsics: 3 x 3 camera matrices of both photos, pixel centres at integers; required by
            "essential" and refused by the other models.
        seed: seed of the random samples; the same seed gives identical results.

    Returns:
        The same matches with `inliers`, `model`, `matrix` (x_b = H x_a, x_b^T F x_a = 0, or
        x_b^T K_b^-T E K_a^-1 x_a = 0) and `significance`. If no model is found, `matrix` is None,
        no match is an inlier, and the significance is 0.

    Raises:
        InputError: an unknown name, a value out of range, or matches of other features.
    """
    if model not in get_args(Model):
        raise InputError(f"model must be one of {', '.join(get_args(Model))}, not {model!r}")
    if (0 if intrinsics is None else len(intrinsics)) != (2 if model == "essential" else 0):
        raise InputError(
            "the model 'essential' needs intrinsics, the camera matrices of both photos, and the "
            f"other models take none; model is {model!r} and intrinsics "
            f"{'are not given' if intrinsics is None else 'are given'}"
        )
    check_rows(matches, a, b)
    if threshold is None:
        threshold = default_threshold(a, b, matches, model)
    options = RobustOptions(threshold=threshold, seed=seed, progressive=True)
    points_a, points_b = (points.astype(np.float64) for points in matches.points(a, b))
    still = _still((points_a, points_b), (np.array(a.image_size), np.array(b.image_size)))
    best_first = matches.scores.argsort(descending=True, stable=True).cpu().numpy()
    best_first = best_first[~still[best_first]]
    inliers = np.zeros(len(matches), dtype=np.bool_)
    matrix, inliers[best_first] = robust.estimate(
        model, points_a[best_first], points_b[best_first], options, intrinsics
    )
    significance = 0.0
    if matrix is not None:
        moving = points_a[~still], points_b[~still], a.image_size, b.image_size
        if model == "homography":
            errors = transfer_error(matrix, points_a, points_b)
            significance = homography_significance(matrix, *moving, threshold=threshold)
        else:
            F, samples, solutions = matrix, 7, 3
            if intrinsics is not None:
                F = fundamental_from_essential(matrix, *map(np.asarray, intrinsics))
                samples, solutions = 5, 10
            errors = sampson_distance(F, points_a, points_b)
            significance = epipolar_significance(
                F, *moving, threshold=threshold, sample_size=samples, num_solutions=solutions
            )
        inliers[still] = errors[still] <= threshold
    return replace(
        matches,
        inliers=torch.from_numpy(inliers).to(matches.indices.device),
        model=model,
        matrix=matrix,
        significance=max(0.0, significance),
    )


def _still(points: tuple[Array, Array], sizes: tuple[Array, Array]) -> NDArray[np.bool_]:
    """N bool: matches near a border in both photos that stay in place, or slide along that border.

    Points are N x 2, sizes (width, height). In place means less than `_STILL` pixels of the first
    photo apart, measured from a corner, the middle of a side or the centre, unscaled or scaled by
    the ratio of the widths or heights; or at the same fraction of both. Matches at the edges of a
    film's black bars slide.
    """
    (a, b), (size_a, size_b) = points, sizes
    depths = [np.hstack([p, size - p]) for p, size in zip(points, sizes, strict=True)]
    limits = [min(_BORDER * np.linalg.norm(size), size.min() / 4) for size in sizes]
    near_a, near_b = (depth < limit for depth, limit in zip(depths, limits, strict=True))
    along = near_a & near_b & (np.abs(depths[0] - depths[1]) < _STILL)
    moved = [
        a - b * scale - np.array(anchor) / 2 * (size_a - size_b * scale)
        for anchor in np.ndindex(3, 3)
        for scale in {1.0, *(size_a / size_b)}
    ]
    moved.append(a - b * size_a / size_b)
    still = (np.abs(moved).max(axis=2) < _STILL).any(axis=0)
    return np.asarray(along.any(axis=1) | (near_a.any(axis=1) & near_b.any(axis=1) & still))


def default_threshold(a: Features, b: Features, matches: Matches, model: Model) -> float:
    """The threshold in pixels that follows from the uncertainty of the matched keypoints."""
    factor = HOMOGRAPHY_FACTOR if model == "homography" else 1.0
    if len(matches) == 0:
        return factor * MIN_THRESHOLD
    deviations = [
        float(features.uncertainty[rows.to(features.uncertainty.device)].quantile(PRECISE_SHARE))
        for features, rows in zip((a, b), matches.indices.unbind(1), strict=True)
    ]
    deviation = math.hypot(*deviations) / math.sqrt(2)
    return factor * max(MIN_THRESHOLD, SIGMAS * deviation)


def check_rows(matches: Matches, a: Features, b: Features) -> None:
    """Raise InputError if matches name rows that the features of the two photos do not have."""
    for features, rows, which in zip(
        (a, b), matches.indices.unbind(1), ("first", "second"), strict=True
    ):
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(features):
            raise InputError(
                f"the matches name rows {int(rows.min())} to {int(rows.max())} of the {which} "
                f"photo, which has {len(features)} keypoints; they belong to other features"
            )
