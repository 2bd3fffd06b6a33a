"""`d2net pairs`: from photos or features to a list of pairs, and on to matching."""

from __future__ import annotations

import itertools
from pathlib import Path

import pycolmap
import pytest
from PIL import Image

from d2net.io.h5 import FeatureWriter, MatchFile
from d2net.io.pair_lists import read_pairs

from ..io.samples import make_features
from ..tiny import write_photos
from .conftest import Run

NAMES = [f"video 1/frame {i}.png" for i in range(12)]


def write_features(path: Path) -> None:
    with FeatureWriter(path, {}) as writer:
        for name in ("a.png", "b.png"):
            writer.add(name, make_features())


@pytest.fixture
def frames(here: Path) -> Path:
    return write_photos(here / "frames", *NAMES)


def test_from_photos_to_matches(d2net: Run, frames: Path) -> None:
    assert d2net("extract", frames, "-o", "f.h5", "-q").code == 0
    run = d2net("pairs", "f.h5", "--method", "retrieval", "--num-matched", 2)
    assert (run.code, run.err) == (0, "")
    found = read_pairs("pairs.txt")
    assert run.out == f"{len(found)} pairs of 12 photos: pairs.txt\n"
    assert 12 <= len(found) <= 24
    assert d2net("match", "--features", "f.h5", "--pairs", "pairs.txt", "-o", "m.h5").code == 0
    with MatchFile("m.h5") as file:
        assert file.pairs == sorted(found)


def test_exhaustive_and_sequential_from_names(d2net: Run, frames: Path) -> None:
    d2net("extract", frames, "-o", "f.h5", "-q")
    for source in (frames, "f.h5"):
        run = d2net("pairs", source, "--method", "exhaustive", "-o", "all.txt", "--json")
        assert run.json == {"pairs": 66, "photos": 12, "unpaired": [], "output": "all.txt"}
        assert d2net("pairs", source, "--method", "sequential", "--overlap", 1).code == 0
        # in the order of their numbers: 10 follows 9
        assert read_pairs("pairs.txt") == list(itertools.pairwise(NAMES))


def test_gps(d2net: Run, here: Path) -> None:
    for i, east in enumerate((0, 0.0005, 0.0015, None)):
        exif = Image.Exif()
        if east is not None:
            exif[0x8825] = {1: "N", 2: (1.0, 0.0, 0.0), 3: "E", 4: (east, 0.0, 0.0)}
        (here / "photos").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(here / "photos" / f"{i}.jpg", exif=exif)
    run = d2net("pairs", "photos", "--method", "gps", "--max-distance", 60)
    assert read_pairs("pairs.txt") == [("0.jpg", "1.jpg")]
    assert run.out == "1 pair of 2 photos; 2 photos in no pair, such as 2.jpg: pairs.txt\n"
    run = d2net(
        "pairs", "photos", "--method", "gps", "--num-matched", 1, "--max-distance", 1000, "--json"
    )
    assert read_pairs("pairs.txt") == [("0.jpg", "1.jpg"), ("1.jpg", "2.jpg")]
    assert run.json["unpaired"] == ["3.jpg"]


def test_covisibility(d2net: Run, here: Path) -> None:
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=1, num_cameras_per_rig=1, num_frames_per_rig=4, num_points3D=30
    )
    model = pycolmap.synthesize_dataset(options)
    names = sorted(image.name for image in model.images.values())
    write_photos(here / "photos", *names, "other.png")
    for folder in ("map", "map/sparse/0"):
        (here / folder).mkdir(parents=True, exist_ok=True)
    model.write(here / "map" / "sparse" / "0")
    run = d2net("pairs", "photos", "--method", "covisibility", "--model", "map", "--json")
    assert len(read_pairs("pairs.txt")) == 6
    assert run.json["unpaired"] == ["other.png"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("frames", "--method"),
        ("none --method exhaustive", "there is no file or folder 'none'"),
        ("list.txt --method exhaustive", "not an HDF5 file"),
        ("frames --method retrieval", "extract PHOTOS --output features.h5"),
        ("frames --method gps", "none of the 12 photos has a GPS position"),
        ("f.h5 --method gps", "give their folder"),
        ("frames --method covisibility", "covisibility needs a COLMAP model"),
        ("frames --method covisibility --model frames", "holds no COLMAP model"),
        ("frames --method sequential --overlap 0", "overlap must be"),
        (
            "frames --method exhaustive --overlap 3",
            "--overlap is for sequential, not for exhaustive",
        ),
        ("frames --method sequential --num-matched 3", "--num-matched is for auto, retrieval"),
        ("one --method exhaustive", "no pair of the 1 photo in one"),
        ("frames --method exhaustive -o no/pairs.txt", "the folder no does not exist"),
    ],
)
def test_bad_input(d2net: Run, frames: Path, line: str, message: str) -> None:
    write_photos(Path("one"), "a.png")
    write_features(Path("f.h5"))
    Path("list.txt").write_text("a.png b.png\n")
    run = d2net("pairs", *line.split())
    assert (run.code, run.out) == (2, "")
    assert run.err.startswith("error: ")
    assert message in run.err
    assert not Path("pairs.txt").exists()


def test_a_file_that_is_called_like_a_method_is_no_list(d2net: Run, here: Path) -> None:
    Path("auto").write_text("a.png b.png\n")
    Path("empty").mkdir()
    command = ("reconstruct", "empty", "--num-matched", "3")
    assert "at least two photos" in d2net(*command).err
    assert "not for list" in d2net(*command, "--pairs", "./auto").err


def test_a_list_of_other_things_is_not_replaced(d2net: Run, frames: Path) -> None:
    todo = Path("todo.txt")
    todo.write_text("buy milk\ncall mum\n")
    assert d2net("pairs", frames, "--method", "exhaustive", "-o", todo).code == 2
    assert todo.read_text() == "buy milk\ncall mum\n"
    todo.write_text("frames/gone.png\tvideo 1/frame 3.png\n")  # one of these photos
    assert d2net("pairs", frames, "--method", "exhaustive", "-o", todo).code == 0
