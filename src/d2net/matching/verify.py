"""Which matches agree with one motion of the camera: geometric verification."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.geometry import robust
from d2net.geometry.robust import Method, Model, RobustOptions

MIN_THRESHOLD = 1.5
"""Smallest default threshold of an epipolar (Sampson) distance, in pixels: what lenses and blur
leave of the sharpest keypoints. (Poses from corners were best from 1.5 to 3 px.)"""

SIGMAS = 3.64
"""Default threshold of an epipolar distance in standard deviations of a keypoint's position: the
0.99 quantile of MAGSAC++'s noise model (Barath et al., CVPR 2020). That is 5.5 px for deep
keypoints; 5 to 10 suited D2-Net in "Image Matching across Wide Baselines" (Jin et al., IJCV 2021),
where SIFT wants 1."""

DECISIVE = 0.25
"""Where keypoints are of several kinds, this share of the matches, the most precise, decides on the
threshold: they fix the model, and looser ones that are right still agree with it."""

HOMOGRAPHY_FACTOR = math.sqrt(2)
"""A homography's transfer error holds the noise of both points of a pair, a Sampson distance, which
is shared out between them, that of one."""


def verify(
    a: Features,
    b: Features,
    matches: Matches,
    model: Model = "fundamental",
    *,
    threshold: float | None = None,
    method: Method = "magsac",
    intrinsics: tuple[ArrayLike, ArrayLike] | None = None,
    seed: int = 0,
) -> Matches:
    """Fit a model to matches and mark those that agree with it.

    Args:
        a: features of the first photo.
        b: features of the second photo.
        matches: pairs of rows of `a` and `b`.
        model: "fundamental" (any scene), "homography" (a plane, or a camera that only turns) or
            "essential" (any scene, cameras known).
        threshold: largest error of an inlier in pixels of the photos, see `RobustOptions`; None
            for `default_threshold`, which grows with photos that were reduced for extraction.
        method: "magsac" (OpenCV), "poselib" or "pycolmap".
        intrinsics: 3 x 3 camera matrices of both photos, pixel centres at integers; needed by
            "essential" and used by nothing else.
        seed: of the random samples; the same seed gives identical results.

    Returns:
        The same matches with `inliers`, `model` and `matrix` (x_b = H x_a, x_b^T F x_a = 0, or
        x_b^T K_b^-T E K_a^-1 x_a = 0). Where no model is found, `matrix` is None and no match is
        an inlier.

    Raises:
        InputError: for unknown names, values out of range and matches of other features.
        MissingPackageError: if the method needs a package that is not installed.
    """
    if model not in get_args(Model):
        raise InputError(f"model must be one of {', '.join(get_args(Model))}, not {model!r}")
    if (intrinsics is not None) != (model == "essential"):
        raise InputError(
            "intrinsics, the camera matrices of both photos, go with the model 'essential' and "
            f"with no other, but model is {model!r} and intrinsics "
            f"{'are not given' if intrinsics is None else 'are given'}"
        )
    check_belongs(matches, a, b)
    if threshold is None:
        threshold = default_threshold(a, b, matches, model)
    options = RobustOptions(threshold=threshold, method=method, seed=seed)
    points_a, points_b = (
        _points(features, rows)
        for features, rows in zip((a, b), matches.indices.unbind(1), strict=True)
    )
    if model == "homography":
        matrix, inliers = robust.homography(points_a, points_b, options)
    elif intrinsics is None:
        matrix, inliers = robust.fundamental(points_a, points_b, options)
    else:
        matrix, inliers = robust.essential(points_a, points_b, *intrinsics, options)
    marks = torch.from_numpy(inliers).to(matches.indices.device)
    return replace(matches, inliers=marks, model=model, matrix=matrix)


def default_threshold(a: Features, b: Features, matches: Matches, model: Model) -> float:
    """The threshold in pixels that suits the uncertainty of the matched keypoints."""
    factor = HOMOGRAPHY_FACTOR if model == "homography" else 1.0
    if len(matches) == 0:
        return factor * MIN_THRESHOLD
    deviations = [
        float(features.uncertainty[rows.to(features.uncertainty.device)].quantile(DECISIVE))
        for features, rows in zip((a, b), matches.indices.unbind(1), strict=True)
    ]
    deviation = math.hypot(*deviations) / math.sqrt(2)
    return factor * max(MIN_THRESHOLD, SIGMAS * deviation)


def check_belongs(matches: Matches, a: Features, b: Features) -> None:
    """Raise InputError if matches hold rows that the features of the two photos do not have."""
    for features, rows, which in zip(
        (a, b), matches.indices.unbind(1), ("first", "second"), strict=True
    ):
        if len(rows) and not 0 <= int(rows.min()) <= int(rows.max()) < len(features):
            raise InputError(
                f"matches hold rows {int(rows.min())} to {int(rows.max())} of the {which} photo, "
                f"which has {len(features)} keypoints; they belong to other features"
            )


def _points(features: Features, rows: Tensor) -> NDArray[np.float64]:
    points: NDArray[Any] = features.keypoints.cpu()[rows.cpu()].double().numpy()
    return points
