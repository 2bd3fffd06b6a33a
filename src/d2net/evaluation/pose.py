"""Relative pose of pairs of photos whose cameras are known.

The protocol of SuperGlue (Sarlin et al., CVPR 2020, section 5.2). The essential matrix is estimated
from mutual nearest neighbours with known intrinsics. The error of a pair is the larger of two
angles: between the estimated and the true rotation, and between the directions of translation,
whose sign is ignored. The figure is the area under the curve (AUC) of the share of pairs over the
error. A pair without an estimate has an infinite error.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from d2net.evaluation.cache import CachedSource
from d2net.evaluation.pair_protocol import accuracy, auc, evaluate_pairs, matched_points
from d2net.evaluation.pose_dataset import PosedPair, find_pairs
from d2net.evaluation.results import (
    COUNTS,
    OVERALL,
    Curve,
    Drawing,
    Figures,
    Metric,
    PairResult,
    Protocol,
    Result,
    averaged,
)
from d2net.features import Features, Matches
from d2net.geometry import robust
from d2net.geometry.alignment import rotation_angle
from d2net.geometry.cameras import check_photo_size, rays
from d2net.geometry.coordinates import Array
from d2net.geometry.epipolar import pose_distance
from d2net.geometry.robust import Method, RobustOptions
from d2net.io.exif import check_photo_sizes
from d2net.progress import Progress, no_progress

ANGLES = (1, 5, 10, 20)  # limits of the AUC in degrees
PRECISION = Curve(
    "precision",
    tuple(range(1, 11)),
    "share of matches within the threshold, in pixels, of the true epipolar geometry",
)
THRESHOLDS = (0.5, 1, 2, 4, 8)
"""RANSAC's thresholds in pixels (Sampson distance). All are reported; none is chosen here."""
SEEDS = (0, 1, 2)  # of RANSAC's random samples; figures are means over them
DRAWN_AS_CORRECT = 3
FAILED = 180.0  # degrees; error of a pair without an estimate, above every limit

PROTOCOL = Protocol(
    "pose",
    "Relative poses",
    "The relative pose of each pair is estimated from its matches and compared with the ground "
    "truth. A pair's error is the larger of its angular errors of rotation and translation.",
    correct=f"within {DRAWN_AS_CORRECT} px of the true epipolar geometry",
)


def evaluate_pose(
    source: CachedSource,
    folder: Path,
    *,
    model: Path | None = None,
    pairs: Path | None = None,
    solver: Method = "poselib",
    progress: Progress = no_progress,
) -> Result:
    """Relative poses from a source's matches, compared with known cameras.

    See `find_pairs` for `folder`, `model` and `pairs`. The solver is "poselib" or "magsac".

    Returns:
        Per pair: `error t=T`, the pose error in degrees at RANSAC threshold T, a mean over the
        seeds, with 180 where there is no estimate; `inliers t=T`, the share of matches that are
        inliers; `precision@t`, the share of matches within t px (Sampson distance) of the true
        epipolar geometry, for t from 1 to 10; `features` and `matches`. Per group and overall: the
        means of all but the errors; `AUC@A t=T` for A of 1, 5, 10 and 20 degrees, a mean over the
        seeds; and `median error t=T`.
    """
    options = [
        [RobustOptions(threshold=t, method=solver, seed=seed) for seed in SEEDS] for t in THRESHOLDS
    ]
    errors = []

    def judge(
        pair: PosedPair, a: Features, b: Features, matches: Matches
    ) -> tuple[Figures, Drawing]:
        for path, features, camera in zip(pair.photos, (a, b), pair.cameras, strict=True):
            check_photo_size(str(path), features.image_size, camera)
        figures, drawing, pair_errors = _judge(pair, *matched_points(a, b, matches), options)
        errors.append(pair_errors)
        return figures, drawing

    found = find_pairs(folder, model, pairs)
    cameras = {p: c for pair in found for p, c in zip(pair.photos, pair.cameras, strict=True)}
    check_photo_sizes(cameras.items())
    results = evaluate_pairs(source, folder, found, judge, progress)
    headline = [
        *(
            Metric(f"AUC@{angle} t={t:g}", "area under the recall curve, up to an error in degrees")
            for t in THRESHOLDS
            for angle in ANGLES
        ),
        PRECISION.metric(3),
        *COUNTS,
    ]
    pair_errors = [Metric(f"error t={t:g}", "", "°", higher_is_better=False) for t in THRESHOLDS]
    return Result(
        PROTOCOL,
        *source.described(folder),
        {
            "model": model,
            "pairs": pairs,
            "solver": solver,
            "thresholds": THRESHOLDS,
            "seeds": SEEDS,
        },
        results,
        _groups(results, np.array(errors)),
        headline,
        pair_metrics=[PRECISION.metric(5), *pair_errors, *COUNTS],
        curve=PRECISION,
    )


def _judge(
    pair: PosedPair, points_a: Array, points_b: Array, options: Sequence[Sequence[RobustOptions]]
) -> tuple[Figures, Drawing, Array]:
    """Figures and picture of a pair, and its pose errors in degrees: thresholds x seeds."""
    # Lens distortion is undone, and cameras get principal point (0, 0). They keep their focal
    # lengths, so that thresholds are still pixels.
    focal_a, focal_b = (camera.mean_focal_length() for camera in pair.cameras)
    ideal_a = rays(pair.cameras[0], points_a) * focal_a
    ideal_b = rays(pair.cameras[1], points_b) * focal_b
    Ka, Kb = (np.diag([focal, focal, 1.0]) for focal in (focal_a, focal_b))
    usable = np.isfinite(np.hstack([ideal_a, ideal_b])).all(axis=1)  # others have no ray
    ideal_a, ideal_b = ideal_a[usable], ideal_b[usable]
    distances = pose_distance(pair.rotation, pair.translation, pair.cameras, (points_a, points_b))
    figures = PRECISION.figures(accuracy(distances, PRECISION.thresholds))

    errors = np.full((len(options), len(options[0])), FAILED)
    for i, same_threshold in enumerate(options):
        inlier_shares = []
        for j, option in enumerate(same_threshold):
            E, inliers = robust.estimate("essential", ideal_a, ideal_b, option, (Ka, Kb))
            inlier_shares.append(np.count_nonzero(inliers) / max(len(points_a), 1))
            if E is not None:
                rays_a, rays_b = ideal_a[inliers] / focal_a, ideal_b[inliers] / focal_b
                errors[i, j] = _pose_error(E, rays_a, rays_b, pair)
        threshold = same_threshold[0].threshold
        figures[f"error t={threshold:g}"] = float(errors[i].mean())
        figures[f"inliers t={threshold:g}"] = float(np.mean(inlier_shares))
    return figures, Drawing(points_a, points_b, distances <= DRAWN_AS_CORRECT), errors


def _pose_error(E: Array, rays_a: Array, rays_b: Array, pair: PosedPair) -> float:
    """Angle in degrees between the pose of an essential matrix and the true one."""
    import cv2

    # This takes the pose of E's four that has the most points in front of both cameras. OpenCV
    # ignores points farther than 50 baselines unless told otherwise.
    _, rotation, translation, *_ = cv2.recoverPose(E, rays_a, rays_b, np.eye(3), distanceThresh=1e9)
    direction = np.asarray(translation, dtype=np.float64)[:, 0]
    return max(
        rotation_angle(np.asarray(rotation, dtype=np.float64), pair.rotation),
        line_angle(direction, pair.translation),
    )


def line_angle(estimate: Array, truth: Array) -> float:
    """Angle in degrees, at most 90, between the lines along two vectors; 0 if the true one is 0."""
    sine = np.linalg.norm(np.cross(estimate, truth))
    return float(np.degrees(np.arctan2(sine, abs(estimate @ truth))))


def _groups(results: Sequence[PairResult], errors: Array) -> dict[str, Figures]:
    """Mean figures of the pairs, and the AUC of their errors (pairs x thresholds x seeds)."""
    groups = averaged(results)
    for name, figures in groups.items():
        members = [name in (OVERALL, result.group) for result in results]
        for t, values in zip(THRESHOLDS, errors[members].transpose(1, 0, 2), strict=True):
            del figures[f"error t={t:g}"]  # a mean says little where some pairs fail
            figures[f"median error t={t:g}"] = float(np.median(values))
            areas = np.array([auc(of_seed, ANGLES) for of_seed in values.T])
            for angle, area in zip(ANGLES, areas.T, strict=True):
                figures[f"AUC@{angle} t={t:g}"] = float(area.mean())
    return groups
