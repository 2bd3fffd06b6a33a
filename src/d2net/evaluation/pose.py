"""Relative pose of pairs of photos whose cameras are known.

The protocol of SuperGlue (Sarlin et al., CVPR 2020, section 5.2): the essential matrix is estimated
from mutual nearest neighbours with known intrinsics; the error of a pair is the larger of the
angles between estimated and true rotation and between the two directions of translation, which
count as lines (their sign is ignored); reported is the area under the curve (AUC) of the share of
pairs over the error. A pair without an estimate has an infinite error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.metrics import accuracy, auc
from d2net.evaluation.pose_truth import PosedPair, find_pairs
from d2net.evaluation.results import Drawing, Figures, PairResult, Result, averaged
from d2net.features import Features
from d2net.geometry import robust
from d2net.geometry.alignment import rotation_angle
from d2net.geometry.cameras import check_photo_size, rays
from d2net.geometry.epipolar import (
    essential_from_pose,
    fundamental_from_essential,
    sampson_distance,
)
from d2net.geometry.robust import Method, RobustOptions
from d2net.matching import match

Array = NDArray[np.float64]

ANGLES = (1, 5, 10, 20)
"""Limits of the AUC in degrees."""
PRECISION_THRESHOLDS = tuple(range(1, 11))
DRAWN_AS_RIGHT = 3.0
FAILED = 180.0
"""Error in degrees written for a pair without an estimate: finite, so that JSON can hold it, and
beyond every limit, so that the AUC is that of an infinite one."""


def evaluate_pose(
    source: CachedFeatures,
    folder: Path,
    *,
    model: Path | None = None,
    pairs: Path | None = None,
    min_overlap: float | None = None,
    max_angle: float | None = None,
    max_keypoints: int | None = None,
    solver: Method = "poselib",
    thresholds: Sequence[float] = (0.5, 1, 2, 4, 8),
    seeds: Sequence[int] = (0, 1, 2),
    report: Callable[[str, int], None] | None = None,
) -> Result:
    """Relative poses from a source's matches, judged by known cameras.

    Args:
        source: features.
        folder: photos and truth, see `pose_truth.find_pairs`.
        model: COLMAP model, likewise.
        pairs: list of pairs, or SuperGlue's pairs with truth, likewise.
        min_overlap: choose pairs, likewise.
        max_angle: choose pairs, likewise.
        max_keypoints: the best by score; None for all.
        solver: "poselib", "pycolmap" (several times slower) or "magsac" (OpenCV).
        thresholds: of RANSAC in pixels of the photos (Sampson distance). All are reported: the
            best one of a sweep would be chosen on the data it is judged by.
        seeds: of RANSAC's samples; figures are means over them.
        report: called after each pair with its name and how many are left.

    Returns:
        Per pair: `error t=T`, the mean over seeds of the pose error in degrees at RANSAC threshold
        T, 180 where there is no estimate; `inliers t=T`, the share of matches that are inliers;
        `precision@t`, the share of matches within t px (Sampson distance) of the true epipolar
        geometry, for t from 1 to 10; `features` and `matches`. Per group and overall: the means of
        all but the errors; `AUC@A t=T` for A of 1, 5, 10 and 20 degrees, the mean over seeds;
        `AUC@A t=T spread`, the largest less the smallest; and `median error t=T`.

    Raises:
        InputError: arguments that make no sense, no pairs, or a photo of another size than its
            camera.
        FormatError: truth that is broken, or does not belong to the photos.
        MissingPackageError: the solver needs a package that is not installed.
    """
    if not seeds or not thresholds:
        raise InputError("at least one seed and one RANSAC threshold are needed")
    options = [
        [RobustOptions(threshold=t, method=solver, seed=seed) for seed in seeds] for t in thresholds
    ]
    found = find_pairs(
        folder, model=model, pairs=pairs, min_overlap=min_overlap, max_angle=max_angle
    )
    results, errors = [], []
    for left, pair in zip(range(len(found) - 1, -1, -1), found, strict=True):
        a, b = (_features(source, folder, pair, which).best(max_keypoints) for which in (0, 1))
        result, error = _evaluate_pair(pair, folder, a, b, options)
        results.append(result)
        errors.append(error)
        if report is not None:
            report(" ".join(path.stem for path in pair.photos), left)
    return Result(
        protocol="pose",
        method=source.name,
        folder=str(folder),
        provenance=source.source.provenance(),
        settings={
            "model": None if model is None else str(model),
            "pairs": None if pairs is None else str(pairs),
            "min_overlap": min_overlap,
            "max_angle": max_angle,
            "max_keypoints": max_keypoints,
            "solver": solver,
            "thresholds": list(thresholds),
            "seeds": list(seeds),
        },
        pairs=results,
        groups=_groups(results, np.array(errors), thresholds),
        headline=[
            *(f"AUC@{angle} t={t:g}" for t in thresholds for angle in ANGLES),
            "precision@3",
            "features",
            "matches",
        ],
        curve={float(t): f"precision@{t}" for t in PRECISION_THRESHOLDS},
    )


def _features(source: CachedFeatures, folder: Path, pair: PosedPair, which: int) -> Features:
    path, camera = pair.photos[which], pair.cameras[which]
    features = source.features(path, path.relative_to(folder).as_posix())
    check_photo_size(str(path), features.image_size, camera)
    return features


@dataclass(frozen=True)
class _IdealMatches:
    """Ends of a pair's matches without lens distortion, for cameras with principal point (0, 0).

    The focal length stays, so that thresholds are pixels.
    """

    a: Array
    b: Array
    Ka: Array
    Kb: Array


def _evaluate_pair(
    pair: PosedPair,
    folder: Path,
    a: Features,
    b: Features,
    options: Sequence[Sequence[RobustOptions]],
) -> tuple[PairResult, Array]:
    """Figures of a pair, and its pose errors in degrees: thresholds x seeds."""
    matches = match(a, b)
    points = [
        features.keypoints.double().numpy()[rows]
        for features, rows in zip((a, b), matches.indices.T.numpy(), strict=True)
    ]
    ideal, usable = _ideal(pair, points)
    E = essential_from_pose(pair.rotation, pair.translation)
    distances = np.full(len(matches), np.inf)  # the lens model has no ray for the unusable
    distances[usable] = sampson_distance(
        fundamental_from_essential(E, ideal.Ka, ideal.Kb), ideal.a, ideal.b
    )
    errors = np.empty((len(options), len(options[0])))
    figures: Figures = {}
    for row, same_threshold in enumerate(options):
        inliers = []
        for column, option in enumerate(same_threshold):
            estimate, marks = robust.essential(ideal.a, ideal.b, ideal.Ka, ideal.Kb, option)
            inliers.append(np.count_nonzero(marks) / max(len(matches), 1))
            errors[row, column] = (
                FAILED if estimate is None else _pose_error(estimate, ideal, marks, pair)
            )
        threshold = same_threshold[0].threshold
        figures[f"error t={threshold:g}"] = float(errors[row].mean())
        figures[f"inliers t={threshold:g}"] = float(np.mean(inliers))
    for t, share in zip(
        PRECISION_THRESHOLDS, accuracy(distances, PRECISION_THRESHOLDS), strict=True
    ):
        figures[f"precision@{t}"] = float(share)
    figures["features"] = (len(a) + len(b)) / 2
    figures["matches"] = float(len(matches))
    drawing = Drawing(
        points[0].astype(np.float32), points[1].astype(np.float32), distances <= DRAWN_AS_RIGHT
    )
    first, second = (path.relative_to(folder).as_posix() for path in pair.photos)
    return PairResult(pair.group, (first, second), figures, drawing), errors


def _ideal(pair: PosedPair, points: Sequence[Array]) -> tuple[_IdealMatches, NDArray[np.bool_]]:
    """The matches without lens distortion, and which those are that have rays in both cameras."""
    focal = [camera.mean_focal_length() for camera in pair.cameras]
    a, b = (rays(camera, p) * f for camera, p, f in zip(pair.cameras, points, focal, strict=True))
    usable = np.asarray(np.isfinite(np.hstack([a, b])).all(axis=1), dtype=np.bool_)
    Ka, Kb = (np.diag([f, f, 1.0]) for f in focal)
    return _IdealMatches(a[usable], b[usable], Ka, Kb), usable


def _pose_error(
    E: Array, ideal: _IdealMatches, inliers: NDArray[np.bool_], pair: PosedPair
) -> float:
    """Degrees between the pose that E stands for and the true one."""
    import cv2

    a, b = ideal.a[inliers] / ideal.Ka[0, 0], ideal.b[inliers] / ideal.Kb[0, 0]
    # Of the four poses of E that with most points in front of both cameras. OpenCV leaves points
    # beyond a distance (50 baselines) out unless told not to.
    _, rotation, translation, *_ = cv2.recoverPose(E, a, b, np.eye(3), distanceThresh=1e9)
    direction = np.asarray(translation, dtype=np.float64)[:, 0]
    return max(
        rotation_angle(np.asarray(rotation, dtype=np.float64), pair.rotation),
        line_angle(direction, pair.translation),
    )


def line_angle(estimate: Array, truth: Array) -> float:
    """Angle in degrees, at most 90, between the lines along two vectors.

    0 if the true one is zero: photos from one place have no direction of translation to miss.
    """
    return float(
        np.degrees(np.arctan2(np.linalg.norm(np.cross(estimate, truth)), abs(estimate @ truth)))
    )


def _groups(
    results: Sequence[PairResult], errors: Array, thresholds: Sequence[float]
) -> dict[str, Figures]:
    """Means of the pairs' figures, and the AUC of their errors (pairs x thresholds x seeds)."""
    groups = averaged(results)
    for name, figures in groups.items():
        members = [name in ("overall", result.group) for result in results]
        for t, values in zip(thresholds, errors[members].transpose(1, 0, 2), strict=True):
            del figures[f"error t={t:g}"]  # failures would rule the mean
            figures[f"median error t={t:g}"] = float(np.median(values))
            areas = np.array([auc(of_seed, ANGLES) for of_seed in values.T])
            for angle, area in zip(ANGLES, areas.T, strict=True):
                figures[f"AUC@{angle} t={t:g}"] = float(area.mean())
                figures[f"AUC@{angle} t={t:g} spread"] = float(np.ptp(area))
    return groups
