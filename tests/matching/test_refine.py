"""Refined matches against the truth: photos warped by known homographies, under other light."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from d2net.errors import InputError
from d2net.features import Matches
from d2net.geometry.homography import transfer, transfer_error
from d2net.matching import match
from d2net.matching.refine import FIT_DEVIATION, local_affine_maps, refine
from d2net.matching.verification import verify

from ..io.samples import make_features
from ..tiny import DATA, default_type

SIZE = (800, 640)
COUNT = 150
WARPS = {
    "shift": [[1, 0, 3.3], [0, 1, -2.7], [0, 0, 1]],
    "turned and zoomed": [[0.94, -0.5, 210.0], [0.5, 0.94, -120.0], [0, 0, 1]],
    "seen askew": [[0.9, 0.2, -20.0], [-0.1, 1.1, 30.0], [2e-4, -1e-4, 1]],
}


@pytest.fixture(scope="module")
def photo():
    with Image.open(DATA / "graf1.jpg") as image:
        return np.asarray(image.convert("RGB"))


def warped(photo, H):
    """The photo under another light, seen as H says."""
    seen = cv2.warpPerspective(photo, H, SIZE, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT)
    noise = np.random.default_rng(1).normal(0, 2, seen.shape)
    return np.clip(0.8 * seen + 20 + noise, 0, 255).astype(np.uint8)


def pair(H, deviation, wrong=0, seed=0):
    """Features at the same places of both photos, near corners; the second's are off by an error.

    The first `wrong` matches are marked as no inliers, and lie anywhere.
    """
    chance = np.random.default_rng(seed)
    grey = cv2.imread(str(DATA / "graf1.jpg"), cv2.IMREAD_GRAYSCALE)
    a = cv2.goodFeaturesToTrack(grey, 1500, 0.01, 5)[:, 0]
    a = chance.permutation(a + chance.normal(0, 2, a.shape))
    a = a[((a > 40) & (a < np.array(SIZE) - 40)).all(axis=1)]
    b = transfer(H, a)
    inside = ((b > 40) & (b < np.array(SIZE) - 40)).all(axis=1)
    a, b = a[inside][:COUNT], b[inside][:COUNT]
    assert len(a) == COUNT
    b = b + chance.normal(0, deviation, b.shape)
    b[:wrong] = chance.uniform(40, 600, (wrong, 2))
    first, second = (
        replace(
            make_features(COUNT, image_size=SIZE),
            keypoints=torch.from_numpy(points).float(),
            uncertainty=torch.full((COUNT,), deviation),
        )
        for points in (a, b)
    )
    indices = torch.arange(COUNT)[:, None].expand(-1, 2).contiguous()
    inliers = torch.arange(COUNT) >= wrong
    return first, second, Matches(indices, torch.ones(COUNT), inliers, "fundamental")


def errors(H, a, b):
    return transfer_error(H, a.keypoints.double().numpy(), b.keypoints.double().numpy())


@pytest.mark.parametrize("name", WARPS)
@pytest.mark.parametrize("deviation", [0.4, 1.5])
def test_matches_lie_within_a_tenth_of_a_pixel(photo, name, deviation):
    H = np.array(WARPS[name], float)
    a, b, matches = pair(H, deviation)
    refined_a, refined_b = refine(a, b, matches, photo, warped(photo, H))
    before, after = errors(H, a, b), errors(H, refined_a, refined_b)
    moved = (refined_b.keypoints != b.keypoints).any(dim=1).numpy()
    assert moved.mean() > 0.7
    assert np.median(after[moved]) < 0.1
    assert np.mean(after[moved] < 0.5) > 0.9
    assert np.mean(after < 1) > np.mean(before < 1)
    assert torch.equal(refined_a.keypoints, a.keypoints)


def test_photos_that_use_little_of_their_range(photo):
    """Thermal photos, for example, or 12-bit photos in 16-bit files."""
    H = np.array(WARPS["shift"], float)
    a, b, matches = pair(H, 1.0)
    dim = [(9000 + 2.0 * image).astype(np.uint16) for image in (photo, warped(photo, H))]
    _, refined = refine(a, b, matches, *dim)
    moved = (refined.keypoints != b.keypoints).any(dim=1).numpy()
    assert moved.mean() > 0.7
    assert np.median(errors(H, a, refined)[moved]) < 0.1


def test_the_default_type_and_device_of_torch_and_autocast_do_not_matter(photo):
    H = np.array(WARPS["shift"], float)
    a, b, matches = pair(H, 1.0)
    expected = refine(a, b, matches, photo, warped(photo, H))[1]
    with torch.autocast("cpu", torch.bfloat16):
        found = refine(a, b, matches, photo, warped(photo, H))[1]
    assert torch.equal(found.keypoints, expected.keypoints)
    with default_type(torch.float64), torch.device("meta"):
        found = refine(a, b, matches, photo, warped(photo, H))[1]
    assert torch.equal(found.keypoints, expected.keypoints)


def test_what_is_not_verified_stays(photo):
    H = np.array(WARPS["seen askew"], float)
    a, b, matches = pair(H, 1.0, wrong=40)
    _, refined = refine(a, b, matches, photo, warped(photo, H))
    assert torch.equal(refined.keypoints[:40], b.keypoints[:40])
    assert torch.equal(refined.uncertainty[:40], b.uncertainty[:40])
    assert (refined.keypoints[40:] != b.keypoints[40:]).any()


def test_what_fits_nowhere_stays(photo):
    """Wrong matches that verification did not see, and photos without texture."""
    H = np.array(WARPS["shift"], float)
    a, b, matches = pair(H, 1.0, wrong=40)
    everything = replace(matches, inliers=torch.ones(COUNT, dtype=torch.bool))
    _, refined = refine(a, b, everything, photo, warped(photo, H))
    assert (refined.keypoints[:40] != b.keypoints[:40]).any(dim=1).float().mean() < 0.2
    blank = np.full_like(photo, 90)
    _, refined = refine(a, b, everything, photo, blank)
    assert torch.equal(refined.keypoints, b.keypoints)


def test_moved_points_are_surer_and_verification_believes_it(photo):
    H = np.array(WARPS["seen askew"], float)
    a, b, matches = pair(H, 1.5)
    a2, b2 = refine(a, b, matches, photo, warped(photo, H))
    moved = (b2.keypoints != b.keypoints).any(dim=1)
    for features in (a2, b2):
        assert torch.allclose(features.uncertainty[moved], torch.tensor(FIT_DEVIATION))
        assert torch.allclose(features.uncertainty[~moved], torch.tensor(1.5))
    rough = verify(a, b, matches, "homography").matrix
    fine = verify(a2, b2, matches, "homography").matrix
    corners = np.array([[0.0, 0], [799, 0], [799, 639], [0, 639]])
    wrong = [transfer_error(M, corners, transfer(H, corners)).mean() for M in (rough, fine)]
    assert wrong[1] < wrong[0] / 3
    assert wrong[1] < 0.2


def test_photos_that_were_reduced(photo):
    """Positions and uncertainties are in pixels of the photo as given."""
    H = np.array(WARPS["shift"], float)
    large, seen = (cv2.resize(p, None, fx=3, fy=3) for p in (photo, warped(photo, H)))
    a, b, matches = pair(H, 1.0)
    a, b = (
        replace(
            f,
            keypoints=3 * f.keypoints + 1,
            uncertainty=3 * f.uncertainty,
            image_size=(2400, 1920),
        )
        for f in (a, b)
    )
    scale = np.array([[3.0, 0, 1], [0, 3, 1], [0, 0, 1]])
    truth = scale @ H @ np.linalg.inv(scale)
    _, refined = refine(a, b, matches, large, seen)
    moved = (refined.keypoints != b.keypoints).any(dim=1).numpy()
    assert moved.mean() > 0.7
    assert np.median(errors(truth, a, refined)[moved]) < 0.4  # of 3.5 before


def test_affine_maps_are_the_derivative_of_the_warp():
    H = np.array([[1.1, 0.3, 5], [-0.2, 0.8, 9], [4e-4, -3e-4, 1]])
    points = np.random.default_rng(0).uniform(0, 600, (400, 2))
    moved = transfer(H, points)
    moved[::10] += 60  # some are wrong
    maps = local_affine_maps(points, moved)
    steps = [(transfer(H, points + d) - transfer(H, points - d)) / 2 for d in np.eye(2)]
    difference = np.abs(maps - np.stack(steps, axis=2)).max(axis=(1, 2))
    assert np.median(difference) < 0.03
    assert np.mean(difference < 0.1) > 0.9


def test_few_matches_are_left_alone(photo):
    H = np.array(WARPS["shift"], float)
    a, b, matches = pair(H, 1.0, wrong=COUNT - 7)
    assert refine(a, b, matches, photo, photo) == (a, b)


def test_the_same_input_gives_the_same_result(photo):
    H = np.array(WARPS["shift"], float)
    a, b, matches = pair(H, 1.0)
    first, second = (refine(a, b, matches, photo, warped(photo, H))[1] for _ in range(2))
    assert torch.equal(first.keypoints, second.keypoints)


def test_wrong_input(photo):
    a, b, matches = pair(np.eye(3), 1.0)
    with pytest.raises(InputError, match="only verified matches"):
        refine(a, b, replace(matches, inliers=None), photo, photo)
    with pytest.raises(InputError, match="400 x 640 pixels, but its features are from one"):
        refine(a, b, matches, photo, photo[:, :400])
    with pytest.raises(InputError, match="other features"):
        refine(a[:10], b, matches, photo, photo)


def test_a_real_pair(graf):
    """RootSIFT on the painted wall, of which the homography is known."""
    a, b, H = graf
    matches = match(a, b, verify="fundamental")
    refined_a, refined_b = refine(a, b, matches, DATA / "graf1.jpg", DATA / "graf3.jpg")
    rows_a, rows_b = matches.indices.T
    before, after = (
        errors(H, first[rows_a], second[rows_b])
        for first, second in ((a, b), (refined_a, refined_b))
    )
    assert np.mean(after < 1) > np.mean(before < 1) + 0.03
