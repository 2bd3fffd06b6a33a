"""Matches of two photos to a fraction of a pixel: the second one's patch is laid over the first's.

Detections of two photos are each off by their own error. Here the point of the second photo is
moved to where the grey values around it fit those around the first photo's point best
(`matching.patches`). EXPERIMENTS.md says what that is worth.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.io.images import ImageLike
from d2net.matching.patches import Fits, GreyPhoto, fit_patches, magnification
from d2net.matching.verification import check_rows

DEVIATION = 0.2
"""Of a moved point against its partner, in pixels at the size the patches are compared at."""

LEAST_MATCHES = 8
"""Fewer say too little of the warp between two photos."""


def refine(
    a: Features,
    b: Features,
    matches: Matches,
    photo_a: ImageLike,
    photo_b: ImageLike,
    *,
    upright: bool = True,
) -> tuple[Features, Features]:
    """Move the points of verified matches in the second photo to fit the first photo's.

    ```python
    matches = d2net.match(a, b, verify="fundamental")
    a, b = d2net.refine(a, b, matches, "a.jpg", "b.jpg")
    matches = d2net.verify(a, b, matches, "fundamental")  # a more precise model
    ```

    What does not fit better where it is moved to stays where it is. Fewer than 8 verified matches
    say too little of the warp; nothing is moved then.

    Args:
        a: features of the first photo.
        b: features of the second photo.
        matches: verified ones; the others stay as they are.
        photo_a: the first photo, as it was given to `extract`.
        photo_b: the second one.
        upright: as the features were extracted.

    Returns:
        Both features. Of moved points in `b` the keypoints are new, in both the uncertainty, which
        is now that of the pair: with other photos, use the old ones.

    Raises:
        InputError: the matches are not verified or of other features, or a photo has another size
            than its features say.
        ImageError: a photo cannot be read.
    """
    check_rows(matches, a, b)
    if matches.inliers is None:
        raise InputError(
            'only verified matches can be refined: match with verify="fundamental" first'
        )
    rows_a, rows_b = matches.verified().indices.cpu().unbind(1)
    if len(rows_a) < LEAST_MATCHES:
        return a, b
    first, second = (
        GreyPhoto.of(photo, features.image_size, upright=upright)
        for features, photo in ((a, photo_a), (b, photo_b))
    )
    fits = fit_matches(first, second, a.to("cpu"), b.to("cpu"), rows_a, rows_b)
    keypoints = b.keypoints.clone()
    keypoints[rows_b[fits.moved]] = fits.points[fits.moved].to(keypoints)
    b = replace(b, keypoints=keypoints)
    return surer(a, rows_a[fits.moved]), surer(b, rows_b[fits.moved])


def fit_matches(
    first: GreyPhoto, second: GreyPhoto, a: Features, b: Features, rows_a: Tensor, rows_b: Tensor
) -> Fits:
    """`fit_patches` for matched rows of the features (on the CPU) of two photos."""
    deviations = torch.hypot(
        a.uncertainty[rows_a] / magnification(a.image_size),
        b.uncertainty[rows_b] / magnification(b.image_size),
    )
    return fit_patches(first, second, a.keypoints[rows_a], b.keypoints[rows_b], deviations)


def surer(features: Features, rows: Tensor) -> Features:
    """The same features, those at `rows` (indices or marks) as sure as a fit is."""
    uncertainty = features.uncertainty.clone()
    uncertainty[rows] = uncertainty[rows].clamp(max=DEVIATION * magnification(features.image_size))
    return replace(features, uncertainty=uncertainty)
