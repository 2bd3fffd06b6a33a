"""Pairs with hand-marked correspondences and no camera, as WxBS (Mishkin et al., BMVC 2015).

The test of day against night, season and sensor: a fundamental matrix is estimated from the matches
of a pair, and counted is the share of the marked correspondences that lie near their epipolar
lines, averaged over distances of 1 to 20 px (mAA).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.metrics import accuracy
from d2net.evaluation.results import Drawing, Figures, PairResult, Result, averaged
from d2net.features import Features
from d2net.geometry import robust
from d2net.geometry.epipolar import sampson_distance
from d2net.geometry.robust import RobustOptions
from d2net.io.image_lists import EXTENSIONS
from d2net.matching import match

Array = NDArray[np.float64]

THRESHOLDS = tuple(range(1, 21))
MAX_ITERATIONS = 20_000
DRAWN_AS_RIGHT = 5.0
"""A match is drawn as right within this distance (pixels) of the geometry of the marks."""


@dataclass(frozen=True)
class MarkedPair:
    """Two photos and the correspondences that a person has marked.

    Attributes:
        group: the folder that the pair's folder lies in, relative to the evaluated one.
        first: photo 01.
        second: photo 02.
        marks_a: N x 2 (x, y) in pixels of photo 01.
        marks_b: N x 2 (x, y), their partners in photo 02.
    """

    group: str
    first: Path
    second: Path
    marks_a: Array
    marks_b: Array


def find_pairs(folder: Path) -> list[MarkedPair]:
    """Pairs in all folders below a folder that hold photos `01.*` and `02.*` and `corrs.txt`.

    Raises:
        InputError: no such folder, or no pair in it.
        FormatError: a photo or `corrs.txt` is missing, or that does not hold rows of
            `x1 y1 x2 y2`.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    marked = {path.parent for path in folder.rglob("corrs.txt")}
    with_photo = {path.parent for path in folder.rglob("01.*") if _is_photo(path)}
    pairs = [_pair(folder, path) for path in sorted(marked | with_photo)]
    if not pairs:
        raise InputError(
            f"{folder} holds no pair: folders with photos 01 and 02 (as 01.png) and corrs.txt are "
            "expected"
        )
    return pairs


def _is_photo(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS


def _pair(root: Path, folder: Path) -> MarkedPair:
    photos = []
    for name in ("01", "02"):
        found = [path for path in sorted(folder.glob(f"{name}.*")) if _is_photo(path)]
        if not found:
            raise FormatError(f"{folder} has no photo {name} (as {name}.png or {name}.jpg)")
        photos.append(found[0])
    group = folder.parent.relative_to(root).as_posix() if folder != root else "."
    marks = _marks(folder / "corrs.txt")
    if group == ".":
        group = root.resolve().name
    return MarkedPair(group, photos[0], photos[1], marks[:, :2], marks[:, 2:])


def _marks(path: Path) -> Array:
    """N x 4 marks of `x1 y1 x2 y2`."""
    if not path.is_file():
        raise FormatError(f"{path.parent} has no corrs.txt with its marked correspondences")
    try:
        rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        marks = np.array([row for row in rows if row], dtype=np.float64)
    except ValueError as error:  # text that is no number, and rows of different length
        raise FormatError(f"{path} does not hold rows of four numbers x1 y1 x2 y2") from error
    if marks.size == 0:
        raise FormatError(f"{path} holds no correspondence; rows of x1 y1 x2 y2 are expected")
    if marks.shape[1] != 4:
        raise FormatError(
            f"{path} holds rows of {marks.shape[1]} numbers; four are expected: x1 y1 x2 y2"
        )
    if not np.isfinite(marks).all():
        raise FormatError(f"{path} holds numbers that are not finite")
    return marks


def evaluate_epipolar(
    source: CachedFeatures,
    folder: Path,
    *,
    max_keypoints: int | None = None,
    threshold: float = 1.0,
    seeds: Sequence[int] = (0, 1, 2),
    report: Callable[[str, int], None] | None = None,
) -> Result:
    """Epipolar geometry from a source's matches, judged by hand-marked correspondences.

    Args:
        source: features.
        folder: see `find_pairs`.
        max_keypoints: the best by score; None for all.
        threshold: of MAGSAC, in pixels.
        seeds: of its samples; figures are means over them.
        report: called after each pair with its name and how many are left.

    Returns:
        Per pair, with means per group and overall: `within@t`, the share of marks of which both
        points are within t px of the other's epipolar line, for t from 1 to 20; `mAA`, their mean;
        `mAA seed=s` of each seed and `mAA spread`, the largest less the smallest; `features`,
        `matches` and `inliers`. A pair without a fundamental matrix has none of its marks within.
    """
    if not seeds:
        raise InputError("at least one seed is needed")
    pairs = find_pairs(folder)
    options = [
        RobustOptions(threshold=threshold, max_iterations=MAX_ITERATIONS, seed=seed)
        for seed in seeds
    ]
    results = []
    for left, pair in zip(range(len(pairs) - 1, -1, -1), pairs, strict=True):
        names = tuple(path.relative_to(folder).as_posix() for path in (pair.first, pair.second))
        a, b = (
            source.features(path, name).best(max_keypoints)
            for path, name in zip((pair.first, pair.second), names, strict=True)
        )
        results.append(_evaluate_pair(pair, (names[0], names[1]), a, b, options))
        if report is not None:
            report(f"{pair.group} {pair.first.parent.name}", left)
    groups = averaged(results)
    for figures in groups.values():
        _add_spread(figures, options)  # the spread of the mean, not the mean of the spreads
    return Result(
        protocol="epipolar",
        method=source.name,
        folder=str(folder),
        provenance=source.source.provenance(),
        settings={
            "max_keypoints": max_keypoints,
            "threshold": threshold,
            "seeds": list(seeds),
            "max_iterations": MAX_ITERATIONS,
        },
        pairs=results,
        groups=groups,
        headline=["mAA", "mAA spread", "within@3", "within@10", "features", "matches", "inliers"],
        curve={float(t): f"within@{t}" for t in THRESHOLDS},
    )


def _evaluate_pair(
    pair: MarkedPair,
    names: tuple[str, str],
    a: Features,
    b: Features,
    options: Sequence[RobustOptions],
) -> PairResult:
    matches = match(a, b)
    rows_a, rows_b = matches.indices.T.numpy()
    points_a = a.keypoints.double().numpy()[rows_a]
    points_b = b.keypoints.double().numpy()[rows_b]
    shares, inliers = [], []
    for option in options:
        F, marks = robust.fundamental(points_a, points_b, option)
        distances = line_distance(F, pair.marks_a, pair.marks_b) if F is not None else np.inf
        shares.append(accuracy(np.broadcast_to(distances, len(pair.marks_a)), THRESHOLDS))
        inliers.append(np.count_nonzero(marks))
    within = np.mean(shares, axis=0)
    figures = {f"within@{t}": float(share) for t, share in zip(THRESHOLDS, within, strict=True)}
    figures["mAA"] = float(within.mean())
    for option, share in zip(options, shares, strict=True):
        figures[_seed_figure(option)] = float(share.mean())
    _add_spread(figures, options)
    figures["features"] = (len(a) + len(b)) / 2
    figures["matches"] = float(len(matches))
    figures["inliers"] = float(np.mean(inliers))
    return PairResult(pair.group, names, figures, _drawing(pair, points_a, points_b))


def _seed_figure(option: RobustOptions) -> str:
    return f"mAA seed={option.seed}"


def _add_spread(figures: Figures, options: Sequence[RobustOptions]) -> None:
    values = [figures[_seed_figure(option)] for option in options]
    figures["mAA spread"] = max(values) - min(values)


def line_distance(F: Array, points_a: Array, points_b: Array) -> Array:
    """The larger of the two distances of points from their epipolar lines, in pixels.

    Args:
        F: 3 x 3 with x_b^T F x_a = 0.
        points_a: N x 2 (x, y) in pixels.
        points_b: N x 2 (x, y) in pixels.

    Returns:
        N distances; infinite where a line is not defined (the point is the epipole).
    """
    line_b = points_a @ F[:, :2].T + F[:, 2]
    line_a = points_b @ F[:2] + F[2]
    algebraic = np.abs(np.sum(line_b[:, :2] * points_b, axis=1) + line_b[:, 2])
    steepness = [np.hypot(line[:, 0], line[:, 1]) for line in (line_a, line_b)]
    smaller = np.minimum(*steepness)
    distances = np.full(len(algebraic), np.inf)
    np.divide(algebraic, smaller, out=distances, where=smaller > 0)
    return distances


def _drawing(pair: MarkedPair, points_a: Array, points_b: Array) -> Drawing | None:
    """The matches, right where they agree with the geometry of the marks; None without one."""
    F, _ = robust.fundamental(pair.marks_a, pair.marks_b, RobustOptions(threshold=DRAWN_AS_RIGHT))
    if F is None:
        return None
    return Drawing(
        points_a.astype(np.float32),
        points_b.astype(np.float32),
        sampson_distance(F, points_a, points_b) <= DRAWN_AS_RIGHT,
    )
