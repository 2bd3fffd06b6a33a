from dataclasses import replace

import numpy as np
import pytest
import torch

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.matching import match
from d2net.matching.verification import default_threshold, verify

K = np.array([[800.0, 0, 399.5], [0, 800, 319.5], [0, 0, 1]])


def features(points, uncertainty=1.0, size=(800, 640)):
    n = len(points)
    return Features(
        keypoints=torch.as_tensor(points, dtype=torch.float32).reshape(n, 2),
        scores=torch.ones(n),
        scales=torch.ones(n),
        descriptors=torch.ones(n, 1),
        image_size=size,
        uncertainty=torch.full((n,), float(uncertainty)),
    )


def in_order(n):
    return Matches(torch.arange(n)[:, None].expand(n, 2).contiguous(), torch.ones(n))


def scene(n, deviation, rng):
    """Matched features of a camera that moves through a scene, every fourth match wrong."""
    X = rng.uniform([-4, -3, 6], [4, 3, 14], (n, 3))
    a, b = (x[:, :2] / x[:, 2:] for x in (X @ K.T, (X + np.array([0.8, 0.1, -0.5])) @ K.T))
    wrong = np.arange(n) % 4 == 0
    b[wrong] = rng.uniform([0, 0], [800, 640], (wrong.sum(), 2))
    noisy = (points + rng.normal(0, deviation, points.shape) for points in (a, b))
    return *(features(points, deviation) for points in noisy), wrong


@pytest.mark.parametrize("model", ["fundamental", "essential"])
def test_default_threshold_suits_the_uncertainty(model):
    """The right matches stay at the accuracy of D2-Net in a small photo and in a large one."""
    for deviation in (1.5, 4.0):
        a, b, wrong = scene(400, deviation, np.random.default_rng(0))
        intrinsics = (K, K) if model == "essential" else None
        found = verify(a, b, in_order(400), model, intrinsics=intrinsics)
        assert found.model == model
        assert found.matrix is not None
        inliers = found.inliers.numpy()
        assert inliers[~wrong].mean() > 0.85
        assert inliers[wrong].mean() < 0.2


def test_keeps_the_matches_and_their_order():
    a, b, _ = scene(100, 1.0, np.random.default_rng(0))
    matches = Matches(torch.arange(100).flip(0)[:, None].repeat(1, 2), torch.linspace(0, 1, 100))
    found = verify(a, b, matches)
    assert torch.equal(found.indices, matches.indices)
    assert torch.equal(found.similarity, matches.similarity)
    straight = verify(a, b, in_order(100))
    agree = found.inliers.flip(0) == straight.inliers
    assert agree.float().mean() > 0.95


def test_few_right_matches_are_found_by_their_scores():
    """Of 1000 matches 60 are right; they are among the 120 most similar ones."""
    rng = np.random.default_rng(0)
    a, b, _ = scene(1000, 1.0, rng)
    right = np.arange(1000) < 80
    right[::4] = False
    points = b.keypoints.numpy().copy()
    points[~right] = rng.uniform([0, 0], [800, 640], ((~right).sum(), 2))
    scores = torch.from_numpy(np.where(np.arange(1000) < 120, 0.9, 0.5)).float()
    order = torch.from_numpy(rng.permutation(1000))
    matches = replace(in_order(1000), similarity=scores)
    matches = replace(matches, indices=matches.indices[order], similarity=scores[order])
    found = verify(a, replace(b, keypoints=torch.from_numpy(points)), matches)
    assert found.inliers.numpy()[right[order]].mean() > 0.7


def test_a_seed_makes_it_repeatable():
    a, b, _ = scene(100, 2.0, np.random.default_rng(0))
    first, second = (verify(a, b, in_order(100), seed=5) for _ in range(2))
    assert np.array_equal(first.matrix, second.matrix)
    assert torch.equal(first.inliers, second.inliers)


def test_threshold_is_in_pixels_of_the_photos():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 600, (60, 2))
    moved = points.copy()
    moved[0, 0] += 6
    a, b = features(points), features(moved)
    for threshold, expected in ((4, False), (8, True)):
        found = verify(a, b, in_order(60), "homography", threshold=threshold)
        assert bool(found.inliers[0]) is expected
        assert found.inliers[1:].all()


def test_default_threshold_grows_with_photos_that_were_reduced():
    sharp, reduced = features(np.zeros((5, 2)), 1.5), features(np.zeros((5, 2)), 6.0)
    matches = in_order(5)
    smallest = default_threshold(sharp, sharp, matches, "fundamental")
    assert 5 <= smallest <= 10  # what suited D2-Net in the image matching challenge
    larger = default_threshold(sharp, reduced, matches, "fundamental")
    largest = default_threshold(reduced, reduced, matches, "fundamental")
    assert smallest < larger < largest
    assert default_threshold(reduced, reduced, matches, "homography") > largest


def test_the_most_precise_keypoints_decide_on_the_default_threshold():
    """Some refined to 0.4 px beside more that are good to 1.5 px."""
    uncertainty = torch.tensor([1.5] * 6 + [0.4] * 4)
    mixed = replace(features(np.zeros((10, 2))), uncertainty=uncertainty)
    matches = in_order(10)
    assert default_threshold(mixed, mixed, matches, "fundamental") == pytest.approx(1.5)
    coarse = in_order(6)
    assert default_threshold(mixed, mixed, coarse, "fundamental") == pytest.approx(5.46, abs=0.01)


@pytest.mark.parametrize("n", [0, 1, 7])
def test_too_few_matches_verify_nothing(n):
    points = np.random.default_rng(0).uniform(0, 600, (n, 2))
    found = verify(features(points), features(points), in_order(n))
    assert found.matrix is None
    assert found.model == "fundamental"
    assert found.inliers.tolist() == [False] * n
    assert len(found.verified()) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "affine"}, "homography, fundamental, essential, not 'affine'"),
        ({"model": "essential"}, "intrinsics are not given"),
        ({"model": "homography", "intrinsics": (K, K)}, "intrinsics are given"),
        ({"threshold": -1}, "threshold"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        verify(features(np.zeros((9, 2))), features(np.zeros((9, 2))), in_order(9), **arguments)


def test_matches_of_other_features_are_refused():
    with pytest.raises(InputError, match="rows 0 to 8 of the second photo, which has 5 keypoints"):
        verify(features(np.zeros((9, 2))), features(np.zeros((5, 2))), in_order(9))


def test_a_real_pair_shows_the_same_place(graf):
    a, b, _ = graf
    for model in ("fundamental", "homography"):
        found = match(a, b, verify=model)
        assert found.verdict == found.verified().verdict == "same"
        assert found.significance > 10
    cameras = np.array([[800.0, 0, 399.5], [0, 800, 319.5], [0, 0, 1]])
    found = match(a, b, verify="essential", intrinsics=(cameras, cameras))
    assert found.verdict == "same"


def test_unrelated_features_show_no_common_place():
    rng = np.random.default_rng(0)
    for _ in range(5):
        a, b = (features(rng.uniform([0, 0], [800, 640], (300, 2))) for _ in range(2))
        for model in ("fundamental", "homography"):
            found = verify(a, b, in_order(300), model)
            assert (found.verdict, found.significance) == ("none", 0)


def test_without_verification_there_is_no_verdict(graf):
    a, b, _ = graf
    found = match(a, b)
    assert found.verdict is found.significance is None


@pytest.mark.parametrize("model", ["fundamental", "homography"])
def test_what_stands_still_at_the_border_of_different_places_proves_nothing(model):
    """A time stamp: its matches agree with each other, whatever the photos show."""
    rng = np.random.default_rng(0)
    stamp = rng.uniform([10, 590], [300, 630], (60, 2))
    a, b = (
        features(np.vstack([stamp, rng.uniform([0, 0], [800, 640], (400, 2))])) for _ in range(2)
    )
    assert verify(a, b, in_order(460), model).verdict == "none"


@pytest.mark.parametrize("model", ["fundamental", "homography"])
@pytest.mark.parametrize("anchor", [(0, 0), (0.5, 0), (1, 0), (0, 0.5), (1, 0.5), (0, 1), (1, 1)])
@pytest.mark.parametrize(
    "scale", [1, 0.9, 1.125, (0.9, 1.125)]
)  # width 720 / 800, height 720 / 640
def test_a_watermark_in_photos_of_two_sizes_proves_nothing(model, anchor, scale):
    rng = np.random.default_rng(0)
    inwards = np.sign(0.5 - np.array(anchor)) * (50, 35)
    mark = rng.uniform([-40, -25], [40, 25], (60, 2)) + inwards
    a, b = (
        features(np.vstack([places, rng.uniform([0, 0], size, (400, 2))]), size=size)
        for places, size in (
            (np.multiply(anchor, (800, 640)) + mark, (800, 640)),
            (np.multiply(anchor, (720, 720)) + mark * scale, (720, 720)),
        )
    )
    assert verify(a, b, in_order(460), model).verdict == "none"


@pytest.mark.parametrize("seed", range(4))
def test_the_black_bars_of_films_prove_nothing(seed):
    """Keypoints slide along the edges of the bars, as if the camera had moved sideways."""
    rng = np.random.default_rng(seed)
    edge = np.column_stack([rng.uniform(10, 790, 150), rng.choice([75.0, 565.0], 150)])
    moved = edge + np.column_stack([rng.normal(25, 3, 150), rng.uniform(-1, 1, 150)])
    a, b = (
        features(np.vstack([bars, rng.uniform([0, 80], [800, 560], (300, 2))]))
        for bars in (edge, moved)
    )
    assert verify(a, b, in_order(450)).verdict == "none"


@pytest.mark.parametrize("model", ["fundamental", "homography"])
def test_panoramas_show_the_same_place(model):
    points = np.random.default_rng(0).uniform([0, 0], [2400, 300], (400, 2))
    a, b = (features(at, size=(2400, 300)) for at in (points, points + 0.3))
    assert verify(a, b, in_order(400), model).verdict == "same"


@pytest.mark.parametrize("model", ["fundamental", "homography"])
def test_photos_of_a_fixed_camera_show_the_same_place_up_to_the_border(model):
    points = np.random.default_rng(0).uniform([0, 0], [800, 640], (400, 2))
    found = verify(features(points), features(points + 0.3), in_order(400), model)
    assert found.verdict == "same"
    assert found.num_inliers == 400
