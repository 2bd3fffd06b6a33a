"""Significance: agreement that happens by accident, and agreement that does not."""

from __future__ import annotations

import math

import numpy as np
import pytest

from d2net.geometry import robust
from d2net.geometry.robust import RobustOptions
from d2net.geometry.significance import (
    DOUBTFUL,
    SAME,
    epipolar_significance,
    homography_significance,
    nfa_significance,
    verdict,
)

SIZE = (640, 480)
K = np.array([[600.0, 0, 319.5], [0, 600, 239.5], [0, 0, 1]])


def scene(rng, n, outliers, noise=0.7):
    """Matches of two views of random points on two walls and the ground, some of them wrong."""
    depth = np.where(rng.uniform(size=n) < 0.5, 8.0, 12.0)
    a = rng.uniform([0, 0], SIZE, (n, 2))
    X = np.c_[(a - K[:2, 2]) / 600 * depth[:, None], depth]
    X = X @ np.array([[0.985, 0, -0.174], [0, 1, 0], [0.174, 0, 0.985]]) + [2.0, 0.1, 0.3]
    b = X[:, :2] / X[:, 2:] * 600 + K[:2, 2] + rng.normal(0, noise, (n, 2))
    wrong = rng.uniform(size=n) < outliers
    b[wrong] = rng.uniform([0, 0], SIZE, (wrong.sum(), 2))
    return a, b


def significance(a, b, threshold=2.0, seed=0):
    matrix, _ = robust.estimate(
        "fundamental", a, b, RobustOptions(threshold=threshold, seed=seed, max_iterations=500)
    )
    if matrix is None:
        return 0.0
    return epipolar_significance(matrix, a, b, SIZE, SIZE, threshold=threshold)


def test_one_scene_is_significant_among_outliers():
    for seed in range(10):
        assert significance(*scene(np.random.default_rng(seed), 300, outliers=0.5)) > SAME


def test_random_matches_of_1000_pairs_are_none():
    rng = np.random.default_rng(0)
    found = [
        significance(*rng.uniform([0, 0], SIZE, (2, 60, 2)), threshold=3.0) for _ in range(1000)
    ]
    assert max(found) < DOUBTFUL


def test_random_homographies_are_none():
    rng = np.random.default_rng(0)
    for _ in range(100):
        a, b = rng.uniform([0, 0], SIZE, (2, 120, 2))
        matrix, _ = robust.estimate("homography", a, b, RobustOptions(threshold=4.0))
        if matrix is not None:
            assert homography_significance(matrix, a, b, SIZE, SIZE, threshold=4.0) < DOUBTFUL


def test_a_plane_is_significant_among_outliers():
    rng = np.random.default_rng(0)
    H = np.array([[0.9, 0.1, 20], [-0.05, 1.1, 5], [1e-4, 2e-4, 1]])
    a = rng.uniform([0, 0], SIZE, (200, 2))
    b = np.c_[a, np.ones(200)] @ H.T
    b = b[:, :2] / b[:, 2:] + rng.normal(0, 0.7, (200, 2))
    b[60:] = rng.uniform([0, 0], SIZE, (140, 2))
    assert homography_significance(H, a, b, SIZE, SIZE, threshold=3.0) > SAME


@pytest.mark.parametrize("spread", [10.0, 30.0])
def test_things_of_one_kind_at_the_same_height_are_none(spread):
    """Ground matches ground and windows match windows, all of them somewhere along the row."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.uniform([0, 0], SIZE, (2, 400, 2))
        b[:, 1] = a[:, 1] + rng.normal(0, spread, 400)
        assert significance(a, b, threshold=3.0) < SAME


def test_rows_of_windows_of_two_houses_are_not_the_same_place():
    """All matches lie on epipolar lines, but not in the same order."""
    rng = np.random.default_rng(0)
    rows = np.linspace(40, 440, 8)
    for _ in range(20):
        y = rng.choice(rows, 150)
        a = np.c_[rng.uniform(0, 640, 150), y] + rng.normal(0, 0.7, (150, 2))
        b = np.c_[rng.uniform(0, 640, 150), y] + rng.normal(0, 0.7, (150, 2))
        assert verdict(significance(a, b)) != "same"


def test_copies_of_one_match_count_once():
    rng = np.random.default_rng(0)
    a, b = scene(rng, 30, outliers=0.0)
    few = significance(a, b)
    copied = np.repeat(a, 20, axis=0), np.repeat(b, 20, axis=0)
    assert significance(*copied) == pytest.approx(few, abs=3)


def test_number_of_false_alarms_by_hand():
    """Of 20 matches 10 are near and 9 fit to a hundredth: 2 x 7 x C(20, 3) x C(7, 6) x 0.01^6."""
    chances = np.array([0.01] * 9 + [1.0])
    expected = -math.log10(2 * 7 * 1140 * 7 * 0.01**6)
    assert nfa_significance(chances, 20, sample_size=3, num_solutions=2) == pytest.approx(expected)
