"""Significance: whether matches agree by accident or because both photos show one place.

The number of inliers cannot tell this. Of 500 random matches, 30 to 50 fit the best of many
fundamental matrices, and true pairs across seasons have no more inliers. Significance is minus
log10 of the probability of such an agreement between photos of different places: 3 is one accident
in a thousand. Two tests give the probability:

- The fit, for all models: do the matches near the model gather closely around it? It is a number of
  false alarms (NFA; Moisan and Stival, IJCV 2004; Moulon et al., ACCV 2012). The usual NFA assumes
  that accidental partners lie anywhere in the photo. Learned features violate this: they match
  windows with windows and ground with ground. Both lie at similar heights in most photos, so
  nearly parallel epipolar lines fit them. So here only matches in a band around the model count.
- The order, for fundamental and essential matrices: are neighbours in one photo neighbours in the
  other? The null hypothesis swaps partners along their epipolar lines. A homography and a pose
  predict the partner itself, so nothing is left to swap.

docs/accuracy.md has the calibration of the thresholds. All points are in pixels, and all photo
sizes are (width, height).
"""

from __future__ import annotations

import math
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

from d2net.geometry.coordinates import Array
from d2net.geometry.epipolar import distances_from_lines, epipolar_lines
from d2net.geometry.homography import transfer_error

Rows = NDArray[np.int64]
Verdict: TypeAlias = Literal["same", "doubtful", "none"]

VERDICT_TEXT: dict[Verdict, str] = {
    "same": "same place",
    "doubtful": "doubtful whether this is the same place",
    "none": "no evidence that these show the same place",
}

SAME, DOUBTFUL = 2.0, 0.0
"""A pair above the first number shows the same place, one above the second is doubtful. Of
10,901 pairs of different places (docs/accuracy.md and experiments.md) none is above the first."""

_BAND, _BAND_THRESHOLDS = 0.02, 3.0
"""Half-width of the band around a model, as a share of the photo's longer side. It is at least this
multiple of an inlier's threshold."""

_POSE_BAND = 0.05  # instead of `_BAND`, radius around the projection of a 3D point

_PIXEL = 0.5  # smaller errors are not measured
_NEIGHBOURS = 8
_SWAPS = 10
_MIN_ORDERED = 12  # matches without which neighbourhoods mean nothing
_MAX_ORDERED = 200  # enough to decide, and quadratic in time
_CELL = 0.01  # of the order test, as a share of the photo's longer side


def verdict(significance: float) -> Verdict:
    """The verdict that follows from the significance of two photos' matches."""
    if significance > SAME:
        return "same"
    return "doubtful" if significance > DOUBTFUL else "none"


def nfa_significance(
    chances: Array, num_matches: int, sample_size: int, num_solutions: int
) -> float:
    """Minus log10 of the number of false alarms of a model, minimised over its thresholds.

    Equation 9 of Moulon et al., for samples from all N matches and inliers from the n in the band:
    NFA(k) = N_sol (n - N_s) C(N, N_s) C(n - N_s, k - N_s) p_k^(k - N_s). `chances` are, for each
    match in the band, the probability that an accidental partner in the band fits equally well.
    """
    n = len(chances)
    if n <= sample_size + 1:
        return -math.inf
    k = np.arange(sample_size + 1, n + 1)
    log_samples = _log10_choose(num_matches, np.array(sample_size))
    log_subsets = _log10_choose(n - sample_size, k - sample_size)
    log_chances = (k - sample_size) * np.log10(np.sort(chances)[sample_size:])
    log_nfa = math.log10(num_solutions * (n - sample_size)) + log_samples + log_subsets
    return -float((log_nfa + log_chances).min())


def _log10_choose(n: int, k: NDArray[Any]) -> Array:
    logs = gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1)
    return np.asarray(logs / math.log(10), dtype=np.float64)


def epipolar_significance(
    fundamental: Array,
    points_a: Array,
    points_b: Array,
    size_a: tuple[int, int],
    size_b: tuple[int, int],
    *,
    threshold: float,
    sample_size: int = 7,
    num_solutions: int = 3,
) -> float:
    """Significance of a fundamental matrix, x_b^T F x_a = 0, for matches of two photos.

    Order and fit are independent, so their significances add up. But the order alone must be
    significant, too: rows of windows lie on epipolar lines in any order.

    The points are N x 2, all matched points of the first photo and their partners in the second,
    outliers too. `threshold` is the largest error of an inlier. Keypoints that share a square of
    this size count once. `sample_size` matches determine the matrix (5 if it comes from an
    essential matrix), and give at most `num_solutions` matrices (10 for an essential matrix).
    """
    a, b = points_a, points_b
    unit_a, unit_b = max(size_a), max(size_b)
    lines_a, lines_b = epipolar_lines(fundamental.T, b), epipolar_lines(fundamental, a)
    pixels_a, pixels_b = distances_from_lines(lines_a, a), distances_from_lines(lines_b, b)
    best_first = np.argsort(np.maximum(pixels_a, pixels_b), kind="stable")

    rows = _one_per_cell(best_first, (a, threshold), (b, threshold))
    errors = np.maximum(pixels_a / unit_a, pixels_b / unit_b)[rows]
    unit = max(unit_a, unit_b)
    fit = _fit_significance(errors, unit, threshold, sample_size, num_solutions, power=1)

    inliers = best_first[np.maximum(pixels_a, pixels_b)[best_first] <= threshold]
    rows = _one_per_cell(inliers, (a, _CELL * unit_a), (b, _CELL * unit_b))[:_MAX_ORDERED]
    if len(rows) < _MIN_ORDERED:
        return -math.inf
    a, b, lines_a, lines_b = (values[rows] for values in (a, b, lines_a, lines_b))
    order = min(_order_significance(a, b, lines_b), _order_significance(b, a, lines_a))
    return min(order, order + fit)


def homography_significance(
    homography: Array,
    points_a: Array,
    points_b: Array,
    size_a: tuple[int, int],
    size_b: tuple[int, int],
    *,
    threshold: float,
) -> float:
    """Significance of a homography `b_from_a`; arguments as for `epipolar_significance`.

    Accidental partners near a predicted point lie around it, or along a line through it (a skyline,
    a row of windows). So their number is taken to grow with the distance to the power 1.5, between
    an area (2) and a line (1).
    """
    try:
        inverse: Array = np.linalg.inv(homography).astype(np.float64)
    except np.linalg.LinAlgError:
        return 0.0
    unit_a, unit_b = max(size_a), max(size_b)
    error = np.maximum(
        transfer_error(inverse, points_b, points_a) / unit_a,
        transfer_error(homography, points_a, points_b) / unit_b,
    )
    rows = np.argsort(error, kind="stable")
    rows = _one_per_cell(rows, (points_a, threshold), (points_b, threshold))
    return _fit_significance(error[rows], max(unit_a, unit_b), threshold, 4, 1, power=1.5)


def pose_significance(
    errors: Array,
    points: Array,
    image_size: tuple[int, int],
    *,
    threshold: float,
    sample_size: int = 3,
    num_solutions: int = 4,
) -> float:
    """Significance of an absolute pose, with a sample of 4 (10 solutions) for a focal length.

    `errors` are the N reprojection errors of all 2D-3D correspondences, outliers too, and `points`
    their N x 2 points in the photo. A point may have several correspondences. The best one counts,
    and its chance to fit by accident is multiplied by their number. Points in the same square of
    the size of the threshold count once.
    """
    _, point, tries = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    rows = _one_per_cell(np.argsort(errors, kind="stable"), (points, threshold))
    band = max(_POSE_BAND * max(image_size), _BAND_THRESHOLDS * threshold)
    near = rows[errors[rows] < band]
    chances = tries[point.ravel()[near]] * (np.maximum(errors[near], _PIXEL) / band) ** 2
    return nfa_significance(np.minimum(chances, 1.0), len(rows), sample_size, num_solutions)


def _fit_significance(
    errors: Array, unit: float, threshold: float, sample_size: int, num_solutions: int, power: float
) -> float:
    """Significance of errors, which are given as shares of `unit` pixels."""
    band = max(_BAND, _BAND_THRESHOLDS * threshold / unit)
    near = errors[errors < band]  # not where an error is not a number
    chances = (np.maximum(near, _PIXEL / unit) / band) ** power
    return nfa_significance(chances, len(errors), sample_size, num_solutions)


def _order_significance(a: Array, b: Array, lines_b: Array) -> float:
    """Minus log10 of the probability that neighbours in a are neighbours in b by accident.

    The null hypothesis: the partner of a match is any of the partners near its epipolar line. These
    are ranked by the number of neighbours that the match would share with them in both photos, and
    the rank of the true partner is uniform. Fisher's method combines the ranks, with Chernoff's
    bound of the gamma distribution's tail.
    """
    neighbours_a, neighbours_b = _neighbours(a), _neighbours(b)
    shared = neighbours_a @ neighbours_b.T  # [i, j]: shared neighbours if i had the partner of j
    from_line = np.abs(lines_b[:, :2] @ b.T + lines_b[:, 2:])
    np.fill_diagonal(from_line, np.inf)
    swaps = np.argpartition(from_line, _SWAPS, axis=1)[:, :_SWAPS]
    own, others = np.diag(shared)[:, None], np.take_along_axis(shared, swaps, axis=1)
    rank = 1 + (others > own).sum(axis=1) + (others == own).sum(axis=1) / 2
    trials = len(a)
    total = -np.log(rank / (_SWAPS + 1)).sum()
    if total <= trials:
        return 0.0
    return float(total - trials - trials * math.log(total / trials)) / math.log(10)


def _neighbours(points: Array) -> NDArray[np.float32]:
    """N x N, 1 where the column is among the nearest points of the row."""
    squared = (points**2).sum(axis=1)
    distance = squared[:, None] + squared - 2 * points @ points.T
    np.fill_diagonal(distance, np.inf)
    nearest = np.argpartition(distance, _NEIGHBOURS, axis=1)[:, :_NEIGHBOURS]
    marks = np.zeros(distance.shape, dtype=np.float32)
    np.put_along_axis(marks, nearest, 1, axis=1)
    return marks


def _one_per_cell(rows: Rows, *grids: tuple[Array, float]) -> Rows:
    """The first row of each cell, for one grid (points, cell size) after the other."""
    for points, size in grids:
        x, y = np.floor(points[rows] / size).T
        _, first = np.unique(x + 1e7 * y, return_index=True)
        rows = rows[np.sort(first)]
    return rows
