"""Keypoints of one photo, and verified matches of two, as the page shows them."""

from __future__ import annotations

from typing import Any

import torch

from d2net.extraction.d2net import D2Net
from d2net.features import Features, Matches
from d2net.matching import match
from d2net.matching.verification import default_threshold, verify
from d2net.serving.photos import SentPhoto
from d2net.settings import ExtractionOptions

PRESETS: dict[str, ExtractionOptions] = {
    "both": {"detector": "both"},
    "deep": {"detector": "deep", "descriptor": "plain"},
    "corner": {"detector": "corner"},
    "original": {"original": True},
}
"""Extraction settings that a visitor can choose, the default first."""

MAX_KEYPOINTS = 8192
"""Keypoints of a photo. They are extracted once; smaller numbers are the best of them."""


def extract(model: D2Net, photo: SentPhoto, preset: str) -> Features:
    """The photo's features, best score first, extracted once."""
    if preset not in photo.features:
        options: ExtractionOptions = {**PRESETS[preset], "max_keypoints": MAX_KEYPOINTS}
        features = model.extract(photo.pixels(), **options)
        photo.features[preset] = best_first(features)
    return photo.features[preset]


def best_first(features: Features) -> Features:
    """The features sorted by score (`original` keeps the order of the 2019 release)."""
    return features[features.scores.argsort(descending=True, stable=True)]


def pack_keypoints(features: Features) -> bytes:
    """N x 2 float32 (x, y), little-endian."""
    return features.keypoints.cpu().numpy().astype("<f4").tobytes()


def match_best(
    a: SentPhoto, b: SentPhoto, preset: str, number: int, threshold: float | None
) -> dict[str, Any]:
    """Match the best keypoints of two photos whose features are extracted, and verify.

    Args:
        a: the first photo.
        b: the second photo.
        preset: of the features.
        number: of keypoints in each photo, at most.
        threshold: largest error of an inlier in pixels; None for the features' default.

    Returns:
        JSON: that of `matches_to_dict`, the `threshold`, the `verdict` and the `significance`.
    """
    best_a, best_b = a.features[preset][:number], b.features[preset][:number]
    key = (b.key, preset, number)
    if a.matched is None or a.matched[0] != key:  # a new threshold needs no new matches
        a.matched = (key, match(best_a, best_b))
    matches = a.matched[1]
    if threshold is None:
        threshold = default_threshold(best_a, best_b, matches, "fundamental")
    verified = verify(best_a, best_b, matches, "fundamental", threshold=threshold)
    return {
        **matches_to_dict(verified),
        "threshold": threshold,
        "verdict": verified.verdict,
        "significance": verified.significance,
    }


def matches_to_dict(matches: Matches) -> dict[str, Any]:
    """Verified matches as JSON: rows `first` and `second`, `similarity`; the `inliers` first."""
    inliers = matches.inliers
    if inliers is None:
        inliers = torch.ones(len(matches), dtype=torch.bool)
    order = inliers.int().argsort(descending=True, stable=True)
    first, second = matches.indices[order].T.tolist()
    return {
        "first": first,
        "second": second,
        "similarity": [round(cosine, 4) for cosine in matches.similarity[order].tolist()],
        "inliers": matches.num_inliers,
    }
