"""Checks the pairs of a source before a night of training on them.

Correspondences are compared with SIFT matches between the crops (Lowe, "Distinctive Image Features
from Scale-Invariant Keypoints", IJCV 2004). SIFT knows nothing of poses, depth or alignment, so
wrong correspondences show within seconds. Scenes with known cameras are also checked for
consistency (`ScenePairs.audit`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from PIL import Image

from d2net.errors import D2NetError, InputError
from d2net.geometry.coordinates import Array
from d2net.io.drawn_pictures import write_picture
from d2net.progress import Progress, no_progress
from d2net.training.correspondences import interpolate
from d2net.training.sources.base import Source, TrainingPair, pair_generator
from d2net.training.sources.scenes import ScenePairs, median_known
from d2net.visualization import plot_points

AGREEMENT_PIXELS = 5.0  # within which a SIFT match agrees with the interpolated correspondence

_EXAMPLES = 8  # usable pairs of a report that can be drawn
_RATIO = 0.75  # of Lowe's ratio test: low, so that few SIFT matches are wrong
_MIN_AGREEMENT = 0.5  # share of SIFT matches; sound sources have over 0.9, depth cameras over 0.7
_MIN_SIFT_MATCHES = 4  # per pair; thermal and visible light have about one, by chance

_AUDIT_LIMITS = {
    "track_error_pixels": (3.0, "the tracks contradict the poses; use bundle-adjusted cameras"),
    "depth_error": (0.05, "depth and poses have different units, or belong to other photos"),
    "share_occluded": (0.5, "depths of two photos rarely agree; check their unit and the poses"),
}


class SourceReport(NamedTuple):
    """Figures of a source by name, remarks on left-out photos, warnings, and some usable pairs."""

    figures: dict[str, Any]
    remarks: tuple[str, ...]
    warnings: tuple[str, ...]
    examples: tuple[TrainingPair, ...]


def check_source(
    source: Source, count: int = 100, seed: int = 0, progress: Progress = no_progress
) -> SourceReport:
    """Draw pairs of a source and measure them."""
    if count < 1:
        raise InputError(f"the number of pairs to draw must be at least 1, not {count}")
    kept: list[TrainingPair] = []
    counts: list[int] = []
    problems: list[str] = []
    errors = np.empty(0)
    audits: defaultdict[str, list[float]] = defaultdict(list)
    for number in range(count):
        rng = pair_generator(seed, number)
        index = int(rng.integers(len(source)))
        pair = None
        try:
            pair = source.pair(index, rng)
            if isinstance(source, ScenePairs):
                for name, value in source.audit(index, rng).items():
                    audits[name].append(value)
        except D2NetError as error:
            problems.append(str(error))
        if pair is not None:
            counts.append(len(pair.points_a))
            errors = np.append(errors, sift_errors(pair))
            kept += [pair] * (len(kept) < _EXAMPLES)
        progress("checking", number + 1, count)
    if len(problems) == count:
        raise InputError(f"no pair of {source.name} can be made: {problems[0]}")
    figures: dict[str, Any] = {
        "source": source.name,
        "pairs": len(source),
        "drawn": count,
        "usable_share": len(counts) / count,
        "correspondences_median": float(np.median(counts or [0])),
        "correspondences_min": min(counts, default=0),
        "sift_matches": len(errors),
        "sift_error_median": median_known(errors),
        "sift_agreement": float(np.mean(errors <= AGREEMENT_PIXELS)) if len(errors) else None,
        **{name: median_known(np.array(values)) for name, values in audits.items()},
    }
    warnings = list(dict.fromkeys(problems))
    if len(counts) < 0.5 * count:
        warnings.append(
            f"only {len(counts)} of {count} pairs have enough correspondences: lower "
            "min_correspondences, or raise min_overlap"
        )
    meaningful = len(errors) >= _MIN_SIFT_MATCHES * len(counts) > 0
    if meaningful and np.mean(errors <= AGREEMENT_PIXELS) < _MIN_AGREEMENT:
        warnings.append(
            "most SIFT matches contradict the correspondences: poses, depth or alignment are "
            "wrong, or the scene is repetitive; look at the picture"
        )
    for name, (limit, advice) in _AUDIT_LIMITS.items():
        value = figures.get(name, 0.0)
        if not value <= limit:  # NaN if no point has an error
            found = f"{value:.3g}, over {limit:g}" if value > limit else "unknown"
            warnings.append(f"{name} is {found}: {advice}")
    return SourceReport(figures, getattr(source, "remarks", ()), tuple(warnings), tuple(kept))


def sift_errors(pair: TrainingPair) -> Array:
    """Distances in pixels between the ends of SIFT matches and the correspondences around them.

    The matches pass the ratio test in both directions. Those far from correspondences are left out.
    """
    sift, matcher = cv2.SIFT.create(1000), cv2.BFMatcher(cv2.NORM_L2)
    (points_a, descriptors_a), (points_b, descriptors_b) = (
        sift.detectAndCompute(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)), None)
        for image in (pair.image_a, pair.image_b)
    )
    if len(points_a) < 2 or len(points_b) < 2:
        return np.empty(0)

    def ratio_test(candidates: Sequence[Any]) -> list[tuple[int, int]]:
        return [
            (first.queryIdx, first.trainIdx)
            for first, second in candidates
            if first.distance < _RATIO * second.distance
        ]

    forward = ratio_test(matcher.knnMatch(descriptors_a, descriptors_b, 2))
    backward = ratio_test(matcher.knnMatch(descriptors_b, descriptors_a, 2))
    mutual = sorted(set(forward) & {(a, b) for b, a in backward})
    matched_a = np.array([points_a[a].pt for a, _ in mutual]).reshape(-1, 2)
    matched_b = np.array([points_b[b].pt for _, b in mutual]).reshape(-1, 2)
    partners = interpolate(matched_a, pair.points_a, pair.points_b)
    errors = np.linalg.norm(partners - matched_b, axis=1)
    return np.asarray(errors[np.isfinite(errors)])


def draw_pairs(pairs: Sequence[TrainingPair], output: Path) -> None:
    """Draw training pairs with their correspondences, two per row."""
    tiles = []
    for pair in pairs:
        images, points = (pair.image_a, pair.image_b), (pair.points_a, pair.points_b)
        names = [Path(photo).name for photo in pair.photos]
        tiles.append(np.asarray(plot_points(images, points, lines=30, names=names)))
    blank = np.zeros_like(tiles[0]) if tiles else np.zeros((32, 32, 3), np.uint8)
    tiles += [blank] * (len(tiles) % 2 or 2 * (not tiles))
    rows = [np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)]
    write_picture(output, Image.fromarray(np.vstack(rows)))
