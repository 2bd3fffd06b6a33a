"""Photometric change."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from d2net.training.augment import augment

from ..tiny import DATA


@pytest.fixture(scope="module")
def crop():
    with Image.open(DATA / "graf1.jpg") as image:
        return np.asarray(image.convert("RGB"))[200:328, 300:428].copy()


def test_equal_seeds_give_equal_crops(crop):
    before = crop.copy()
    a, b, c = (augment(crop, 1.0, np.random.default_rng(seed)) for seed in (7, 7, 8))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)
    assert np.array_equal(crop, before)


def test_no_strength_no_augment(crop):
    assert augment(crop, 0.0, np.random.default_rng(0)) is crop


def test_something_is_always_to_be_seen(crop):
    """However dark or bright: the crop keeps contrast, and stays an 8-bit photo."""
    for seed in range(300):
        changed = augment(crop, 1.0, np.random.default_rng(seed))
        assert changed.dtype == np.uint8 and changed.shape == crop.shape
        low, high = np.percentile(changed, (2, 98))
        assert high > 50 and high - low > 12, seed


def test_stronger_changes_more(crop):
    def mean_augment(strength):
        changed = [augment(crop, strength, np.random.default_rng(seed)) for seed in range(60)]
        return np.mean([np.abs(c.astype(float) - crop).mean() for c in changed])

    assert 2 * mean_augment(0.2) < mean_augment(1.0)


def test_edges_stay_where_they_are(crop):
    """Changes move no pixels: gradients of the changed crop still lie on those of the crop."""

    def edges(image):
        grey = image.astype(float).mean(axis=2)
        return np.hypot(*np.gradient(grey))[2:-2, 2:-2]

    def agreement(a, b):
        return np.corrcoef(a.ravel(), b.ravel())[0, 1]

    ours = edges(crop)
    scores = [
        (agreement(ours, edges(c)), agreement(ours, np.roll(edges(c), 3, axis=1)))
        for c in (augment(crop, 1.0, np.random.default_rng(seed)) for seed in range(40))
    ]
    assert np.mean([there > moved for there, moved in scores]) > 0.9
