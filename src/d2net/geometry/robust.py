"""Homography, fundamental and essential matrix from point pairs with outliers.

The estimators are those of OpenCV (MAGSAC++) and PoseLib (LO-RANSAC). They mark inliers and report
failure in different ways, so this module does both: a pair is an inlier if it is within the
threshold of the final matrix, and a matrix that its inliers do not determine is discarded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from d2net.errors import InputError, needs_package
from d2net.geometry.cameras import camera_matrix
from d2net.geometry.coordinates import Array
from d2net.geometry.epipolar import (
    essential_from_pose,
    fundamental_from_essential,
    sampson_distance,
)
from d2net.geometry.homography import transfer, transfer_error
from d2net.settings import Settings

Method: TypeAlias = Literal["magsac", "poselib"]
Model: TypeAlias = Literal["homography", "fundamental", "essential"]

MIN_PAIRS: dict[Model, int] = {"homography": 4, "fundamental": 8, "essential": 5}
"""Smallest number of pairs for each model. Seven points would do for a fundamental matrix, but they
always agree with one, so agreement would mean nothing."""

_CONFIDENCE = 0.9999  # COLMAP's default for two views


@dataclass(frozen=True, kw_only=True)
class RansacOptions(Settings):
    """Options that every estimator understands.

    Attributes:
        threshold: largest error of an inlier in pixels.
        max_iterations: largest number of random samples.
        seed: seed of the random samples; the same seed gives identical results.
    """

    threshold: float
    max_iterations: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < np.inf:
            raise InputError(f"threshold must be a positive number of pixels, not {self.threshold}")
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed must be in 0 .. 2^31 - 1, not {self.seed}")


@dataclass(frozen=True, kw_only=True)
class RobustOptions(RansacOptions):
    """Options of two-view estimation.

    Attributes:
        threshold: largest error of an inlier in pixels: the distance in photo b for a homography,
            the Sampson distance for the other models. MAGSAC++ gives no weight beyond it.
        method: "magsac" (OpenCV) or "poselib".
        progressive: draw samples from the first pairs at first (PROSAC; Chum and Matas, CVPR 2005),
            for pairs that are sorted best first. PROSAC finds models among few right pairs.
    """

    method: Method = "magsac"
    progressive: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method == "poselib":
            with needs_package("poselib is not installed: choose magsac, or install it", "poselib"):
                import poselib  # noqa: F401


def estimate(
    model: Model,
    points_a: ArrayLike,
    points_b: ArrayLike,
    options: RobustOptions,
    intrinsics: tuple[ArrayLike, ArrayLike] | None = None,
) -> tuple[Array | None, NDArray[np.bool_]]:
    """Robustly estimate the model of point pairs, N x 2 (x, y) in pixels of photos a and b.

    The model is "homography" (x_b = H x_a), "fundamental" (x_b^T F x_a = 0) or "essential"
    (x_b^T K_b^-T E K_a^-1 x_a = 0, for points without lens distortion). Only "essential" takes
    `intrinsics`, the 3 x 3 camera matrices K_a and K_b, pixel centres at integers. Points on one
    plane leave a fundamental matrix ambiguous, but every matrix that fits them excludes outliers.

    Returns:
        The 3 x 3 matrix and an N bool mask of inliers; None and no inliers if there are fewer pairs
        than `MIN_PAIRS` or the pairs do not determine the matrix.
    """
    a, b = (np.asarray(points, dtype=np.float64) for points in (points_a, points_b))
    if a.ndim != 2 or a.shape[1:] != (2,) or a.shape != b.shape:
        raise InputError(
            f"point pairs must be two arrays of the same shape (N, 2), not {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("point pairs must be finite numbers, but some are NaN or infinite")
    ideal: list[Array] = []
    if model == "essential" and intrinsics is not None:
        # The estimators get the points of two ideal cameras with the principal point at (0, 0).
        # Then they need not know about principal points, skew or pixel centres. The focal lengths
        # stay, so that thresholds are still in pixels.
        cameras = [camera_matrix(K) for K in intrinsics]
        ideal = [np.diag([*[(K[0, 0] + K[1, 1]) / 2] * 2, 1.0]) for K in cameras]
        a, b = (
            transfer(new @ np.linalg.inv(K), points)
            for points, K, new in zip((a, b), cameras, ideal, strict=True)
        )

    def errors(matrix: Array) -> Array:
        if model == "homography":
            return transfer_error(matrix, a, b)
        F = fundamental_from_essential(matrix, *ideal) if ideal else matrix
        return sampson_distance(F, a, b)

    failure = None, np.zeros(len(a), dtype=np.bool_)
    if len(a) < MIN_PAIRS[model]:
        return failure
    estimator = _magsac if options.method == "magsac" else _poselib
    found = estimator(model, a, b, ideal, options)
    if found is None or not np.isfinite(found).all():
        return failure
    # OpenCV may return several solutions stacked into one array.
    solutions = found.reshape(-1, 3, 3)
    masks = [errors(matrix) <= options.threshold for matrix in solutions]
    best = int(np.argmax([np.count_nonzero(mask) for mask in masks]))
    matrix, inliers = solutions[best], masks[best]
    distinct = len(np.unique(np.hstack([a, b])[inliers], axis=0))
    if distinct < MIN_PAIRS[model] or any(collinear(x[inliers], options.threshold) for x in (a, b)):
        return failure
    # In the usual scale: last entry 1 for homographies, else unit Frobenius norm.
    matrix = matrix / np.abs(matrix).max()  # extreme entries would overflow when squared
    norm = np.linalg.norm(matrix)
    if model == "homography" and abs(matrix[2, 2]) > 1e-12 * norm:
        norm = matrix[2, 2]
    return np.asarray(matrix / norm, dtype=np.float64), inliers


def collinear(points: Array, tolerance: float) -> bool:
    """Whether all N x 2 points lie within the tolerance of one line."""
    centred = points - points.mean(axis=0)
    _, _, directions = np.linalg.svd(centred, full_matrices=False)
    return bool(np.abs(centred @ directions[-1]).max() <= tolerance)


def _magsac(
    model: Model, a: Array, b: Array, cameras: list[Array], options: RobustOptions
) -> Array | None:
    import cv2

    params = cv2.UsacParams()
    params.threshold = options.threshold
    params.confidence = _CONFIDENCE
    params.maxIterations = options.max_iterations
    params.randomGeneratorState = options.seed
    # These are the settings of OpenCV's flag USAC_MAGSAC. The flag itself would allow no seed.
    params.sampler = cv2.SAMPLING_PROSAC if options.progressive else cv2.SAMPLING_UNIFORM
    params.score = cv2.SCORE_METHOD_MAGSAC
    params.loMethod = cv2.LOCAL_OPTIM_SIGMA
    params.loSampleSize = 75 if model == "homography" else 50
    params.loIterations = 15 if model == "homography" else 10
    try:
        if model == "homography":
            matrix, _ = cv2.findHomography(a, b, params)
        elif model == "fundamental":
            matrix, _ = cv2.findFundamentalMat(a, b, params)
        else:
            Ka, Kb = cameras
            matrix, _ = cv2.findEssentialMat(a, b, Ka, Kb, None, None, params)
    except cv2.error:  # degenerate points can fail a check inside OpenCV
        return None
    if matrix is None:
        return None
    found = np.asarray(matrix, dtype=np.float64)
    return _refined(found, a, b, options.threshold) if model == "homography" else found


def _refined(matrix: Array, a: Array, b: Array, threshold: float) -> Array:
    """The homography that fits the pairs near it best, by least squares with a Cauchy loss.

    OpenCV's MAGSAC++ alone is half as exact on photos (docs/experiments.md).
    """
    from scipy.optimize import least_squares

    near = transfer_error(matrix, a, b) <= 3 * threshold

    def residuals(entries: Array) -> Array:
        return (transfer(entries.reshape(3, 3), a[near]) - b[near]).ravel()

    start = matrix.ravel() / np.linalg.norm(matrix)
    if np.count_nonzero(near) < MIN_PAIRS["homography"] or not np.isfinite(start).all():
        return matrix
    scale = 0.3 * threshold
    best = least_squares(residuals, start, x_scale="jac", loss="cauchy", f_scale=scale, max_nfev=20)
    return np.asarray(best.x.reshape(3, 3), dtype=np.float64)


def _poselib(
    model: Model, a: Array, b: Array, cameras: list[Array], options: RobustOptions
) -> Array | None:
    import poselib

    ransac = {
        "max_reproj_error": options.threshold,
        "max_epipolar_error": options.threshold,
        "success_prob": _CONFIDENCE,
        "max_iterations": options.max_iterations,
        "seed": options.seed,
        "progressive_sampling": options.progressive,
    }
    if model != "essential":
        matrix, _ = getattr(poselib, f"estimate_{model}")(a, b, ransac, {})
        return np.asarray(matrix, dtype=np.float64)
    pinholes = [
        {"model": "SIMPLE_PINHOLE", "width": 0, "height": 0, "params": [K[0, 0], 0.0, 0.0]}
        for K in cameras
    ]
    pose, _ = poselib.estimate_relative_pose(a, b, *pinholes, ransac, {})
    return essential_from_pose(pose.R, pose.t)
