"""Pairs with hand-marked correspondences and no cameras, as in WxBS (Mishkin et al., BMVC 2015).

This is the test of day against night, season and sensor. A fundamental matrix is estimated from the
matches of a pair. The figure is the share of the marked correspondences that lie near their
epipolar lines, averaged over distances of 1 to 20 px (mAA).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedSource
from d2net.evaluation.pair_protocol import PhotoPair, accuracy, evaluate_pairs, matched_points
from d2net.evaluation.results import (
    COUNTS,
    Curve,
    Drawing,
    Figures,
    Metric,
    Protocol,
    Result,
    averaged,
)
from d2net.features import Features, Matches
from d2net.geometry import robust
from d2net.geometry.coordinates import Array
from d2net.geometry.epipolar import distances_from_lines, epipolar_lines, sampson_distance
from d2net.geometry.robust import RobustOptions
from d2net.io.image_lists import EXTENSIONS
from d2net.io.text_lists import finite_numbers, read_lines
from d2net.progress import Progress, no_progress

WITHIN = Curve(
    "within", tuple(range(1, 21)), "share of marks within the threshold of their epipolar lines"
)
SEEDS = (0, 1, 2)  # of MAGSAC's random samples; figures are means over them
THRESHOLD, MAX_ITERATIONS = 1.0, 20_000  # of MAGSAC; the threshold in pixels
DRAWN_AS_CORRECT = 5.0
"""A match is drawn as correct within this distance (pixels) of the geometry of the marks."""
_ROWS = "lines of x1 y1 x2 y2"

PROTOCOL = Protocol(
    "epipolar",
    "Hand-marked correspondences",
    "A fundamental matrix is estimated from the matches of each pair and compared with "
    "correspondences marked by hand, which count if both points lie close to their epipolar lines.",
    correct=f"within {DRAWN_AS_CORRECT:g} px of the geometry of the marks",
)
_HEADLINE = [
    Metric("mAA", "mean accuracy: the mean of within@t over t from 1 to 20 px"),
    Metric("mAA spread", "largest minus smallest mAA over the seeds", higher_is_better=False),
    WITHIN.metric(3),
    WITHIN.metric(10),
    *COUNTS,
    Metric("inliers", "mean number of matches that fit the estimated fundamental matrix"),
]


@dataclass(frozen=True)
class MarkedPair(PhotoPair):
    """Photos 01 and 02, and the correspondences marked in them: N x 2 (x, y) in pixels."""

    marks_a: Array
    marks_b: Array


def find_pairs(folder: Path) -> list[MarkedPair]:
    """Pairs in all folders below a folder that hold `corrs.txt` and photos `01.*` and `02.*`."""
    pairs = []
    lists, seen = [], set[Path]()
    for place, folders, files in os.walk(folder, followlinks=True):
        folders.sort()
        if (real := Path(place).resolve()) in seen:
            folders.clear()  # a link back
        elif "corrs.txt" in files:
            lists.append(Path(place, "corrs.txt"))
        seen.add(real)
    for corrs in sorted(lists):
        here, photos = corrs.parent, []
        for name in ("01", "02"):
            paths = [p for p in sorted(here.glob(f"{name}.*")) if p.suffix.lower() in EXTENSIONS]
            if len(paths) != 1:
                found = ", ".join(path.name for path in paths) or "none"
                raise FormatError(f"{here} needs one photo {name} ({name}.png), but has {found}")
            photos.append(paths[0])
        rows = []
        for number, line in read_lines(corrs, _ROWS):
            rows.append(finite_numbers(line.split(), 4))
            if rows[-1] is None:
                raise FormatError(f"{corrs}, line {number}: expected {_ROWS}, not {line[:80]!r}")
        if not rows:
            raise FormatError(f"{corrs} is empty; expected {_ROWS}")
        marks = np.array(rows)
        group = "." if here == folder else here.parent.relative_to(folder).as_posix()
        group = folder.resolve().name if group == "." else group
        pairs.append(MarkedPair(group, (photos[0], photos[1]), marks[:, :2], marks[:, 2:]))
    if not pairs:
        raise InputError(
            f"{folder} holds no pair: expected folders with photos 01 and 02 and corrs.txt"
        )
    return pairs


def evaluate_epipolar(
    source: CachedSource, folder: Path, *, progress: Progress = no_progress
) -> Result:
    """Compare epipolar geometry from matches with the marks of the pairs in a folder.

    Returns:
        Per pair, with means per group and overall: `within@t`, the share of marks whose points both
        lie within t px of their epipolar lines, for t from 1 to 20; `mAA`, the mean of these;
        `mAA seed=S` for each seed S, and `mAA spread`, the largest minus the smallest; `features`,
        `matches` and `inliers`. Without a fundamental matrix all marks of a pair are wrong.
    """
    pairs = evaluate_pairs(source, folder, find_pairs(folder), _judge, progress)
    groups = averaged(pairs)
    for figures in groups.values():
        _add_spread(figures)  # the spread of the mean, not the mean of the spreads
    return Result(
        PROTOCOL,
        *source.described(folder),
        {"seeds": SEEDS, "threshold": THRESHOLD, "max_iterations": MAX_ITERATIONS},
        pairs,
        groups,
        _HEADLINE,
        pair_metrics=[WITHIN.metric(10), *_HEADLINE],
        curve=WITHIN,
    )


def _judge(
    pair: MarkedPair, a: Features, b: Features, matches: Matches
) -> tuple[Figures, Drawing | None]:
    points_a, points_b = matched_points(a, b, matches)
    figures: Figures = {}
    shares, num_inliers = [], []
    for seed in SEEDS:
        options = RobustOptions(threshold=THRESHOLD, max_iterations=MAX_ITERATIONS, seed=seed)
        F, inliers = robust.estimate("fundamental", points_a, points_b, options)
        distances = np.full(len(pair.marks_a), np.inf)
        if F is not None:
            distances = line_distance(F, pair.marks_a, pair.marks_b)
        shares.append(accuracy(distances, WITHIN.thresholds))
        num_inliers.append(np.count_nonzero(inliers))
        figures[f"mAA seed={seed}"] = float(shares[-1].mean())
    figures |= WITHIN.figures(np.mean(shares, axis=0))
    figures["mAA"] = float(np.mean(shares))
    figures["inliers"] = float(np.mean(num_inliers))
    _add_spread(figures)

    # Matches that agree with the geometry of the marks are drawn as correct.
    at_marks = RobustOptions(threshold=DRAWN_AS_CORRECT)
    F, _ = robust.estimate("fundamental", pair.marks_a, pair.marks_b, at_marks)
    if F is None:
        return figures, None
    correct = sampson_distance(F, points_a, points_b) <= DRAWN_AS_CORRECT
    return figures, Drawing(points_a, points_b, correct)


def _add_spread(figures: Figures) -> None:
    values = [figures[f"mAA seed={seed}"] for seed in SEEDS]
    figures["mAA spread"] = max(values) - min(values)


def line_distance(F: Array, points_a: Array, points_b: Array) -> Array:
    """The larger of the distances of corresponding points (N x 2) from their epipolar lines.

    F has x_b^T F x_a = 0. The distance is infinite where a point is the epipole and has no line.
    """
    in_a = distances_from_lines(epipolar_lines(F.T, points_b), points_a)
    in_b = distances_from_lines(epipolar_lines(F, points_a), points_b)
    return np.nan_to_num(np.maximum(in_a, in_b), nan=np.inf, posinf=np.inf)
