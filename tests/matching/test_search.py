"""The search of many vectors, against comparing with all of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from d2net.matching import search
from d2net.matching.search import VectorSearch

DIMENSION = 64
POSES, VIEWS = 700, 6


@pytest.fixture(scope="module")
def vectors():
    """Views of places: those of one place are much alike."""
    chance = np.random.default_rng(0)
    places = chance.normal(size=(POSES, 1, DIMENSION))
    views = places + 0.6 * chance.normal(size=(POSES, VIEWS, DIMENSION))
    flat = views.reshape(-1, DIMENSION)
    return (flat / np.linalg.norm(flat, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture
def many(monkeypatch):
    monkeypatch.setattr(search, "MAX_EXACT", 1000)
    monkeypatch.setattr(search, "_SEARCHED_LISTS", 16)
    monkeypatch.setattr(search, "_CODE_BYTES", 16)


def exactly(vectors, queries, k):
    cosines = queries @ vectors.astype(np.float32).T
    rows = (-cosines).argsort(axis=1, kind="stable")[:, :k]
    return np.take_along_axis(cosines, rows, axis=1), rows


def test_few_vectors_are_all_compared(vectors):
    queries = vectors[::50].astype(np.float32)
    cosines, rows = VectorSearch(vectors).nearest(queries, 10)
    expected, expected_rows = exactly(vectors, queries, 10)
    assert_array_equal(rows, expected_rows)
    assert_allclose(cosines, expected, atol=1e-6)


def test_many_are_found_by_their_codes(vectors, many):
    queries = vectors[::10].astype(np.float32)
    cosines, rows = VectorSearch(vectors).nearest(queries, VIEWS)
    _, expected = exactly(vectors, queries, VIEWS)
    found = [len(set(a) & set(b)) / VIEWS for a, b in zip(rows, expected, strict=True)]
    assert np.mean(found) > 0.97
    assert_array_equal(rows[:, 0], np.arange(len(vectors))[::10])  # each finds itself
    assert (np.diff(cosines, axis=1) <= 0).all()
    assert_allclose(
        cosines, np.einsum("qd,qkd->qk", queries, vectors[rows].astype(np.float32)), atol=1e-5
    )


def test_the_same_vectors_give_the_same_answers(vectors, many):
    queries = vectors[:20].astype(np.float32)
    first, second = (VectorSearch(vectors).nearest(queries, 5) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert_array_equal(a, b)


def test_where_fewer_are_found_than_asked_for(vectors, many, monkeypatch):
    monkeypatch.setattr(search, "_SEARCHED_LISTS", 1)
    cosines, rows = VectorSearch(vectors).nearest(vectors[:3].astype(np.float32), 1500)
    assert (rows[:, 0] == range(3)).all()
    assert (rows[:, -1] == -1).all()
    assert np.isneginf(cosines[:, -1]).all()
