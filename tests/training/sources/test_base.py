"""Opening sources by specification, and options typed on a command line."""

from __future__ import annotations

import pytest

from d2net.errors import InputError
from d2net.training.sources import open_source, parse_options


@pytest.mark.parametrize(
    ("specification", "message"),
    [
        ({"path": "x"}, "the kind of a source must be one of colmap"),
        ({"kind": "film", "path": "x"}, "not 'film'"),
        ({"kind": "photos"}, "needs a path"),
        ({"kind": "photos", "path": "x", "min_overlap": 0.5}, "unknown setting 'min_overlap'"),
        ({"kind": "photos", "path": "x", "rotation": "30"}, "rotation must be a number"),
        ({"kind": "photos", "path": "x", "max_edge": 2.5}, "max_edge must be a whole number"),
        ({"kind": "colmap", "path": "x", "depth": 1}, "depth must be True or False"),
        ({"kind": "photos", "path": "x", "photometric": 9}, "photometric must be a strength"),
        ({"kind": "photos", "path": "x", "scale": 0.5}, "scale must be a ratio"),
        ({"kind": "photos", "path": "x", "max_edge": 2}, "max_edge must be at least 8"),
        ({"kind": "photos", "path": "x", "min_correspondences": -1}, "min_correspondences"),
    ],
)
def test_wrong_specifications_are_refused(specification, message):
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
    for text, message in (
        ("depth=0", "true or false"),
        ("x", "name=value"),
        ("x=1", "has no option 'x'"),
    ):
        with pytest.raises(InputError, match=message):
            parse_options("colmap", [text])
