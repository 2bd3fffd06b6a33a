"""What a page shows of one photo and of two: keypoints, and matches of the best of them."""

from __future__ import annotations

from typing import Any

import torch

from d2net.extraction.d2net import D2Net
from d2net.features import Features, Matches
from d2net.matching import match
from d2net.matching.verification import default_threshold, verify
from d2net.serving.photos import SentPhoto

KINDS: dict[str, dict[str, Any]] = {
    "both": {"detector": "both"},
    "deep": {"detector": "deep", "descriptor": "plain"},
    "corner": {"detector": "corner"},
    "original": {"original": True},
}
"""What a visitor can choose, the default first, and the extraction settings that it stands for."""

MAX_KEYPOINTS = 8192
"""Of a photo; extracted once, and any smaller number is a part of them."""


def find_keypoints(model: D2Net, photo: SentPhoto, kind: str) -> Features:
    """The features of a kind, best score first, found once."""
    if kind not in photo.features:
        found = model.extract(photo.pixels(), **KINDS[kind], max_keypoints=MAX_KEYPOINTS)
        photo.features[kind] = best_first(found)
    return photo.features[kind]


def best_first(found: Features) -> Features:
    """The same features by score (`original` gives them in the release's order)."""
    return found[found.scores.argsort(descending=True, stable=True)]


def packed_keypoints(features: Features) -> bytes:
    """N x 2 float32 (x, y), little-endian."""
    return features.keypoints.cpu().numpy().astype("<f4").tobytes()


def match_best(
    a: SentPhoto, b: SentPhoto, kind: str, number: int, threshold: float | None
) -> dict[str, Any]:
    """Verified matches of the best keypoints of two photos, whose features have been found.

    Args:
        a: the first photo.
        b: the second photo.
        kind: of the features.
        number: of keypoints in each photo, at most.
        threshold: largest error of an inlier in pixels; None for one that suits the features.

    Returns:
        As JSON: rows of the keypoints in `first` and `second` with their cosine in `similarity`,
        of which the first `inliers` agree with one motion of the camera, and the `threshold`.
    """
    best_a, best_b = a.features[kind][:number], b.features[kind][:number]
    key = (b.key, kind, number)
    if a.matched is None or a.matched[0] != key:  # a new threshold needs no new matches
        a.matched = (key, match(best_a, best_b))
    matches = a.matched[1]
    if threshold is None:
        threshold = default_threshold(best_a, best_b, matches, "fundamental")
    found = verify(best_a, best_b, matches, "fundamental", threshold=threshold)
    return {**listed(found), "threshold": threshold}


def listed(matches: Matches) -> dict[str, Any]:
    """Verified matches as JSON, inliers first."""
    marks = matches.inliers
    if marks is None:
        marks = torch.ones(len(matches), dtype=torch.bool)
    order = marks.int().argsort(descending=True, stable=True)
    first, second = matches.indices[order].T.tolist()
    return {
        "first": first,
        "second": second,
        "similarity": [round(cosine, 4) for cosine in matches.similarity[order].tolist()],
        "inliers": matches.num_inliers,
    }
