"""Checks the pairs of a source before a night of training on them.

Correspondences are compared with SIFT matches between the crops (Lowe, "Distinctive Image Features
from Scale-Invariant Keypoints", IJCV 2004). SIFT knows nothing of poses, depth or alignment, so
wrong correspondences show within seconds. Scenes with known cameras are also checked for
consistency (`ScenePairs.audit`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from d2net.errors import D2NetError, InputError
from d2net.progress import Progress, no_progress
from d2net.training.correspondences import interpolate
from d2net.training.crops import RGB, Array
from d2net.training.sources.base import Source, TrainingPair, pair_generator
from d2net.training.sources.scenes import ScenePairs

AGREEMENT_PIXELS = 5.0
"""A SIFT match agrees if it ends within this distance of the interpolated correspondence."""

_RATIO = 0.75  # of Lowe's ratio test: few but right SIFT matches are wanted here

_MIN_AGREEMENT = 0.5
"""Share of SIFT matches. Sound sources have over 0.9, handheld depth cameras over 0.7."""

_MIN_SIFT_MATCHES = 4
"""SIFT matches per pair below which their agreement means nothing: between thermal and visible
light, for example, SIFT finds about one match per pair, by chance."""

_AUDIT_LIMITS = {
    "track_error_pixels": (3.0, "the tracks contradict the poses; use bundle-adjusted cameras"),
    "depth_error": (0.05, "depth and poses have different units, or belong to other photos"),
    "share_occluded": (0.5, "depths of two photos rarely agree; check their unit and the poses"),
}


@dataclass(frozen=True)
class PairFigures:
    """Figures of one pair.

    Attributes:
        correspondences: number of correspondences.
        scale: scale of crop b relative to crop a.
        rotation: rotation of crop b against crop a in degrees.
        sift_errors: distances in pixels between the ends of SIFT matches and the interpolated
            correspondences, where these exist.
    """

    correspondences: int
    scale: float
    rotation: float
    sift_errors: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class SourceReport:
    """Figures of a source.

    Attributes:
        figures: plain values by name.
        sift_errors: SIFT errors of all pairs, see `PairFigures`.
        remarks: what the source left out.
        warnings: sentences on what looks wrong; none for a sound source.
        examples: some usable pairs.
    """

    figures: dict[str, Any]
    sift_errors: Array
    remarks: tuple[str, ...]
    warnings: tuple[str, ...]
    examples: tuple[TrainingPair, ...]


def check_source(
    source: Source,
    count: int = 100,
    seed: int = 0,
    examples: int = 8,
    progress: Progress = no_progress,
) -> SourceReport:
    """Draw pairs of a source and measure them.

    Args:
        source: the source.
        count: number of pairs to draw, at least 1.
        seed: decides which pairs.
        examples: number of usable pairs to keep.
        progress: called after each pair.

    Raises:
        InputError: `count` is less than 1, or no pair at all can be made.
    """
    if count < 1:
        raise InputError(f"the number of pairs to draw must be at least 1, not {count}")
    usable: list[PairFigures] = []
    kept: list[TrainingPair] = []
    problems: list[str] = []
    audits: dict[str, list[float]] = {}
    for number in range(count):
        rng = pair_generator(seed, number)
        index = int(rng.integers(len(source)))
        try:
            pair = source.pair(index, rng)
            if isinstance(source, ScenePairs):
                for name, value in source.audit(index, rng).items():
                    audits.setdefault(name, []).append(value)
        except D2NetError as error:
            problems.append(str(error))
            pair = None
        if pair is not None:
            usable.append(measure_pair(pair))
            if len(kept) < examples:
                kept.append(pair)
        progress("checking", number + 1, count)
    if len(problems) == count:
        raise InputError(f"no pair of {source.name} can be made: {problems[0]}")
    errors = np.array([error for pair in usable for error in pair.sift_errors], np.float64)
    figures = _figures(usable, errors) | {name: _median(audits[name]) for name in audits}
    return SourceReport(
        {
            "source": source.name,
            "pairs": len(source),
            "drawn": count,
            "usable_share": len(usable) / count,
            **figures,
        },
        errors,
        getattr(source, "remarks", ()),
        (*dict.fromkeys(problems), *_warnings(figures, len(usable), count)),
        tuple(kept),
    )


def _figures(pairs: Sequence[PairFigures], sift_errors: Array) -> dict[str, float]:
    counts = np.array([pair.correspondences for pair in pairs] or [0])
    figures = {
        "correspondences_median": float(np.median(counts)),
        "correspondences_min": int(counts.min()),
    }
    if pairs:
        scales = np.exp(np.abs(np.log([pair.scale for pair in pairs])))
        rotations = np.abs([pair.rotation for pair in pairs])
        figures |= {
            "scale_ratio_median": float(np.median(scales)),
            "scale_ratio_max": float(scales.max()),
            "rotation_median": float(np.median(rotations)),
            "rotation_max": float(rotations.max()),
        }
    figures["sift_matches"] = len(sift_errors)
    if len(sift_errors):
        figures["sift_error_median"] = float(np.median(sift_errors))
        figures["sift_agreement"] = float(np.mean(sift_errors <= AGREEMENT_PIXELS))
    return figures


def _warnings(figures: dict[str, float], usable: int, drawn: int) -> list[str]:
    sentences = []
    if usable < 0.5 * drawn:
        sentences.append(
            f"only {usable} of {drawn} pairs have enough correspondences: lower "
            "min_correspondences, or raise min_overlap"
        )
    meaningful = figures["sift_matches"] >= _MIN_SIFT_MATCHES * usable > 0
    if meaningful and figures["sift_agreement"] < _MIN_AGREEMENT:
        sentences.append(
            "most SIFT matches contradict the correspondences: poses, depth or alignment are "
            "wrong, or the scene is repetitive; look at the picture"
        )
    for name, (limit, advice) in _AUDIT_LIMITS.items():
        if figures.get(name, 0.0) > limit:
            sentences.append(f"{name} is {figures[name]:.3g}, over {limit:g}: {advice}")
    return sentences


def _median(values: list[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.median(known)) if known else float("nan")


def measure_pair(pair: TrainingPair) -> PairFigures:
    """Measure a pair's correspondences, and compare them with SIFT matches."""
    a, b = (points.astype(np.float64) for points in (pair.points_a, pair.points_b))
    # The similarity from a to b by least squares: with centred points as complex numbers,
    # b = factor * a.
    za, zb = (points @ (1, 1j) for points in (a - a.mean(axis=0), b - b.mean(axis=0)))
    norm = float(np.vdot(za, za).real)
    factor = np.vdot(za, zb) / norm if norm else 1.0
    matched_a, matched_b = _sift_matches(pair.image_a, pair.image_b)
    errors = np.linalg.norm(interpolate(matched_a, a, b) - matched_b, axis=1)
    return PairFigures(
        correspondences=len(a),
        scale=float(abs(factor)) or 1.0,
        rotation=float(np.degrees(np.angle(factor))),
        sift_errors=tuple(errors[np.isfinite(errors)].tolist()),
    )


def _sift_matches(image_a: RGB, image_b: RGB) -> tuple[Array, Array]:
    """N x 2 and N x 2 points of SIFT matches that pass the ratio test in both directions."""
    sift = cv2.SIFT.create(1000)
    (points_a, descriptors_a), (points_b, descriptors_b) = (
        sift.detectAndCompute(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)), None)
        for image in (image_a, image_b)
    )
    if len(points_a) < 2 or len(points_b) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    forward = _ratio_test(matcher.knnMatch(descriptors_a, descriptors_b, 2))
    backward = {(b, a) for a, b in _ratio_test(matcher.knnMatch(descriptors_b, descriptors_a, 2))}
    mutual = [pair for pair in forward if pair in backward]
    return (
        np.array([points_a[a].pt for a, _ in mutual], np.float64).reshape(-1, 2),
        np.array([points_b[b].pt for _, b in mutual], np.float64).reshape(-1, 2),
    )


def _ratio_test(candidates: Sequence[Any]) -> list[tuple[int, int]]:
    return [
        (first.queryIdx, first.trainIdx)
        for first, second in candidates
        if first.distance < _RATIO * second.distance
    ]
