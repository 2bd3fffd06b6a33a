"""Homography, fundamental and essential matrix from point pairs with outliers.

The estimators are those of OpenCV (MAGSAC++), PoseLib (LO-RANSAC) and COLMAP (LO-RANSAC). They
mark inliers and report failure in different ways, so this module does both in the same way for all
of them: a pair is an inlier if it is within the threshold of the final matrix, and a matrix that
its inliers do not determine is discarded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from d2net.errors import InputError, MissingPackageError
from d2net.geometry.epipolar import (
    essential_from_pose,
    fundamental_from_essential,
    sampson_distance,
)
from d2net.geometry.homography import transfer, transfer_error
from d2net.geometry.ransac import RansacOptions, collinear

Array = NDArray[np.float64]
Method: TypeAlias = Literal["magsac", "poselib", "pycolmap"]
Model: TypeAlias = Literal["homography", "fundamental", "essential"]
Estimate: TypeAlias = tuple[Array | None, NDArray[np.bool_]]

MIN_PAIRS: dict[Model, int] = {"homography": 4, "fundamental": 8, "essential": 5}
"""Smallest number of pairs for each model. Seven points would do for a fundamental matrix, but they
always agree with one, so agreement would mean nothing."""


@dataclass(frozen=True, kw_only=True)
class RobustOptions(RansacOptions):
    """Options of two-view estimation.

    Attributes:
        threshold: largest error of an inlier in pixels: the distance in photo b for a homography,
            the Sampson distance for the other models. MAGSAC++ gives no weight beyond it.
        method: "magsac" (OpenCV), "poselib" or "pycolmap".
    """

    method: Method = "magsac"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.method not in _ESTIMATORS:
            raise InputError(f"method must be one of {', '.join(_ESTIMATORS)}, not {self.method!r}")


def homography(points_a: ArrayLike, points_b: ArrayLike, options: RobustOptions) -> Estimate:
    """Robustly estimate the homography that maps points of photo a to photo b.

    Args:
        points_a: N x 2 (x, y) in pixels of photo a.
        points_b: N x 2 (x, y), the matched points in photo b.
        options: see `RobustOptions`.

    Returns:
        The 3 x 3 matrix `b_from_a` and an N bool mask of inliers; None and no inliers if there are
        fewer than 4 pairs or the pairs do not determine the matrix.

    Raises:
        InputError: the points have another shape or are not finite.
        MissingPackageError: the method needs a package that is not installed.
    """
    a, b = _checked(points_a, points_b)
    return _estimate("homography", a, b, options, lambda H: transfer_error(H, a, b))


def fundamental(points_a: ArrayLike, points_b: ArrayLike, options: RobustOptions) -> Estimate:
    """Robustly estimate F with x_b^T F x_a = 0; arguments and results as for `homography`.

    It takes at least 8 pairs. Points on one plane leave F ambiguous, but every F that fits them
    still separates them from outliers.
    """
    a, b = _checked(points_a, points_b)
    return _estimate("fundamental", a, b, options, lambda F: sampson_distance(F, a, b))


def essential(
    points_a: ArrayLike,
    points_b: ArrayLike,
    intrinsics_a: ArrayLike,
    intrinsics_b: ArrayLike,
    options: RobustOptions,
) -> Estimate:
    """Robustly estimate E with x_b^T K_b^-T E K_a^-1 x_a = 0; otherwise as for `homography`.

    It takes at least 5 pairs. Lens distortion must have been removed from the points.

    Args:
        points_a: N x 2 (x, y) in pixels of photo a.
        points_b: N x 2 (x, y), the matched points in photo b.
        intrinsics_a: 3 x 3 camera matrix K_a in the same pixels (centres at integers).
        intrinsics_b: 3 x 3 camera matrix K_b, likewise.
        options: see `RobustOptions`.
    """
    a, b = _checked(points_a, points_b)
    Ka, Kb = _checked_intrinsics(intrinsics_a), _checked_intrinsics(intrinsics_b)
    # Every estimator gets the points of two ideal cameras with the principal point at (0, 0). Then
    # none needs to know about principal points, skew or pixel centres. The focal lengths stay, so
    # that thresholds are still in pixels.
    focal_lengths = tuple(float(K[0, 0] + K[1, 1]) / 2 for K in (Ka, Kb))
    ideal_a, ideal_b = (
        transfer(np.diag([focal, focal, 1.0]) @ np.linalg.inv(K), points)
        for points, K, focal in zip((a, b), (Ka, Kb), focal_lengths, strict=True)
    )
    return _estimate(
        "essential",
        ideal_a,
        ideal_b,
        options,
        lambda E: sampson_distance(fundamental_from_essential(E, Ka, Kb), a, b),
        focal_lengths,
    )


def _checked(points_a: ArrayLike, points_b: ArrayLike) -> tuple[Array, Array]:
    a, b = (np.asarray(points, dtype=np.float64) for points in (points_a, points_b))
    if a.ndim != 2 or a.shape[1:] != (2,) or a.shape != b.shape:
        raise InputError(
            f"point pairs must be two arrays of the same shape (N, 2), not {a.shape} and {b.shape}"
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise InputError("point pairs must be finite numbers, but some are NaN or infinite")
    return a, b


def _checked_intrinsics(intrinsics: ArrayLike) -> Array:
    K = np.asarray(intrinsics, dtype=np.float64)
    if (
        K.shape != (3, 3)
        or not np.isfinite(K).all()
        or not (K[0, 0] > 0 and K[1, 1] > 0)
        or not np.array_equal(K[[1, 2, 2, 2], [0, 0, 1, 2]], [0, 0, 0, 1])
    ):
        raise InputError(
            "intrinsics must be a camera matrix [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with "
            f"positive focal lengths, not {K.tolist()}"
        )
    return K


def _estimate(
    model: Model,
    a: Array,
    b: Array,
    options: RobustOptions,
    error: Callable[[Array], Array],
    focal_lengths: tuple[float, ...] = (),
) -> Estimate:
    """Estimate a model; `focal_lengths` of both ideal cameras are for the essential matrix only."""
    failure: Estimate = None, np.zeros(len(a), dtype=np.bool_)
    if len(a) < MIN_PAIRS[model]:
        return failure
    estimate = _ESTIMATORS[options.method](model, a, b, focal_lengths, options)
    if estimate is None or not np.isfinite(estimate).all():
        return failure
    # OpenCV may return several solutions stacked into one array.
    solutions = estimate.reshape(-1, 3, 3)
    masks = [error(matrix) <= options.threshold for matrix in solutions]
    best = int(np.argmax([np.count_nonzero(mask) for mask in masks]))
    matrix, inliers = solutions[best], masks[best]
    a, b = a[inliers], b[inliers]
    distinct = len(np.unique(np.hstack([a, b]), axis=0))
    if distinct < MIN_PAIRS[model] or any(collinear(x, options.threshold) for x in (a, b)):
        return failure
    # In the usual scale: last entry 1 for homographies, else unit Frobenius norm.
    matrix = matrix / np.abs(matrix).max()  # extreme entries would overflow when squared
    norm = np.linalg.norm(matrix)
    if model == "homography" and abs(matrix[2, 2]) > 1e-12 * norm:
        norm = matrix[2, 2]
    return np.asarray(matrix / norm, dtype=np.float64), inliers


def _magsac(
    model: Model, a: Array, b: Array, focal_lengths: tuple[float, ...], options: RobustOptions
) -> Array | None:
    import cv2

    params = cv2.UsacParams()
    params.threshold = options.threshold
    params.confidence = options.confidence
    params.maxIterations = options.max_iterations
    params.randomGeneratorState = options.seed
    # These are the settings of OpenCV's flag USAC_MAGSAC. The flag itself would allow no seed.
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
            Ka, Kb = (np.diag([f, f, 1.0]) for f in focal_lengths)
            matrix, _ = cv2.findEssentialMat(a, b, Ka, Kb, None, None, params)
    except cv2.error:  # degenerate points can fail a check inside OpenCV
        return None
    return None if matrix is None else np.asarray(matrix, dtype=np.float64)


def _poselib(
    model: Model, a: Array, b: Array, focal_lengths: tuple[float, ...], options: RobustOptions
) -> Array | None:
    try:
        import poselib
    except ImportError as error:
        raise MissingPackageError(
            'method "poselib" needs the package poselib: pip install "d2net[poselib]", or choose '
            "pycolmap or magsac"
        ) from error

    ransac = {
        "max_reproj_error": options.threshold,
        "max_epipolar_error": options.threshold,
        "success_prob": options.confidence,
        "max_iterations": options.max_iterations,
        "seed": options.seed,
    }
    if model == "homography":
        matrix, _ = poselib.estimate_homography(a, b, ransac, {})
    elif model == "fundamental":
        matrix, _ = poselib.estimate_fundamental(a, b, ransac, {})
    else:
        cameras = [
            {"model": "SIMPLE_PINHOLE", "width": 0, "height": 0, "params": [focal, 0.0, 0.0]}
            for focal in focal_lengths
        ]
        pose, _ = poselib.estimate_relative_pose(a, b, *cameras, ransac, {})
        matrix = essential_from_pose(pose.R, pose.t)
    return np.asarray(matrix, dtype=np.float64)


def _pycolmap(
    model: Model, a: Array, b: Array, focal_lengths: tuple[float, ...], options: RobustOptions
) -> Array | None:
    import pycolmap

    ransac = pycolmap.RANSACOptions(
        max_error=options.threshold,
        confidence=options.confidence,
        min_num_trials=min(1000, options.max_iterations),
        max_num_trials=options.max_iterations,
        random_seed=options.seed,
    )
    result: dict[str, Any] | None
    if model == "homography":
        result, key = pycolmap.estimate_homography_matrix(a, b, ransac), "H"
    elif model == "fundamental":
        result, key = pycolmap.estimate_fundamental_matrix(a, b, ransac), "F"
    else:
        camera_a, camera_b = (
            pycolmap.Camera(model="SIMPLE_PINHOLE", width=1, height=1, params=[focal, 0.0, 0.0])
            for focal in focal_lengths
        )
        result = pycolmap.estimate_essential_matrix(a, b, camera_a, camera_b, ransac)
        key = "E"
    return None if result is None else np.asarray(result[key], dtype=np.float64)


_ESTIMATORS: dict[Method, Callable[..., Array | None]] = {
    "magsac": _magsac,
    "poselib": _poselib,
    "pycolmap": _pycolmap,
}
