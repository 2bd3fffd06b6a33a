"""Keypoints with known errors are adjusted back."""

from __future__ import annotations

import numpy as np
import pytest

from d2net.matching.keypoint_adjustment import MatchShifts, adjust_keypoints

PHOTOS, POINTS = 4, 50


def match_shifts(first, second, shifts, affine=None, deviation=0.05):
    count = len(first)
    return MatchShifts(
        np.asarray(first, np.int64),
        np.asarray(second, np.int64),
        np.asarray(shifts, float).reshape(count, 2),
        np.tile(np.eye(2), (count, 1, 1)) if affine is None else affine,
        np.tile(np.eye(2) / deviation**2, (count, 1, 1)),
    )


@pytest.fixture
def made():
    """Every point in every photo, all pairs: the errors, and what matches ask for."""
    chance = np.random.default_rng(0)
    errors = chance.normal(0, 1, (PHOTOS * POINTS, 2))
    views = np.eye(2) + chance.normal(0, 0.2, (PHOTOS, 2, 2))
    pairs = [(a, b) for a in range(PHOTOS) for b in range(a + 1, PHOTOS)]
    first, second = (
        np.concatenate([p[i] * POINTS + np.arange(POINTS) for p in pairs]) for i in (0, 1)
    )
    affine = (views @ np.linalg.inv(views[:, None]))[first // POINTS, second // POINTS]
    shifts = -errors[second] + np.einsum("nij,nj->ni", affine, errors[first])
    shifts += chance.normal(0, 0.05, shifts.shape)
    return errors, match_shifts(first, second, shifts, affine)


def disagreement(matches, places):
    """How far the keypoints of each match are from showing one point."""
    moved = np.einsum("nij,nj->ni", matches.affine, places[matches.first])
    return np.linalg.norm(places[matches.second] - moved, axis=1)


def test_keypoints_of_a_track_show_one_point(made):
    errors, matches = made
    moves, agree = adjust_keypoints([matches], np.ones(len(errors)))
    assert agree.all()
    assert np.median(disagreement(matches, errors)) > 1
    assert np.median(disagreement(matches, errors + moves)) < 0.07


def test_they_stay_near_to_where_they_were_detected_the_surer_nearer(made):
    errors, matches = made
    deviations = np.where(np.arange(len(errors)) < POINTS, 0.1, 1.0)  # the first photo's are sure
    moves, _ = adjust_keypoints([matches], deviations)
    lengths = np.linalg.norm(moves, axis=1).reshape(PHOTOS, POINTS).mean(axis=1)
    assert lengths[0] < 0.2 * lengths[1:].min()
    moves, _ = adjust_keypoints([matches], np.ones(len(errors)))
    lengths = np.linalg.norm(moves, axis=1).reshape(PHOTOS, POINTS).mean(axis=1)
    assert lengths.max() < 2 * lengths.min()


def test_a_wrong_match_does_not_pull(made):
    errors, matches = made
    shifts = matches.shifts.copy()
    shifts[:POINTS] += 3  # of one pair
    before, _ = adjust_keypoints([matches], np.ones(len(errors)))
    after, _ = adjust_keypoints([matches._replace(shifts=shifts)], np.ones(len(errors)))
    assert np.linalg.norm(after - before, axis=1).max() < 0.2


def test_what_nothing_agrees_with_stays():
    matches = match_shifts([0, 0], [1, 1], [[5, 0], [-5, 0]])
    moves, agree = adjust_keypoints([matches], np.full(3, 0.5))
    assert not agree.any()
    assert (moves == 0).all()


def test_along_an_edge_a_match_says_nothing():
    matches = match_shifts([0], [1], [[1.0, 1.0]])
    matches = matches._replace(information=np.array([[[400.0, 0], [0, 1e-6]]]))
    moves, _ = adjust_keypoints([matches], np.ones(2))
    np.testing.assert_allclose(moves, [[-0.5, 0], [0.5, 0]], atol=0.01)


def test_without_matches_nothing_moves():
    moves, agree = adjust_keypoints([], np.ones(5))
    assert (moves == 0).all()
    assert not agree.any()
