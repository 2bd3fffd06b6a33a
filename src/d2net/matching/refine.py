"""Refinement of the matches of two photos to a fraction of a pixel.

The detections in two photos each have their own error. Refinement moves the point of the second
photo to where the grey values around it best fit those around the point of the first photo
(`matching.patches`). docs/experiments.md has the gain in accuracy.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.io.images import ImageLike
from d2net.matching.patches import GreyPhoto, PatchFits, fit_patches, reduction
from d2net.matching.verification import check_rows

FIT_DEVIATION = 0.2
"""Standard deviation of a fitted point relative to its match, in pixels of the reduced photo."""

MIN_MATCHES = 8
"""Fewer matches do not determine the warp between two photos well enough."""


def refine(
    a: Features,
    b: Features,
    matches: Matches,
    photo_a: ImageLike,
    photo_b: ImageLike,
    *,
    upright: bool = True,
) -> tuple[Features, Features]:
    """Move the points of verified matches in the second photo so that they fit the first photo.

    ```python
    matches = d2net.match(a, b, verify="fundamental")
    a, b = d2net.refine(a, b, matches, "a.jpg", "b.jpg")
    matches = d2net.verify(a, b, matches, "fundamental")  # a more precise model
    ```

    A point stays where it is if no position nearby fits better. With fewer than 8 verified matches
    nothing is moved.

    Args:
        a: features of the first photo.
        b: features of the second photo.
        matches: verified matches; only inliers are moved.
        photo_a: the first photo, as it was given to `extract`.
        photo_b: the second photo, likewise.
        upright: the extraction setting `upright` of the features.

    Returns:
        The features of both photos. Moved points have new keypoints in `b` and a new uncertainty in
        `a` and `b`. The new uncertainty holds for this pair only; with other photos use the old
        features.

    Raises:
        InputError: the matches are not verified or belong to other features, or a photo has
            another size than its features.
        ImageError: a photo cannot be read.
    """
    check_rows(matches, a, b)
    if matches.inliers is None:
        raise InputError(
            'only verified matches can be refined: match with verify="fundamental" first'
        )
    rows_a, rows_b = matches.verified().indices.cpu().unbind(1)
    if len(rows_a) < MIN_MATCHES:
        return a, b
    first, second = (
        GreyPhoto.read(photo, features.image_size, upright=upright)
        for features, photo in ((a, photo_a), (b, photo_b))
    )
    fits = fit_matches(first, second, a.to("cpu"), b.to("cpu"), rows_a, rows_b)
    keypoints = b.keypoints.clone()
    keypoints[rows_b[fits.moved]] = fits.points[fits.moved].to(keypoints)
    b = replace(b, keypoints=keypoints)
    return lower_uncertainty(a, rows_a[fits.moved]), lower_uncertainty(b, rows_b[fits.moved])


def fit_matches(
    first: GreyPhoto, second: GreyPhoto, a: Features, b: Features, rows_a: Tensor, rows_b: Tensor
) -> PatchFits:
    """`fit_patches` for matched rows of the features of two photos, which are on the CPU."""
    deviations = torch.hypot(
        a.uncertainty[rows_a] / reduction(a.image_size),
        b.uncertainty[rows_b] / reduction(b.image_size),
    )
    return fit_patches(first, second, a.keypoints[rows_a], b.keypoints[rows_b], deviations)


def lower_uncertainty(features: Features, rows: Tensor) -> Features:
    """The same features; those at `rows` (indices or mask) are at least as certain as a fit."""
    uncertainty = features.uncertainty.clone()
    limit = FIT_DEVIATION * reduction(features.image_size)
    uncertainty[rows] = uncertainty[rows].clamp(max=limit)
    return replace(features, uncertainty=uncertainty)
