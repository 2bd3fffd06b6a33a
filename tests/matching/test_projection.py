"""Principal components: what they keep, and that they depend on nothing but the vectors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from d2net.matching.projection import Projection


@pytest.fixture
def vectors():
    """Of 300 dimensions, but varying in 5, by less and less."""
    chance = np.random.default_rng(0)
    basis, _ = np.linalg.qr(chance.normal(size=(300, 5)))
    weights = chance.normal(size=(40, 5)) * [8, 4, 2, 1, 0.5]
    return (weights @ basis.T + chance.normal(size=300) / 10).astype(np.float32)


def test_what_varies_is_kept(vectors):
    projection = Projection.learn(vectors, 5)
    assert projection.axes.shape == (300, 5)
    lengths = np.linalg.norm(projection.axes, axis=0)
    assert_allclose(
        (projection.axes / lengths).T @ (projection.axes / lengths), np.eye(5), atol=2e-3
    )
    short = vectors @ projection.axes - projection.offset
    assert_allclose(short.mean(axis=0), 0, atol=1e-2)
    centred = vectors - vectors.mean(axis=0)
    back = short / lengths  # along axes of unit length
    assert_allclose(back @ back.T, centred @ centred.T, rtol=5e-3, atol=0.05)
    deviations = back.std(axis=0)
    assert (np.diff(deviations) < 0).all()
    assert_allclose(short.std(axis=0), np.sqrt(deviations * deviations[0]), rtol=5e-3)
    assert_allclose(projection(vectors[3]), short[3] / np.linalg.norm(short[3]), atol=1e-5)


def test_there_are_no_more_components_than_directions(vectors):
    assert Projection.learn(vectors, 512).axes.shape == (300, 5)
    assert Projection.learn(vectors[:3], 512).axes.shape == (300, 2)


def test_the_same_vectors_give_the_same_components(vectors):
    a, b = (Projection.learn(vectors, 3) for _ in range(2))
    assert_array_equal(a.axes, b.axes)
    assert_array_equal(a.offset, b.offset)


def test_nothing_stays_nothing(vectors):
    assert not Projection.learn(vectors, 3)(np.zeros(300, np.float32)).any()
