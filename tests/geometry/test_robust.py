import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from d2net.errors import InputError, MissingPackageError
from d2net.geometry import robust
from d2net.geometry.epipolar import essential_from_pose, sampson_distance
from d2net.geometry.homography import transfer
from d2net.geometry.robust import RobustOptions

METHODS = ["magsac", "poselib"]
H = np.array([[0.9, -0.2, 120.0], [0.25, 1.05, -60.0], [2e-4, -1e-4, 1.0]])
# Two different cameras, the first with skew and the principal point well off the middle.
KA = np.array([[700.0, 3, 310], [0, 720, 350], [0, 0, 1]])
KB = np.array([[950.0, 0, 520], [0, 950, 370], [0, 0, 1]])
R = np.array([[0.96, 0.0, 0.28], [0.0, 1.0, 0.0], [-0.28, 0.0, 0.96]])
T = np.array([-1.0, 0.15, 0.3])
CORNERS = np.array([[0.0, 0.0], [799.0, 0.0], [799.0, 599.0], [0.0, 599.0]])


def project(K, X):
    x = X @ K.T
    return x[:, :2] / x[:, 2:]


def plane_pairs(n, rng):
    a = rng.uniform([0, 0], [800, 600], (n, 2))
    return a, transfer(H, a)


def scene_pairs(n, rng):
    X = rng.uniform([-3, -2, 5], [3, 2, 12], (n, 3))
    return project(KA, X), project(KB, X @ R.T + T)


def estimate(model, a, b, options):
    return robust.estimate(model, a, b, options, (KA, KB) if model == "essential" else None)


def pairs_of(model, n, rng):
    return (plane_pairs if model == "homography" else scene_pairs)(n, rng)


def fundamental_of(model, matrix):
    return np.linalg.inv(KB).T @ matrix @ np.linalg.inv(KA) if model == "essential" else matrix


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["homography", "fundamental", "essential"])
def test_recovers_model_and_inliers_from_noise_and_40_percent_outliers(model, method):
    rng = np.random.default_rng(3)
    clean_a, clean_b = pairs_of(model, 300, rng)
    a, b = clean_a + rng.normal(0, 0.5, (300, 2)), clean_b + rng.normal(0, 0.5, (300, 2))
    wrong = np.arange(300) < 120
    b[wrong] = rng.uniform([0, 0], [1000, 700], (120, 2))
    matrix, inliers = estimate(model, a, b, RobustOptions(threshold=2.5, method=method))

    assert matrix.dtype == np.float64
    assert inliers.dtype == np.bool_
    assert inliers[~wrong].mean() > 0.97
    assert inliers[wrong].mean() < 0.08  # an outlier may lie near its epipolar line by chance
    if model == "homography":
        assert np.abs(transfer(matrix, CORNERS) - transfer(H, CORNERS)).max() < 3
        assert matrix[2, 2] == 1
    else:
        F = fundamental_of(model, matrix)
        assert np.sqrt((sampson_distance(F, clean_a, clean_b) ** 2).mean()) < 0.5
        assert abs(np.linalg.det(matrix)) < 1e-12
        assert np.linalg.norm(matrix) == pytest.approx(1)
    if model == "essential":
        truth = essential_from_pose(R, T)
        truth /= np.linalg.norm(truth)
        assert min(np.abs(matrix - truth).max(), np.abs(matrix + truth).max()) < 0.02


@pytest.mark.parametrize("method", METHODS)
def test_homographies_are_exact_if_some_right_pairs_are_inexact(method):
    """As in photos: most keypoints are exact to a fraction of a pixel, and some are not."""
    errors = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        a, b = plane_pairs(600, rng)
        b += 0.3 * rng.standard_t(1.5, b.shape)
        b[:200] = rng.uniform([0, 0], [1000, 700], (200, 2))
        options = RobustOptions(threshold=2, method=method)
        matrix, _ = robust.estimate("homography", a, b, options)
        errors.append(np.abs(transfer(matrix, CORNERS) - transfer(H, CORNERS)).max())
    assert np.mean(errors) < 0.2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["homography", "fundamental", "essential"])
def test_exact_pairs_give_the_exact_model(model, method):
    a, b = pairs_of(model, 60, np.random.default_rng(0))
    matrix, inliers = estimate(model, a, b, RobustOptions(threshold=1, method=method))
    assert inliers.all()
    if model == "homography":
        np.testing.assert_allclose(transfer(matrix, a), b, atol=1e-2)
    else:
        assert sampson_distance(fundamental_of(model, matrix), a, b).max() < 1e-2


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["homography", "fundamental", "essential"])
def test_one_seed_gives_identical_results(model, method):
    rng = np.random.default_rng(1)
    a, b = pairs_of(model, 100, rng)
    a += rng.normal(0, 2, a.shape)
    b[:60] = rng.uniform(0, 700, (60, 2))
    results = [
        estimate(
            model, a, b, RobustOptions(threshold=2, method=method, seed=seed, max_iterations=40)
        )
        for seed in (7, 7, 8, 9, 10)
    ]
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])
    assert any(not np.array_equal(results[0][0], other) for other, _ in results[2:])


def degenerate_pairs():
    rng = np.random.default_rng(0)
    spread = rng.uniform(0, 800, (40, 2))
    t = rng.uniform(0, 800, 40)
    line_a, line_b = np.stack([t, 2 * t + 1], 1), np.stack([t, 300 - t], 1)
    return {
        "all equal": (np.full((40, 2), 5.0), np.full((40, 2), 7.0)),
        "all zero": (np.zeros((40, 2)), np.zeros((40, 2))),
        "equal in a": (np.full((40, 2), 5.0), spread),
        "equal in b": (spread, np.full((40, 2), 5.0)),
        "collinear": (line_a, line_b),
        "nearly collinear": (line_a + rng.normal(0, 0.5, (40, 2)), line_b),
        "three distinct": (spread[np.arange(40) % 3], spread[np.arange(40) % 3 + 5]),
        "tiny": (spread * 1e-30, spread * 1e-30),
        "overflowing": (spread * 1e300, spread[::-1] * 1e300),
    }


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["homography", "fundamental", "essential"])
@pytest.mark.parametrize("case", degenerate_pairs())
def test_degenerate_pairs_determine_no_model(case, model, method):
    a, b = degenerate_pairs()[case]
    options = RobustOptions(threshold=3, method=method, max_iterations=500)
    matrix, inliers = estimate(model, a, b, options)
    assert matrix is None
    assert inliers.shape == (40,)
    assert not inliers.any()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", ["homography", "fundamental", "essential"])
def test_too_few_pairs_determine_no_model(model, method):
    a, b = pairs_of(model, 50, np.random.default_rng(0))
    options = RobustOptions(threshold=3, method=method)
    enough = robust.MIN_PAIRS[model]
    for n in range(enough):
        matrix, inliers = estimate(model, a[:n], b[:n], options)
        assert matrix is None
        assert inliers.tolist() == [False] * n
    assert estimate(model, a[:enough], b[:enough], options)[0] is not None


TINY = np.array(
    [
        [3, 1, 0, 0],
        [0, 0, 0, 0],
        [0, 0, 3, 0],
        [1, 6, 0, 3.60243664e-153],
        [0, 1, 1, 3],
        [1, 0, 0, 0],
    ]
)
"""A number so small that the fundamental matrix's entries have squares beyond what floats hold."""


@pytest.mark.parametrize("method", METHODS)
@given(
    pairs=st.integers(0, 15).flatmap(
        lambda n: hnp.arrays(
            np.float64,
            (n, 4),
            elements=st.one_of(st.integers(0, 3).map(float), st.floats(-1e4, 1e4)),
        )
    )
)
@example(pairs=TINY)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_finite_pairs_give_a_consistent_answer(method, pairs):
    options = RobustOptions(threshold=2, method=method, max_iterations=100)
    for model in robust.MIN_PAIRS:
        matrix, inliers = estimate(model, pairs[:, :2], pairs[:, 2:], options)
        assert inliers.shape == (len(pairs),)
        if matrix is None:
            assert not inliers.any()
        else:
            assert matrix.shape == (3, 3)
            assert np.isfinite(matrix).all()
            assert inliers.sum() >= robust.MIN_PAIRS[model]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.full((9, 2), np.nan), np.ones((9, 2)), "NaN or infinite"),
        (np.ones((9, 2)), np.full((9, 2), np.inf), "NaN or infinite"),
        (np.ones((9, 2)), np.ones((8, 2)), r"\(9, 2\) and \(8, 2\)"),
        (np.ones((9, 3)), np.ones((9, 3)), r"shape \(N, 2\)"),
        (np.ones(9), np.ones(9), r"shape \(N, 2\)"),
    ],
)
@pytest.mark.parametrize("model", ["homography", "fundamental", "essential"])
def test_points_that_are_no_pairs_are_refused(a, b, message, model):
    with pytest.raises(InputError, match=message):
        estimate(model, a, b, RobustOptions(threshold=3))


@pytest.mark.parametrize(
    "K",
    [
        np.eye(4),
        np.zeros((3, 3)),
        np.full((3, 3), np.nan),
        KA.T,
        np.diag([-700.0, 700, 1]),
    ],
)
def test_what_is_no_camera_matrix_is_refused(K):
    a = np.random.default_rng(0).uniform(0, 800, (20, 2))
    with pytest.raises(InputError, match="camera matrix"):
        robust.estimate("essential", a, a, RobustOptions(threshold=3), (KA, K))


def test_an_unknown_method_is_refused():
    with pytest.raises(InputError, match="not 'ransac'"):
        RobustOptions(threshold=3, method="ransac")


def test_missing_poselib_names_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "poselib", None)
    a, b = plane_pairs(20, np.random.default_rng(0))
    with pytest.raises(MissingPackageError, match=r'pip install "d2net\[poselib\]"'):
        robust.estimate("homography", a, b, RobustOptions(threshold=3, method="poselib"))


@pytest.mark.parametrize(
    "wrong", [{"threshold": np.nan}, {"threshold": "3"}, {"seed": -1}, {"seed": None}]
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(InputError, match=list(wrong)[-1]):
        RobustOptions(**{"threshold": 3, **wrong})
