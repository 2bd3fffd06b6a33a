"""Validation: whether figures tell good weights from bad."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from d2net.training.objective import fixed_pairs, match_errors
from d2net.training.settings import TrainingSettings
from d2net.training.sources.base import TrainingPair
from d2net.training.supervised import SupervisedObjective

from ..tiny import make_tiny_model
from .plane_pair import grid, warped_pair

DATA = Path(__file__).parents[1] / "data"
NAMES = ("loss", "accuracy@3", "accuracy@10", "right@10")


def validated(*pairs: TrainingPair) -> dict[str, float]:
    sources = [{"kind": "photos", "path": ".", "hold_out": 2}]
    settings = TrainingSettings.from_dict({"sources": sources, "sampling": "bilinear"})
    objective = SupervisedObjective(settings, DATA)
    objective._fixed = list(pairs)
    figures = objective.validate()
    assert figures is not None
    return figures


def test_figures_tell_right_from_wrong_and_every_source_counts_the_same() -> None:
    noise = replace(warped_pair(noise=1), source="noise")
    figures = validated(warped_pair(), warped_pair(), noise)
    right, wrong = ({k: figures[f"{k}/{name}"] for k in NAMES} for name in ("graf", "noise"))
    assert right["accuracy@10"] > 0.6 > 0.2 > wrong["accuracy@10"]
    assert right["accuracy@3"] <= right["accuracy@10"]
    assert right["right@10"] > 30
    assert right["loss"] < wrong["loss"]
    for name in NAMES:
        assert figures[name] == pytest.approx((right[name] + wrong[name]) / 2)
    assert figures["score"] == pytest.approx((figures["accuracy@3"] + figures["accuracy@10"]) / 2)


def test_matches_of_the_identity_are_exact() -> None:
    known = grid(8).astype(np.float32)
    image = warped_pair().image_a
    pair = TrainingPair(image, image, known, known, "a", ("a", "a"))
    judged = match_errors(make_tiny_model(), pair)
    assert len(judged) > 10
    np.testing.assert_allclose(judged, 0, atol=1e-4)


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
