"""`d2net data`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ..training.megadepth import write_raw
from ..training.plane import NAMES, Plane, write_depth_png
from .conftest import Real, Run


@pytest.fixture
def scene(here: Path) -> Path:
    return Plane(size=(320, 256)).write(here / "scene")


def test_check_draws_and_counts(d2net: Run, scene: Path) -> None:
    run = d2net("data", "check", scene, "--crop", 128, "--pairs", 6, "-o", "seen.png")
    assert (run.code, run.err) == (0, "")
    assert "usable share            1\n" in run.out
    assert "kind                    colmap\n" in run.out
    with Image.open("seen.png") as picture:
        pixels = np.asarray(picture)
    assert pixels.shape[1] > 1500
    saturated = (pixels.max(axis=2) == 255) & (pixels.min(axis=2) < 120)
    assert saturated.mean() > 0.001  # the dots


def test_check_in_json_with_options(d2net: Run, scene: Path) -> None:
    arguments = ["data", "check", scene, "--crop", 128, "--pairs", 4, "--json"]
    plain = d2net(*arguments, "--set", "min_overlap=0.9").json
    assert plain["kind"] == "colmap" and plain["drawn"] == 4
    assert plain["pairs"] < d2net(*arguments).json["pairs"]


def test_check_of_blank_photos_in_json(d2net: Run, here: Path) -> None:
    (here / "blank").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (200, 150), "gray").save(here / "blank" / name)
    run = d2net("data", "check", "blank", "--crop", 128, "--pairs", 2, "--json")
    assert run.json["sift_error_median"] is None


def test_check_warns_of_wrong_depth(d2net: Run, scene: Path) -> None:
    for number, name in enumerate(NAMES):
        write_depth_png(scene / "depth" / name, Plane(size=(320, 256)).depth(number))
    wrong = d2net("data", "check", scene, "--set", "png_unit=0.002", "--pairs", 4, "--crop", 128)
    assert wrong.code == 1
    assert "warning: depth_error is 1, over 0.05: depth and poses have different units" in wrong.out


def test_check_tells_what_is_wrong(d2net: Run, here: Path, scene: Path) -> None:
    for arguments, message in (
        (["nowhere"], "there is no folder nowhere"),
        ([scene, "--set", "overlap=1"], "unknown setting 'overlap'"),
        ([scene, "--crop", 100], "crop must be a multiple of 8"),
        ([scene, "--pairs", 0], "the number of pairs to draw must be at least 1"),
        ([scene, "-o", "seen.gif"], "a picture must be"),
    ):
        run = d2net("data", "check", *arguments)
        assert run.code == 2
        assert run.err.startswith(f"error: {message}"), run.err
    assert not list(here.glob("*.png"))


def test_prepare_megadepth(d2net: Run, here: Path) -> None:
    write_raw(here / "megadepth", "0001", "0003")
    run = d2net("data", "prepare", "megadepth", "megadepth", "-o", "prepared")
    assert (run.code, run.err) == (0, "")
    assert run.out == "0001/0  4 photos  12 pairs\n0003/0  4 photos  12 pairs\n"
    again = d2net("data", "prepare", "megadepth", "megadepth", "-o", "prepared", "--json").json
    assert [scene["photos"] for scene in again] == [4, 4]
    checked = d2net("data", "check", "prepared", "--crop", 64, "--set", "min_correspondences=10")
    assert checked.code == 0
    assert "kind                    megadepth\n" in checked.out
    bad = d2net("data", "prepare", "megadepth", "prepared", "-o", "x")
    assert bad.code == 2 and "does not hold MegaDepth" in bad.err


def test_the_real_command(real: Real, scene: Path) -> None:
    run = real("data", "check", scene, "--crop", 128, "--pairs", 2, "--quiet")
    assert (run.code, run.out, run.err) == (0, "", "")
