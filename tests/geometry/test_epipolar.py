import numpy as np
import pytest

from d2net.geometry.epipolar import (
    essential_from_pose,
    fundamental_from_essential,
    sampson_distance,
)

SIDEWAYS = np.array([[0.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # F of a camera that moves along x


@pytest.mark.parametrize("scale", [1e-9, 1.0, -1e6])
def test_sampson_distance_after_a_sideways_move_is_the_height_difference_shared_by_both(scale):
    a = np.array([[10.0, 20], [700, 3]])
    b = np.array([[90.0, 23], [5, 3]])
    np.testing.assert_allclose(
        sampson_distance(scale * SIDEWAYS, a, b), [3 / np.sqrt(2), 0], atol=1e-9
    )


def test_pairs_of_epipoles_have_no_distance_without_a_warning():
    F = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 0]])  # forwards: both epipoles at (0, 0)
    assert np.isnan(sampson_distance(F, np.zeros((1, 2)), np.zeros((1, 2)))).all()


def test_projections_of_one_point_satisfy_the_equation():
    rng = np.random.default_rng(0)
    R, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    t = np.array([0.5, -0.2, 9.0])
    Ka = np.array([[700.0, 1, 400], [0, 720, 300], [0, 0, 1]])
    Kb = np.array([[900.0, 0, 500], [0, 900, 350], [0, 0, 1]])
    X = rng.uniform([-2, -2, 4], [2, 2, 8], (50, 3))
    a, b = X @ Ka.T, (X @ R.T + t) @ Kb.T
    F = fundamental_from_essential(essential_from_pose(R, t), Ka, Kb)
    distance = sampson_distance(F, a[:, :2] / a[:, 2:], b[:, :2] / b[:, 2:])
    assert distance.max() < 1e-8
