"""Validation: where a point really lies, and whether figures tell good weights from bad."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from d2net import D2Net
from d2net.geometry.homography import transfer
from d2net.training.settings import TrainingSettings
from d2net.training.sources import TrainingPair
from d2net.training.transfer import transferred
from d2net.training.validation import Validation, fixed_pairs, judge

from ..tiny import make_tiny_model

DATA = Path(__file__).parents[1] / "data"
H = np.array([[0.9, -0.2, 30.0], [0.15, 1.1, -12.0], [2e-4, -1e-4, 1.0]])


def grid(step: float, size: int = 256) -> np.ndarray:
    axis = np.arange(step / 2 - 0.5, size, step)
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def test_points_between_dense_correspondences_go_where_the_homography_takes_them() -> None:
    known = grid(8).astype(np.float32)
    points = np.random.default_rng(0).uniform(10, 240, (200, 2))
    found = transferred(points, known, transfer(H, known))
    np.testing.assert_allclose(found, transfer(H, points), atol=0.05)


def test_sparse_tracks_serve_where_there_are_enough_of_them() -> None:
    rng = np.random.default_rng(1)
    known = rng.uniform(0, 120, (80, 2))
    near, far = rng.uniform(20, 100, (50, 2)), rng.uniform(160, 250, (50, 2))
    found = transferred(np.r_[near, far], known, transfer(H, known))
    assert np.isnan(found[50:]).all()
    told = np.isfinite(found[:50, 0])
    assert told.mean() > 0.8
    np.testing.assert_allclose(found[:50][told], transfer(H, near)[told], atol=0.5)


def test_where_neighbours_part_nothing_is_told() -> None:
    """A foreground that moves 20 px further than what is behind it."""
    known = grid(8)
    moved = known + (known[:, :1] > 128) * [20.0, 0.0]
    found = transferred(np.array([[60.0, 60], [128, 60], [200, 60]]), known, moved)
    np.testing.assert_allclose(found[[0, 2]], [[60, 60], [220, 60]], atol=1e-6)
    assert np.isnan(found[1]).all()


@pytest.mark.parametrize("known", [0, 3, 40])
def test_too_few_or_collinear_correspondences_tell_nothing(known: int) -> None:
    line = np.stack([np.arange(known) * 2.0, np.full(known, 50.0)], axis=1)
    assert np.isnan(transferred(np.array([[20.0, 52.0]]), line, line)).all()
    assert transferred(np.empty((0, 2)), line, line).shape == (0, 2)


def warped_pair(noise: float = 0.0) -> TrainingPair:
    """OpenCV's sample photo and what a homography makes of it."""
    photo = cv2.imread(str(DATA / "graf1.png"))
    assert photo is not None
    a = np.ascontiguousarray(photo[200:456, 200:456])
    b = np.asarray(cv2.warpPerspective(a, H, (256, 256)), np.uint8)
    if noise:
        b = np.random.default_rng(0).integers(0, 256, b.shape).astype(np.uint8)
    known = grid(8).astype(np.float32)
    return TrainingPair(a, b, known, transfer(H, known).astype(np.float32), "graf", ("a", "b"))


def test_figures_tell_right_from_wrong() -> None:
    model = D2Net.from_pretrained("ots")
    settings = TrainingSettings(sampling="bilinear")
    right = Validation([warped_pair()], settings)(model)
    wrong = Validation([warped_pair(noise=1)], settings)(model)
    assert right["accuracy@10"] > 0.6 > 0.2 > wrong["accuracy@10"]
    assert right["accuracy@3"] <= right["accuracy@10"]
    assert right["right@10"] > 30
    assert right["loss"] < wrong["loss"]
    assert right["score"] == pytest.approx((right["accuracy@3"] + right["accuracy@10"]) / 2)
    assert right["loss/graf"] == right["loss"]


def test_every_source_counts_the_same() -> None:
    one, other = warped_pair(), warped_pair(noise=1)
    other = TrainingPair(
        other.image_a, other.image_b, other.points_a, other.points_b, "noise", other.photos
    )
    figures = Validation([one, one, one, other], TrainingSettings())(make_tiny_model())
    for name in ("loss", "accuracy@10", "right@10"):
        mean = (figures[f"{name}/graf"] + figures[f"{name}/noise"]) / 2
        assert figures[name] == pytest.approx(mean)


def test_matches_of_the_identity_are_exact() -> None:
    known = grid(8).astype(np.float32)
    image = warped_pair().image_a
    judged = judge(make_tiny_model(), TrainingPair(image, image, known, known, "a", ("a", "a")))
    assert len(judged.errors) > 10
    np.testing.assert_allclose(judged.errors, 0, atol=1e-4)
    assert judged.matches.num_inliers == len(judged.errors)


def test_pictures_show_matches_and_scores() -> None:
    pictures = Validation([warped_pair()], TrainingSettings()).pictures(make_tiny_model())
    assert set(pictures) == {"matches/graf", "scores/graf"}
    for picture in pictures.values():
        assert min(picture.size) > 200


def test_fixed_pairs_are_fixed_and_held_out() -> None:
    """The same whatever the run's seed; and never drawn for training."""
    table = {"kind": "photos", "path": ".", "hold_out": 2, "min_correspondences": 16}
    one, other = (
        TrainingSettings.from_dict(
            {"sources": [table], "seed": seed, "crop": 64, "validation_pairs": 3}
        )
        for seed in (1, 2)
    )
    pairs = fixed_pairs(one, DATA)
    for a, b in zip(pairs, fixed_pairs(other, DATA), strict=True):
        np.testing.assert_array_equal(a.image_b, b.image_b)
    assert {Path(pair.photos[0]).name for pair in pairs} == {"graf3.png"}
