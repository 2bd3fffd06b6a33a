"""Validation: whether figures tell good weights from bad."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from d2net import D2Net
from d2net.training.settings import TrainingSettings
from d2net.training.sources import TrainingPair
from d2net.training.supervised import SupervisedObjective
from d2net.training.validation import Validation, fixed_pairs, match_pair

from ..tiny import make_tiny_model
from .plane_pair import grid, warped_pair

DATA = Path(__file__).parents[1] / "data"


def test_figures_tell_right_from_wrong() -> None:
    model = D2Net.from_pretrained("ots")
    objective = SupervisedObjective(TrainingSettings(sampling="bilinear"), DATA)
    right = Validation([warped_pair()], objective.pair_loss)(model)
    wrong = Validation([warped_pair(noise=1)], objective.pair_loss)(model)
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
    figures = Validation([one, one, one, other], lambda pair: float(pair is other))(
        make_tiny_model()
    )
    for name in ("loss", "accuracy@10", "right@10"):
        mean = (figures[f"{name}/graf"] + figures[f"{name}/noise"]) / 2
        assert figures[name] == pytest.approx(mean)


def test_matches_of_the_identity_are_exact() -> None:
    known = grid(8).astype(np.float32)
    image = warped_pair().image_a
    pair = TrainingPair(image, image, known, known, "a", ("a", "a"))
    _, errors = match_pair(make_tiny_model(), pair)
    judged = errors[np.isfinite(errors)]
    assert len(judged) > 10
    np.testing.assert_allclose(judged, 0, atol=1e-4)


def test_pictures_show_matches_and_scores() -> None:
    validation = Validation([warped_pair()], lambda _: 0.0)
    scores = np.random.default_rng(0).random((32, 32), np.float32)
    pictures = validation.pictures(make_tiny_model(), lambda _: scores)
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
    assert {Path(pair.photos[0]).name for pair in pairs} == {"graf3.jpg"}
