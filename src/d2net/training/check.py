"""A look at what a source yields, before a night of training on it.

Correspondences are compared with SIFT matches between the crops (Lowe, "Distinctive Image Features
from Scale-Invariant Keypoints", IJCV 2004), which know nothing of poses, depth or alignment: wrong
ones show in seconds. Scenes with known cameras are also checked against themselves (`PosedPairs.
audit`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from d2net.errors import D2NetError, InputError
from d2net.geometry.robust import Array
from d2net.training.sources.base import Source, TrainingPair, generator
from d2net.training.sources.scenes import PosedPairs
from d2net.training.views import Crop

AGREEMENT_PIXELS = 5.0
"""A SIFT match agrees if it ends this near to where the correspondences around it lead."""

_RATIO = 0.75  # Lowe's ratio test: SIFT matches should be few and right here
_NEIGHBOURS, _REACH = 8, 24.0  # correspondences that say where a point goes, and how near they are


@dataclass(frozen=True)
class PairFigures:
    """What one pair is like.

    Attributes:
        correspondences: how many.
        scale: how many pixels of crop b a pixel of crop a is.
        rotation: degrees by which crop b is turned against a.
        sift_matches: how many there are where correspondences are near.
        sift_errors: how far each of these ends from where the correspondences lead, pixels.
    """

    correspondences: int
    scale: float
    rotation: float
    sift_errors: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Checked:
    """What was found in a source.

    Attributes:
        name: of the source.
        pairs: distinct pairs that it has.
        drawn: pairs that were drawn.
        usable: pairs drawn that had correspondences enough.
        figures: of the usable ones.
        audits: what the source says about its own poses and depth, by name, an entry a pair.
        problems: sentences of pairs that could not be made.
        examples: some usable pairs, to be drawn.
        remarks: what the source left out.
    """

    name: str
    pairs: int
    drawn: int
    usable: int
    figures: tuple[PairFigures, ...]
    audits: dict[str, NDArray[np.float64]]
    problems: tuple[str, ...]
    examples: tuple[TrainingPair, ...] = field(repr=False)
    remarks: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The figures as plain values."""
        counts = np.array([figures.correspondences for figures in self.figures] or [0])
        values: dict[str, Any] = {
            "source": self.name,
            "pairs": self.pairs,
            "drawn": self.drawn,
            "usable_share": self.usable / self.drawn,
            "correspondences_median": float(np.median(counts)),
            "correspondences_min": int(counts.min()),
        }
        if self.figures:
            scales = np.exp(np.abs(np.log([figures.scale for figures in self.figures])))
            turns = np.abs([figures.rotation for figures in self.figures])
            values |= {
                "scale_ratio_median": float(np.median(scales)),
                "scale_ratio_max": float(scales.max()),
                "rotation_median": float(np.median(turns)),
                "rotation_max": float(turns.max()),
            }
        errors = self.sift_errors
        values["sift_matches"] = len(errors)
        if len(errors):
            values["sift_error_median"] = float(np.median(errors))
            values["sift_agreement"] = float(np.mean(errors <= AGREEMENT_PIXELS))
        values |= {name: _median(entries) for name, entries in self.audits.items()}
        values |= {"remarks": list(self.remarks), "warnings": self.warnings()}
        return values

    @property
    def sift_errors(self) -> Array:
        """Of all pairs together."""
        return np.array([e for figures in self.figures for e in figures.sift_errors], np.float64)

    def warnings(self) -> list[str]:
        """Sentences on what looks wrong; none for a sound source."""
        found = list(dict.fromkeys(self.problems))
        errors = self.sift_errors
        if self.usable < 0.5 * self.drawn:
            found.append(
                f"only {self.usable} of {self.drawn} pairs have correspondences enough: lower "
                "min_correspondences, or raise min_overlap"
            )
        enough = len(errors) >= _FEWEST_SIFT * self.usable > 0
        if enough and np.mean(errors <= AGREEMENT_PIXELS) < _LEAST_AGREEMENT:
            found.append(
                "most SIFT matches contradict the correspondences: poses, depth or alignment are "
                "wrong, or the scene repeats itself; look at the picture"
            )
        for name, (limit, advice) in _LIMITS.items():
            entries = self.audits.get(name)
            if entries is not None and _median(entries) > limit:
                found.append(f"{name} is {_median(entries):.3g}, over {limit:g}: {advice}")
        return found


_LEAST_AGREEMENT = 0.5
"""Sound sources have over 0.9, handheld depth cameras over 0.7."""

_FEWEST_SIFT = 4
"""SIFT matches per pair below which their agreement says nothing: between heat and light, for
example, SIFT finds about one a pair, and that one by chance."""

_LIMITS = {
    "track_error_pixels": (3.0, "the tracks contradict the poses; use bundle-adjusted cameras"),
    "depth_error": (0.05, "depth and poses have different units, or belong to other photos"),
    "share_occluded": (0.5, "depths of two photos rarely agree; check their unit and the poses"),
}


def _median(entries: NDArray[np.float64]) -> float:
    known = entries[np.isfinite(entries)]
    return float(np.median(known)) if len(known) else float("nan")


def check(
    source: Source,
    count: int = 100,
    seed: int = 0,
    examples: int = 8,
    report: Callable[[str, int], None] | None = None,
) -> Checked:
    """Draw pairs of a source and measure them.

    Args:
        source: any.
        count: how many pairs to draw, at least 1.
        seed: decides which.
        examples: how many of them to keep for a picture.
        report: called after each pair with its number and how many are left.

    Raises:
        InputError: `count` is less than 1, or no pair at all can be made.
    """
    if count < 1:
        raise InputError(f"at least 1 pair must be drawn, not {count}")
    figures: list[PairFigures] = []
    kept: list[TrainingPair] = []
    problems: list[str] = []
    audits: dict[str, list[float]] = {}
    for number in range(count):
        rng = generator(seed, number)
        index = int(rng.integers(len(source)))
        try:
            pair = source.pair(index, rng)
            if isinstance(source, PosedPairs):
                for name, value in source.audit(index, rng).items():
                    audits.setdefault(name, []).append(value)
        except D2NetError as error:
            problems.append(str(error))
            pair = None
        if pair is not None:
            figures.append(measure(pair))
            if len(kept) < examples:
                kept.append(pair)
        if report is not None:
            report(str(number + 1), count - number - 1)
    if len(problems) == count:
        raise InputError(f"no pair of {source.name} can be made: {problems[0]}")
    return Checked(
        name=source.name,
        pairs=len(source),
        drawn=count,
        usable=len(figures),
        figures=tuple(figures),
        audits={name: np.array(values) for name, values in audits.items()},
        problems=tuple(problems),
        examples=tuple(kept),
        remarks=getattr(source, "remarks", ()),
    )


def measure(pair: TrainingPair) -> PairFigures:
    """Count, scale and rotation of a pair's correspondences, and whether SIFT agrees with them."""
    a, b = (points.astype(np.float64) for points in (pair.points_a, pair.points_b))
    scale, rotation = _similarity(a, b)
    matched_a, matched_b = _sift_matches(pair.image_a, pair.image_b)
    errors = np.hypot(*(_carried(matched_a, a, b) - matched_b).T)
    return PairFigures(
        correspondences=len(a),
        scale=scale,
        rotation=rotation,
        sift_errors=tuple(errors[np.isfinite(errors)].tolist()),
    )


def _similarity(a: Array, b: Array) -> tuple[float, float]:
    """Scale and rotation (degrees) of the similarity that takes points a to b best.

    Least squares in the complex plane: with centred points, b = factor * a.
    """
    za, zb = (points @ (1, 1j) for points in (a - a.mean(axis=0), b - b.mean(axis=0)))
    norm = float(np.vdot(za, za).real)
    factor = np.vdot(za, zb) / norm if norm else 1.0
    return float(abs(factor)) or 1.0, float(np.degrees(np.angle(factor)))


def _sift_matches(image_a: Crop, image_b: Crop) -> tuple[Array, Array]:
    """N x 2 and N x 2 points of SIFT matches that pass the ratio test both ways."""
    sift = cv2.SIFT.create(1000)
    found = [
        sift.detectAndCompute(np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)), None)
        for image in (image_a, image_b)
    ]
    (keys_a, words_a), (keys_b, words_b) = found
    if len(keys_a) < 2 or len(keys_b) < 2:
        return np.empty((0, 2)), np.empty((0, 2))
    matcher = cv2.BFMatcher(cv2.NORM_L2)
    there = _passed(matcher.knnMatch(words_a, words_b, 2))
    back = {(b, a) for a, b in _passed(matcher.knnMatch(words_b, words_a, 2))}
    rows = [pair for pair in there if pair in back]
    return (
        np.array([keys_a[a].pt for a, _ in rows], np.float64).reshape(-1, 2),
        np.array([keys_b[b].pt for _, b in rows], np.float64).reshape(-1, 2),
    )


def _passed(candidates: Sequence[Any]) -> list[tuple[int, int]]:
    return [
        (first.queryIdx, first.trainIdx)
        for first, second in candidates
        if first.distance < _RATIO * second.distance
    ]


def _carried(points: Array, a: Array, b: Array) -> Array:
    """Where correspondences a -> b around them carry N x 2 points; not a number where none are.

    By the affine map that fits the nearest correspondences best.
    """
    from scipy.spatial import cKDTree

    carried = np.full((len(points), 2), np.nan)
    if len(points) == 0 or len(a) < _NEIGHBOURS:
        return carried
    found: Any = cKDTree(a).query(points, _NEIGHBOURS)
    distances, rows = found
    for i in np.flatnonzero(distances[:, -1] <= _REACH):
        near = rows[i]
        # Around the point itself, so that the constant term is the answer.
        design = np.hstack([a[near] - points[i], np.ones((_NEIGHBOURS, 1))])
        solution, _, rank, _ = np.linalg.lstsq(design, b[near], rcond=1e-3)
        if rank == 3:
            carried[i] = solution[2]
    return carried
