import numpy as np

from d2net.geometry.homography import transfer, transfer_error


def test_points_move_as_by_hand():
    H = np.array([[2.0, 0, 10], [0, 4, -20], [0, 0, 2]])
    points = np.array([[0.0, 0.0], [3.0, 5.0]])
    np.testing.assert_allclose(transfer(H, points), [[5, -10], [8, 0]])
    np.testing.assert_allclose(transfer_error(H, points, np.array([[5.0, -10], [5, -4]])), [0, 5])


def test_points_taken_to_infinity_are_infinitely_far():
    H = np.array([[1.0, 0, 0], [0, 1, 0], [1, 0, -3]])
    error = transfer_error(H, np.array([[3.0, 5.0]]), np.array([[0.0, 0.0]]))
    assert not error[0] <= 1e9
