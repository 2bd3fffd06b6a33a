import numpy as np
import pycolmap
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from d2net.errors import InputError
from d2net.geometry.absolute_pose import MIN_POINTS, AbsolutePoseOptions, absolute_pose

SIZE = (800, 600)
R = np.array([[0.96, 0.0, 0.28], [0.0, 1.0, 0.0], [-0.28, 0.0, 0.96]])
CENTRE = np.array([40.0, -7.0, 3.0])
POSE = pycolmap.Rigid3d(pycolmap.Rotation3d(R), -R @ CENTRE)
CAMERAS = {
    "SIMPLE_PINHOLE": [700, 400.5, 300.5],
    "PINHOLE": [700, 690, 410, 290],
    "SIMPLE_RADIAL": [700, 400, 300, 0.2],
    "OPENCV": [700, 690, 400, 300, 0.1, 0.02, 0.001, -0.001],
    "OPENCV_FISHEYE": [400, 400, 400, 300, 0.01, 0, 0, 0],
}


def camera(model="SIMPLE_RADIAL", params=None):
    return pycolmap.Camera(
        model=model, width=SIZE[0], height=SIZE[1], params=params or CAMERAS[model]
    )


def scene(n, rng, lens=None):
    """N points of the world and where the photo has them, pixel centres at integers."""
    in_camera = rng.uniform([-2, -1.5, 5], [2, 1.5, 12], (n, 3))
    return (lens or camera()).img_from_cam(in_camera) - 0.5, in_camera @ R + CENTRE


def angle(rotation):
    return np.degrees((rotation * POSE.rotation.inverse()).angle())


@pytest.mark.parametrize("model", CAMERAS)
def test_exact_points_give_the_exact_pose_whatever_the_lens(model):
    lens = camera(model)
    x, X = scene(50, np.random.default_rng(0), lens)
    found = absolute_pose(x, X, lens)
    assert angle(found.cam_from_world.rotation) < 1e-5
    np.testing.assert_allclose(found.centre, CENTRE, atol=1e-5)
    assert found.inliers.sum() == 50
    assert found.position_deviation < 1e-4
    assert list(found.camera.params) == list(lens.params)


def test_noise_and_70_percent_outliers():
    rng = np.random.default_rng(1)
    x, X = scene(300, rng)
    x += rng.normal(0, 1, x.shape)
    wrong = np.arange(300) < 210
    x[wrong] = rng.uniform([0, 0], SIZE, (210, 2))
    found = absolute_pose(x, X, camera())
    assert angle(found.cam_from_world.rotation) < 0.2
    assert np.linalg.norm(found.centre - CENTRE) < 0.03
    assert found.inliers[~wrong].all()
    assert found.inliers[wrong].mean() < 0.02


def test_a_point_with_several_places_takes_the_right_one():
    rng = np.random.default_rng(2)
    x, X = scene(40, rng)
    _, elsewhere = scene(40, rng)
    found = absolute_pose(np.vstack([x, x]), np.vstack([elsewhere, X]), camera())
    np.testing.assert_allclose(found.centre, CENTRE, atol=0.01)
    assert found.inliers[40:].all()
    assert found.inliers[:40].sum() <= 2  # some lie near the right place by chance


@pytest.mark.parametrize("estimate_focal_length", [False, True])
def test_the_uncertainty_is_the_scatter_of_repeated_trials(estimate_focal_length):
    """For noise of 0.5 and of 2 px alike: nothing but the points themselves tells how large it is.

    An unknown focal length makes the position several times more uncertain.
    """
    options = AbsolutePoseOptions(estimate_focal_length=estimate_focal_length)
    for noise in (0.5, 2.0):
        errors, told = [], []
        for trial in range(60):
            rng = np.random.default_rng(trial)
            x, X = scene(60, rng)
            found = absolute_pose(x + rng.normal(0, noise, x.shape), X, camera(), options)
            errors.append([angle(found.cam_from_world.rotation), *(found.centre - CENTRE)])
            told.append([found.rotation_deviation, found.position_deviation])
        actual = np.sqrt(np.mean(np.square(errors), axis=0))
        rotation, position = np.sqrt(np.mean(np.square(told), axis=0))
        assert rotation == pytest.approx(actual[0], rel=0.25)
        assert position == pytest.approx(np.linalg.norm(actual[1:]), rel=0.25)


@pytest.mark.parametrize("model", CAMERAS)
def test_an_unknown_focal_length_is_found(model):
    rng = np.random.default_rng(3)
    x, X = scene(200, rng, camera(model))
    x += rng.normal(0, 0.5, x.shape)
    x[:60] = rng.uniform([0, 0], SIZE, (60, 2))
    guess = camera(model)
    params = np.array(guess.params)
    params[list(guess.focal_length_idxs())] = 1.2 * SIZE[0]
    guess.params = params
    found = absolute_pose(x, X, guess, AbsolutePoseOptions(estimate_focal_length=True))
    assert found.camera.mean_focal_length() == pytest.approx(
        camera(model).mean_focal_length(), rel=0.02
    )
    assert np.linalg.norm(found.centre - CENTRE) < 0.2
    assert guess.mean_focal_length() == 960  # what was given is left as it was
    trusted = absolute_pose(x, X, guess)
    assert np.linalg.norm(trusted.centre - CENTRE) > 1


def degenerate():
    rng = np.random.default_rng(0)
    x, X = scene(40, rng)
    on_line = CENTRE + np.linspace(0, 1, 40)[:, None] * np.array([3.0, 2, 0]) + [0, 0, 8]
    in_camera = (on_line - CENTRE) @ R.T
    line = camera().img_from_cam(in_camera) - 0.5
    return {
        "none": (np.empty((0, 2)), np.empty((0, 3))),
        "one place": (x, np.tile(X[:1], (40, 1))),
        "one pixel": (np.tile(x[:1], (40, 1)), X),
        "a line": (line, on_line),
        "a line, noisy": (line + rng.normal(0, 1, line.shape), on_line),
        "three distinct": (x[np.arange(40) % 3], X[np.arange(40) % 3]),
        "nothing agrees": (rng.uniform([0, 0], SIZE, (6, 2)), X[:6]),
        "huge": (x * 1e200, X * 1e200),
    }


@pytest.mark.parametrize("estimate_focal_length", [False, True])
@pytest.mark.parametrize("case", degenerate())
def test_what_determines_no_pose_gives_none(case, estimate_focal_length):
    options = AbsolutePoseOptions(
        threshold=2, estimate_focal_length=estimate_focal_length, max_iterations=500
    )
    assert absolute_pose(*degenerate()[case], camera(), options) is None


def test_fewest_points():
    x, X = scene(10, np.random.default_rng(4))
    for focal in (False, True):
        options = AbsolutePoseOptions(estimate_focal_length=focal)
        assert (
            absolute_pose(
                x[: MIN_POINTS + focal - 1], X[: MIN_POINTS + focal - 1], camera(), options
            )
            is None
        )
    assert absolute_pose(x[:MIN_POINTS], X[:MIN_POINTS], camera()) is not None


def test_a_wall_determines_a_pose():
    rng = np.random.default_rng(5)
    in_camera = np.c_[rng.uniform(-2, 2, (50, 2)), np.full(50, 8.0)]
    found = absolute_pose(camera().img_from_cam(in_camera) - 0.5, in_camera @ R + CENTRE, camera())
    np.testing.assert_allclose(found.centre, CENTRE, atol=1e-4)


def test_points_behind_the_camera_are_no_inliers():
    lens = camera("SIMPLE_PINHOLE")
    x, X = scene(50, np.random.default_rng(6), lens)
    X[:5] = 2 * CENTRE - X[:5]
    assert absolute_pose(x, X, lens).inliers.tolist() == [False] * 5 + [True] * 45


def test_the_seed_decides():
    rng = np.random.default_rng(7)
    x, X = scene(60, rng)
    x += rng.normal(0, 4, x.shape)
    x[:40] = rng.uniform([0, 0], SIZE, (40, 2))
    poses = [
        absolute_pose(
            x, X, camera(), AbsolutePoseOptions(threshold=6, seed=seed, max_iterations=60)
        )
        for seed in (7, 7, 8, 9, 10, 11)
    ]
    centres = [None if pose is None else pose.centre.tolist() for pose in poses]
    assert centres[0] == centres[1]
    assert any(centre != centres[0] for centre in centres[2:])


@given(
    points=st.integers(0, 12).flatmap(
        lambda n: hnp.arrays(
            np.float64,
            (n, 5),
            elements=st.one_of(st.integers(-2, 2).map(float), st.floats(-1e4, 1e4)),
        )
    ),
    focal=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_any_finite_points_give_a_consistent_answer(points, focal):
    options = AbsolutePoseOptions(max_iterations=100, estimate_focal_length=focal)
    found = absolute_pose(points[:, :2], points[:, 2:], camera(), options)
    if found is not None:
        assert found.inliers.shape == (len(points),)
        assert found.inliers.sum() >= MIN_POINTS
        assert np.isfinite(found.cam_from_world.matrix()).all()
        assert np.isfinite(found.covariance).all()


@pytest.mark.parametrize(
    ("points2D", "points3D", "message"),
    [
        (np.zeros((5, 3)), np.zeros((5, 3)), r"\(N, 2\) and \(N, 3\)"),
        (np.zeros((5, 2)), np.zeros((4, 3)), r"\(N, 2\) and \(N, 3\)"),
        (np.full((5, 2), np.nan), np.zeros((5, 3)), "finite"),
        (np.zeros((5, 2)), np.full((5, 3), np.inf), "finite"),
    ],
)
def test_bad_points_are_told(points2D, points3D, message):
    with pytest.raises(InputError, match=message):
        absolute_pose(points2D, points3D, camera())


def test_a_right_pose_is_significant_and_accidents_are_not():
    rng = np.random.default_rng(0)
    x, X = scene(100, rng)
    x += rng.normal(0, 1, x.shape)
    x[20:] = rng.uniform([0, 0], SIZE, (80, 2))
    assert absolute_pose(x, X, camera()).significance > 10
    for seed in range(20):
        accident = absolute_pose(
            rng.uniform([0, 0], SIZE, (200, 2)),
            scene(200, rng)[1],
            camera(),
            AbsolutePoseOptions(seed=seed, max_iterations=500),
        )
        assert accident is None or accident.significance == 0


def test_an_impossible_focal_length_is_refused():
    """A field of view of 2 degrees, unless the camera is known."""
    lens = camera("SIMPLE_PINHOLE", [20_000, 400, 300])
    x, X = scene(60, np.random.default_rng(0), lens)
    options = AbsolutePoseOptions(estimate_focal_length=True)
    assert absolute_pose(x, X, camera("SIMPLE_PINHOLE"), options) is None
    assert absolute_pose(x, X, lens) is not None
