"""Mixing sources, opening them by specification, and options typed on a command line."""

from __future__ import annotations

import numpy as np
import pytest

from d2net.errors import InputError
from d2net.training.sources import Mixture, TrainingPair, generator, open_source, parse_options

EMPTY = np.empty((0, 2), np.float32)


class Known:
    """Pairs that say which they are; every third has no correspondences."""

    def __init__(self, name, count, usable=True):
        self.name, self._count, self._usable = name, count, usable

    def __len__(self):
        return self._count

    def pair(self, index, rng):
        if not self._usable or index % 3 == 2:
            return None
        crop = np.full((8, 8, 3), rng.integers(256), np.uint8)
        return TrainingPair(crop, crop, EMPTY, EMPTY, self.name, (str(index), ""))


def test_shares_follow_weights():
    mixture = Mixture([Known("a", 5), Known("b", 50)], [3, 1])
    drawn = [mixture.draw(generator(1, step)) for step in range(2000)]
    share = np.mean([source.name == "a" for source, _ in drawn])
    assert 0.71 < share < 0.79
    assert {index for source, index in drawn if source.name == "a"} == set(range(5))
    assert len(mixture) == 55


def test_a_step_is_a_function_of_seed_and_number():
    mixture = Mixture([Known("a", 50), Known("b", 50)])

    def step(number, seed=4, place=0):
        pair, _ = mixture.sample(generator(seed, number, place))
        return pair.source, pair.photos, int(pair.image_a[0, 0, 0])

    forward = [step(number) for number in range(20)]
    assert [step(number) for number in reversed(range(20))] == forward[::-1]
    assert [step(number, place=1) for number in range(20)] != forward
    assert [step(number, seed=5) for number in range(20)] != forward


def test_pairs_without_correspondences_are_counted():
    mixture = Mixture([Known("a", 3)])
    empty = [mixture.sample(generator(0, step))[1] for step in range(300)]
    assert 0.3 < np.mean(empty) < 0.7  # every third: half a failure for each pair
    with pytest.raises(InputError, match="none of 100 pairs drawn from a, b has usable"):
        Mixture([Known("a", 5, usable=False), Known("b", 5, usable=False)]).sample(generator(0, 0))


@pytest.mark.parametrize("weights", [[1], [1, 0], [1, -1], [1, float("nan")]])
def test_impossible_weights(weights):
    with pytest.raises(InputError, match="a mixture of 2 sources needs as many positive weights"):
        Mixture([Known("a", 1), Known("b", 1)], weights)


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ({}, "has a kind, colmap"),
        ({"kind": "film", "path": "x"}, "not 'film'"),
        ({"kind": "photos"}, "needs a path"),
        ({"kind": "photos", "path": "x", "min_overlap": 0.5}, "'min_overlap' is no option"),
        ({"kind": "photos", "path": "x", "rotation": "30"}, "rotation must be a number"),
        ({"kind": "photos", "path": "x", "max_edge": 2.5}, "max_edge must be a whole number"),
        ({"kind": "colmap", "path": "x", "depth": 1}, "depth must be true or false"),
        ({"kind": "photos", "path": "x", "photometric": 9}, "photometric is a strength"),
        ({"kind": "photos", "path": "x", "scale": 0.5}, "scale is a ratio"),
        ({"kind": "photos", "path": "x", "max_edge": 2}, "max_edge is a number of pixels"),
        ({"kind": "photos", "path": "x", "min_correspondences": -1}, "min_correspondences"),
    ],
)
def test_wrong_specifications_are_told(specification, message):
    with pytest.raises(InputError, match=message):
        open_source(specification, 64)


def test_options_as_typed():
    texts = ["min_overlap=0.2", "depth=false", "max_edge=640", "name=mine"]
    assert parse_options("colmap", texts) == {
        "min_overlap": 0.2,
        "depth": False,
        "max_edge": 640,
        "name": "mine",
    }
    for text, message in (("depth=0", "true or false"), ("x", "name=value"), ("x=1", "no option")):
        with pytest.raises(InputError, match=message):
            parse_options("colmap", [text])
