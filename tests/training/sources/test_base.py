"""Opening sources by specification, and options typed on a command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from d2net.errors import InputError
from d2net.settings import parse_settings
from d2net.training.sources import open_source


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("film", {}, "the kind of a source must be one of colmap"),
        ("photos", {"min_overlap": 0.5}, "unknown setting 'min_overlap'"),
        ("photos", {"rotation": "30"}, "rotation must be a number"),
        ("photos", {"max_edge": 2.5}, "max_edge must be a whole number"),
        ("colmap", {"depth": 1}, "depth must be True or False"),
        ("photos", {"photometric": 9}, "photometric must be a strength"),
        ("photos", {"scale": 0.5}, "scale must be a ratio"),
        ("photos", {"max_edge": 2}, "max_edge must be at least 8"),
        ("photos", {"min_correspondences": -1}, "min_correspondences"),
    ],
)
def test_wrong_specifications_are_refused(kind, options, message):
    with pytest.raises(InputError, match=message):
        open_source(kind, Path("x"), 64, options)


def test_options_as_typed() -> None:
    texts = ["min_overlap=0.2", "depth=false", "max_edge=640", "model=mine", "upright"]
    assert parse_settings(texts) == {
        "min_overlap": 0.2,
        "depth": False,
        "max_edge": 640,
        "model": "mine",
        "upright": True,
    }
