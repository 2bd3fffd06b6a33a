"""`d2net export`."""

from __future__ import annotations

import re
import shlex
import sqlite3
from pathlib import Path

import h5py
import numpy as np
import pytest

from d2net.io.h5 import FeatureFile
from d2net.mapping.reconstruct import reconstruct

from ..mapping.made import write_photos
from ..mapping.test_reconstruct import PLACES, network
from .conftest import Run


@pytest.fixture
def files(d2net: Run, photos: Path) -> tuple[str, str]:
    """A features file and a matches file."""
    (photos / "new\nline.png").unlink()
    d2net("extract", photos, "-o", "f.h5")
    Path("pairs.txt").write_text("a.png\tday 1/ü b.png\n")
    pairs = ("--pairs", "pairs.txt", "--verify", "none")
    d2net("match", "--features", "f.h5", *pairs, "-o", "m.h5")
    return "f.h5", "m.h5"


def test_colmap(d2net: Run, files: tuple[str, str]) -> None:
    features, matches = files
    run = d2net("export", "colmap", "--features", features, "--matches", matches, "db")
    assert (run.code, run.err) == (0, "")
    assert run.out == "2 photos and 1 pair written: db\n"
    with sqlite3.connect("db") as database, FeatureFile(features) as file:
        names = {name for (name,) in database.execute("select name from images")}
        rows = dict(
            database.execute("select name, rows from images join keypoints using (image_id)")
        )
        assert database.execute("select count(*) from matches").fetchone() == (1,)
        assert names == set(file)
        assert rows == {name: len(file[name]) for name in file}
    database.close()
    assert d2net("export", "colmap", "--features", features, "db").code == 2


def test_kapture(d2net: Run, files: tuple[str, str]) -> None:
    features, matches = files
    arguments = ("export", "kapture", "--features", features, "--matches", matches)
    run = d2net(*arguments, "folder", "--json")
    assert run.json == {"photos": 2, "pairs": 1, "output": "folder"}
    keypoints = np.fromfile("folder/reconstruction/keypoints/d2net/a.png.kpt", "<f4")
    with FeatureFile(features) as file:
        expected = file["a.png"].keypoints.numpy() + 0.5
    assert np.array_equal(keypoints.reshape(-1, 3)[:, :2], expected)
    assert d2net(*arguments, "folder").code == 2


@pytest.mark.parametrize("to", ["colmap", "kapture"])
def test_files_of_the_wrong_kind(d2net: Run, files: tuple[str, str], to: str) -> None:
    features, matches = files
    with h5py.File("empty.h5", "w") as file:
        file["numbers"] = [1, 2, 3]
    d2net("extract", "photos/a.png", "-o", "others.h5")
    for arguments, message in (
        (("--features", matches), "m.h5 contains no features"),
        (("--features", features, "--matches", features), "f.h5 contains no matches"),
        (("--features", "empty.h5"), "empty.h5 contains no features"),
        (("--features", "others.h5", "--matches", matches), "no pair of the photos in others.h5"),
    ):
        run = d2net("export", to, *arguments, "out")
        assert (run.code, run.out) == (2, "")
        assert message in run.err
        assert not Path("out").exists()


@pytest.mark.parametrize("to", ["colmap", "kapture"])
def test_matches_of_other_features_are_refused(d2net: Run, files: tuple[str, str], to: str) -> None:
    features, matches = files
    d2net("extract", "photos", "-o", "few.h5", "--max-keypoints", "9")
    Path("photos/a.png").write_bytes(Path("photos/day 1/ü b.png").read_bytes())
    d2net("extract", "photos", "-o", features)
    for file in (features, "few.h5"):
        run = d2net("export", to, "--features", file, "--matches", matches, "out")
        assert (run.code, "and match again" in run.err) == (2, True)
    assert d2net("match", "--features", features, "--pairs", "pairs.txt", "-o", "n.h5").code == 0
    assert d2net("export", to, "--features", features, "--matches", "n.h5", "out").code == 0


@pytest.mark.parametrize("to", ["colmap", "kapture"])
def test_an_output_that_cannot_be_written(d2net: Run, files: tuple[str, str], to: str) -> None:
    run = d2net("export", to, "--features", files[0], "none/out")
    assert run.code == 2
    assert "none does not exist" in run.err


def test_a_scene_of_a_map_in_parts_says_so(d2net: Run, here: Path) -> None:
    photos = write_photos(here / "two places", range(12))
    reconstruct(photos, here / "map", model=network(PLACES))
    run = d2net("export", "scene", "map", "scene")
    assert re.fullmatch(r"6 photos and \d+ points of the first of 2 maps written: scene\n", run.out)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_onnx(d2net: Run) -> None:
    run = d2net("export", "onnx", "folder", "--max-keypoints", "9", "--json")
    assert run.code == 0
    assert run.json["output"] == "folder"
    assert {path.name for path in Path("folder").iterdir()} == {"d2net.onnx", "d2net_onnx.py"}
    assert run.json["bytes"] == Path("folder/d2net.onnx").stat().st_size


def test_the_onnx_program_is_named_in_quotes(d2net: Run) -> None:
    run = d2net("export", "onnx", "my folder", "--max-keypoints", "9")
    assert shlex.split(run.out.splitlines()[-1])[3] == str(Path("my folder/d2net_onnx.py"))


def test_an_onnx_graph_of_the_release(d2net: Run) -> None:
    run = d2net("export", "onnx", "folder", "--original")
    assert (run.code, run.out) == (2, "")
    assert "has one scale" in run.err
