"""Absolute pose: where a camera is, from points of its photo whose 3D positions are known.

The estimator is COLMAP's: LO-RANSAC over P3P (P4Pf if the focal length is unknown), followed by a
refinement with a robust loss. Three things are added: inliers are all points within the threshold
of the final pose; a pose that its inliers do not determine is discarded; and the covariance is
scaled by the noise of the inliers.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import pycolmap
from numpy.typing import ArrayLike, NDArray

from d2net.errors import InputError
from d2net.geometry.cameras import possible_focal_length, project, quiet_colmap
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS, Array
from d2net.geometry.robust import RansacOptions, collinear
from d2net.geometry.significance import pose_significance

MIN_POINTS = 4
"""Smallest number of points for a pose; one more if the focal length is estimated too. Three (four)
would do, but they always agree with a pose, so agreement would mean nothing."""

_CONFIDENCE = 0.99999  # COLMAP's default


@dataclass(frozen=True, kw_only=True)
class AbsolutePoseOptions(RansacOptions):
    """Options of pose estimation; the defaults are COLMAP's.

    With `estimate_focal_length` only the camera model, the principal point and the distortion of
    the given camera are used.
    """

    threshold: float = 12.0
    estimate_focal_length: bool = False


@dataclass(frozen=True, eq=False)
class AbsolutePose:
    """The pose of a camera in the world.

    Attributes:
        cam_from_world: COLMAP's rigid transform.
        camera: the given camera, with the estimated focal length if that was asked for.
        inliers: N bool, the points within the threshold of the pose.
        covariance: 6 x 6, of a rotation about the camera's axes (as a vector in radians) and of the
            camera's centre in the world. It follows from the scatter of the inliers, so it does not
            include errors that they share, such as those of the intrinsics.
        significance: minus log10 of the probability that accidental correspondences agree with a
            pose equally well, at least 0; see `geometry.significance`.
    """

    cam_from_world: pycolmap.Rigid3d
    camera: pycolmap.Camera
    inliers: NDArray[np.bool_]
    covariance: Array
    significance: float

    @property
    def centre(self) -> Array:
        """The camera's centre in the world."""
        return np.asarray(self.cam_from_world.inverse().translation, dtype=np.float64)

    @property
    def rotation_deviation(self) -> float:
        """Standard deviation of the rotation in degrees."""
        return float(np.degrees(np.sqrt(np.trace(self.covariance[:3, :3]))))

    @property
    def position_deviation(self) -> float:
        """Standard deviation of the camera's centre in units of the world."""
        return float(np.sqrt(np.trace(self.covariance[3:, 3:])))


def absolute_pose(
    points2D: ArrayLike,
    points3D: ArrayLike,
    camera: pycolmap.Camera,
    options: AbsolutePoseOptions | None = None,
) -> AbsolutePose | None:
    """Robustly estimate the pose of a camera from 2D-3D correspondences.

    They are N x 2 pixels, the centre of the top-left pixel at (0, 0), and N x 3 points in the
    world. A point of the photo may occur several times with different 3D points; at most one of
    them is right. The camera may have any lens model, and is not changed.

    The pose is None if there are too few points (see `MIN_POINTS`), they lie on a line, no pose
    agrees with them, or the estimated focal length is impossible (see `possible_focal_length`).
    """
    options = options or AbsolutePoseOptions()
    x, X = (np.array(points, dtype=np.float64) for points in (points2D, points3D))
    if x.ndim != 2 or X.ndim != 2 or x.shape[1] != 2 or X.shape != (len(x), 3):
        raise InputError(
            f"points2D and points3D must have shapes (N, 2) and (N, 3), not {x.shape} and {X.shape}"
        )
    if not (np.isfinite(x).all() and np.isfinite(X).all()):
        raise InputError("points must be finite numbers, but some are NaN or infinite")
    min_points = MIN_POINTS + options.estimate_focal_length
    if len(x) < min_points:
        return None
    camera = deepcopy(camera)  # COLMAP writes the focal length into it
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.estimate_focal_length = options.estimate_focal_length
    estimation.ransac.max_error = options.threshold
    estimation.ransac.confidence = _CONFIDENCE
    estimation.ransac.min_num_trials = min(100, options.max_iterations)
    estimation.ransac.max_num_trials = options.max_iterations
    estimation.ransac.min_inlier_ratio = 0.0  # a larger one would end the search too early
    estimation.ransac.random_seed = options.seed
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    refinement.refine_focal_length = options.estimate_focal_length
    # Residuals beyond this scale get less weight. COLMAP's 1 px is made for SIFT and would waste
    # points of features with errors of a few pixels.
    refinement.loss_function_scale = options.threshold / 2
    with quiet_colmap():  # it logs a warning if the points do not determine the pose
        estimate = pycolmap.estimate_and_refine_absolute_pose(
            COLMAP_FROM_PIXELS(x), X, camera, estimation, refinement, return_covariance=True
        )
    if estimate is None:
        return None
    if options.estimate_focal_length and not possible_focal_length(camera):
        return None
    cam_from_world = estimate["cam_from_world"]
    errors = np.linalg.norm(project(camera, np.asarray(cam_from_world * X)) - x, axis=1)
    inliers = np.asarray(errors <= options.threshold)  # False for NaN
    distinct = len(np.unique(np.hstack([x, X])[inliers], axis=0))
    if distinct < min_points or collinear(x[inliers], options.threshold):
        return None
    num_parameters = 6 + options.estimate_focal_length
    variance = (errors[inliers] ** 2).sum() / (2 * np.count_nonzero(inliers) - num_parameters)
    covariance = variance * _centre_covariance(cam_from_world, estimate["covariance"])
    if not np.isfinite(covariance).all():
        return None
    sample = {"sample_size": 4, "num_solutions": 10} if options.estimate_focal_length else {}
    significance = pose_significance(
        errors, x, (camera.width, camera.height), threshold=options.threshold, **sample
    )
    return AbsolutePose(cam_from_world, camera, inliers, covariance, max(0.0, significance))


def _centre_covariance(cam_from_world: pycolmap.Rigid3d, covariance: Array) -> Array:
    """The covariance of rotation and camera centre, from COLMAP's for rotation and translation.

    COLMAP assumes noise of 1 px. Its six parameters are half the rotation vector about the camera's
    axes (Ceres's quaternion manifold) and the translation t. The camera's centre is -R^T t.
    """
    R = np.asarray(cam_from_world.rotation.matrix(), dtype=np.float64)
    x, y, z = cam_from_world.translation
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    jacobian = np.zeros((6, 6))
    jacobian[:3, :3] = 2 * np.eye(3)
    jacobian[3:, :3] = -2 * R.T @ cross
    jacobian[3:, 3:] = -R.T
    return np.asarray(jacobian @ covariance @ jacobian.T, dtype=np.float64)
