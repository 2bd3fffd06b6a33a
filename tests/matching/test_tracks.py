"""Keypoints moved along tracks: what is known of them is found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from d2net.matching.tracks import Displacements, joined, settle

PHOTOS, POINTS = 4, 50


def displacements(first, second, shifts, frames=None, deviation=0.05):
    count = len(first)
    return Displacements(
        np.asarray(first, np.int64),
        np.asarray(second, np.int64),
        np.asarray(shifts, float).reshape(count, 2),
        np.tile(np.eye(2), (count, 1, 1)) if frames is None else frames,
        np.tile(np.eye(2) / deviation**2, (count, 1, 1)),
    )


@pytest.fixture
def made():
    """Every point in every photo, all pairs: the errors, and what matches say of them."""
    chance = np.random.default_rng(0)
    errors = chance.normal(0, 1, (PHOTOS * POINTS, 2))
    views = np.eye(2) + chance.normal(0, 0.2, (PHOTOS, 2, 2))
    pairs = [(a, b) for a in range(PHOTOS) for b in range(a + 1, PHOTOS)]
    first, second = (
        np.concatenate([p[i] * POINTS + np.arange(POINTS) for p in pairs]) for i in (0, 1)
    )
    frames = (views @ np.linalg.inv(views[:, None]))[first // POINTS, second // POINTS]
    shifts = -errors[second] + np.einsum("nij,nj->ni", frames, errors[first])
    shifts += chance.normal(0, 0.05, shifts.shape)
    return errors, displacements(first, second, shifts, frames)


def disagreement(said, places):
    """How far the keypoints of each match are from showing one point."""
    moved = np.einsum("nij,nj->ni", said.frames, places[said.first])
    return np.linalg.norm(places[said.second] - moved, axis=1)


def test_keypoints_of_a_track_show_one_point(made):
    errors, said = made
    moves, agree = settle(said, np.ones(len(errors)))
    assert agree.all()
    assert np.median(disagreement(said, errors)) > 1
    assert np.median(disagreement(said, errors + moves)) < 0.07


def test_they_stay_near_to_where_they_were_detected_the_surer_nearer(made):
    errors, said = made
    deviations = np.where(np.arange(len(errors)) < POINTS, 0.1, 1.0)  # the first photo's are sure
    moves, _ = settle(said, deviations)
    lengths = np.linalg.norm(moves, axis=1).reshape(PHOTOS, POINTS).mean(axis=1)
    assert lengths[0] < 0.2 * lengths[1:].min()
    moves, _ = settle(said, np.ones(len(errors)))
    lengths = np.linalg.norm(moves, axis=1).reshape(PHOTOS, POINTS).mean(axis=1)
    assert lengths.max() < 2 * lengths.min()


def test_a_wrong_match_does_not_pull(made):
    errors, said = made
    shifts = said.shifts.copy()
    shifts[:POINTS] += 3  # of one pair
    before, _ = settle(said, np.ones(len(errors)))
    after, _ = settle(replace(said, shifts=shifts), np.ones(len(errors)))
    assert np.linalg.norm(after - before, axis=1).max() < 0.2


def test_what_nothing_agrees_with_stays():
    said = displacements([0, 0], [1, 1], [[5, 0], [-5, 0]])
    moves, agree = settle(said, np.full(3, 0.5))
    assert not agree.any()
    assert (moves == 0).all()


def test_along_an_edge_a_match_says_nothing():
    said = displacements([0], [1], [[1.0, 1.0]])
    said = replace(said, information=np.array([[[400.0, 0], [0, 1e-6]]]))
    moves, _ = settle(said, np.ones(2))
    np.testing.assert_allclose(moves, [[-0.5, 0], [0.5, 0]], atol=0.01)


def test_without_matches_nothing_moves():
    moves, agree = settle(joined([]), np.ones(5))
    assert (moves == 0).all()
    assert not agree.any()
