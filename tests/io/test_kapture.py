"""The kapture package reads what we write."""

import numpy as np
import pytest
import torch

from d2net.errors import FormatError, InputError, OutputError
from d2net.features import Matches
from d2net.io.h5 import MatchFile, MatchWriter
from d2net.io.kapture import write_kapture

from .samples import make_features


@pytest.fixture
def photos():
    return {
        "day/ü 1.jpg": make_features(9, seed=1),
        "day/2.jpg": make_features(7, seed=2, image_size=(40, 2000)).half(),
        "empty.png": make_features(0),
    }


@pytest.fixture
def folder(photos, tmp_path):
    with MatchWriter(tmp_path / "m.h5", {}) as writer:
        matches = Matches(torch.tensor([[0, 3], [5, 1]]), torch.tensor([0.5, 0.25]))
        writer.add("day/ü 1.jpg", "day/2.jpg", matches, 9)
    with MatchFile(tmp_path / "m.h5") as matches:
        write_kapture(tmp_path / "kapture", photos, matches)
    return tmp_path / "kapture"


def test_the_kapture_package_reads_it(folder, photos):
    pytest.importorskip("kapture")
    from kapture.io import csv, features

    data = csv.kapture_from_dir(str(folder))
    names = {name for _, _, name in kapture_records(data)}
    assert names == set(photos)
    for _, camera, name in kapture_records(data):
        assert data.sensors[camera].camera_params == list(photos[name].image_size)
    keypoints = data.keypoints["d2net"]
    descriptors = data.descriptors["d2net"]
    assert set(keypoints) == set(descriptors) == names
    for name, photo in photos.items():
        path = features.get_keypoints_fullpath("d2net", str(folder), name)
        read = features.image_keypoints_from_file(path, keypoints.dtype, keypoints.dsize)
        # kapture has its origin in the corner of the first pixel, as COLMAP has.
        assert np.array_equal(read[:, :2], photo.keypoints + 0.5)
        assert np.array_equal(read[:, 2], photo.scales)
        path = features.get_descriptors_fullpath("d2net", str(folder), name)
        read = features.image_descriptors_from_file(path, descriptors.dtype, descriptors.dsize)
        assert np.array_equal(read, photo.descriptors.float())
    pair = ("day/2.jpg", "day/ü 1.jpg")  # in lexicographic order
    assert set(data.matches["d2net"]) == {pair}
    path = features.get_matches_fullpath(pair, "d2net", str(folder))
    assert features.image_matches_from_file(path).tolist() == [[3, 0, 0.5], [1, 5, 0.25]]


def kapture_records(data):
    import kapture

    return kapture.flatten(data.records_camera)


def test_the_files_are_as_the_format_says(folder, photos):
    """Without the kapture package, by its description."""
    sensors = (folder / "sensors/sensors.txt").read_text().splitlines()
    assert sensors[0] == "# kapture format: 1.1"
    assert sensors[2] == "camera0, , camera, UNKNOWN_CAMERA, 40, 2000"
    records = (folder / "sensors/records_camera.txt").read_text(encoding="utf-8").splitlines()
    assert records[2:] == [
        "0, camera0, day/2.jpg",
        "1, camera1, day/ü 1.jpg",
        "2, camera2, empty.png",
    ]
    keypoints = folder / "reconstruction/keypoints/d2net"
    assert (keypoints / "keypoints.txt").read_text().splitlines()[2] == "d2net, float32, 3"
    read = np.fromfile(keypoints / "day/ü 1.jpg.kpt", "<f4").reshape(-1, 3)
    assert np.array_equal(read[:, :2], photos["day/ü 1.jpg"].keypoints + 0.5)
    assert (keypoints / "empty.png.kpt").read_bytes() == b""
    matches = folder / "reconstruction/matches/d2net/day/2.jpg.overlapping/day/ü 1.jpg.matches"
    assert np.fromfile(matches, "<f8").tolist() == [3, 0, 0.5, 1, 5, 0.25]


@pytest.mark.parametrize(
    "name", ["a,b.jpg", "a\nb.jpg", " a.jpg", "a\\b.jpg", "/a", "a.overlapping/b"]
)
def test_names_that_the_format_cannot_hold(tmp_path, name):
    with pytest.raises(InputError, match="cannot"):
        write_kapture(tmp_path / "kapture", {"good": make_features(), name: make_features()})
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_written_is_left(tmp_path):
    photos = {"a": make_features(dimension=8), "b": make_features(dimension=9)}
    with pytest.raises(FormatError, match="'b' have length 9, but those of 'a' have length 8"):
        write_kapture(tmp_path / "kapture", photos)
    with pytest.raises(InputError, match="no features"):
        write_kapture(tmp_path / "kapture", {})
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(OutputError, match="exists already"):
        write_kapture(tmp_path, {"a": make_features()})
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
