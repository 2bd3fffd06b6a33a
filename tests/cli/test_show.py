"""`d2net show`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from .conftest import Run


def test_the_picture_shows_keypoints_and_score_map(d2net: Run, photos: Path) -> None:
    run = d2net("show", photos / "a.png", "-o", "all.png")
    assert (run.code, run.err) == (0, "")
    assert run.out.endswith(" keypoints in 96 x 80 pixels: all.png\n")
    d2net("show", photos / "a.png", "-o", "few.png", "--max-keypoints", 3)
    with Image.open("all.png") as all_of_them, Image.open("few.png") as few:
        assert all_of_them.size == few.size
        left, right = np.split(np.asarray(all_of_them) != np.asarray(few), 2, axis=1)
    assert left.any()  # the keypoints
    assert not right[80:].any()  # the score map, below the caption, is of the photo alone


def test_json_and_quiet(d2net: Run, photos: Path) -> None:
    run = d2net("show", photos / "a.png", "--json", "--max-keypoints", 5)
    assert run.json == {
        "photo": str(photos / "a.png"),
        "image_size": [96, 80],
        "keypoints": 5,
        "picture": "keypoints.png",
    }
    assert d2net("show", photos / "a.png", "--quiet").out == ""


def test_a_photo_without_keypoints(d2net: Run, here: Path) -> None:
    for size in ((1, 1), (60, 50)):
        Image.new("RGB", size).save("black.png")
        assert d2net("show", "black.png").out.startswith("0 keypoints")
