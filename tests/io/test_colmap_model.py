"""COLMAP's models on disk, whole and cut."""

from __future__ import annotations

import struct

import numpy as np  # noqa: F401 (before pycolmap)
import pycolmap
import pytest

from d2net.errors import FormatError, InputError
from d2net.io.colmap_model import find_model, read_model

FILES = ("cameras", "rigs", "frames", "images", "points3D")


@pytest.fixture
def model(tmp_path):
    """Of two rigs of two cameras, in COLMAP's binary form."""
    made = pycolmap.synthesize_dataset(
        pycolmap.SyntheticDatasetOptions(
            num_rigs=2, num_cameras_per_rig=2, num_frames_per_rig=3, num_points3D=50
        )
    )
    made.write_binary(tmp_path)
    return tmp_path


def test_whole_models_are_read(model):
    read = read_model(model)
    assert (read.num_points3D(), read.num_images(), read.num_rigs()) == (50, 12, 2)


def test_a_folder_that_is_a_model_stands_for_itself(model):
    (model / "model").mkdir()
    pycolmap.synthesize_dataset(
        pycolmap.SyntheticDatasetOptions(num_rigs=1, num_cameras_per_rig=1, num_frames_per_rig=2)
    ).write_binary(model / "model")
    assert find_model(model) == model
    assert read_model(model).num_images() == 12


def test_sparse_stands_for_its_first_model(model, tmp_path):
    assert find_model(model) == model
    first = tmp_path / "scene" / "sparse" / "0"
    first.mkdir(parents=True)
    for file in model.glob("*.bin"):
        file.rename(first / file.name)
    assert find_model(tmp_path / "scene") == find_model(tmp_path / "scene" / "sparse") == first
    assert read_model(tmp_path / "scene" / "sparse").num_images() == 12
    assert find_model(model) is None
    (tmp_path / "scene" / "sparse").rename(tmp_path / "numbered")
    assert find_model(tmp_path / "numbered") is None  # scenes may be numbered


def test_photos_without_keypoints_in_text_models(tmp_path):
    (tmp_path / "cameras.txt").write_text("1 SIMPLE_PINHOLE 640 480 500 320 240\n")
    (tmp_path / "points3D.txt").touch()
    (tmp_path / "images.txt").write_text(
        "# comment\n1 1 0 0 0 0 0 0 1 a b.jpg\n\n2 1 0 0 0 0 0 0 1 c.jpg\n\n"
    )
    read = read_model(tmp_path)
    assert sorted(image.name for image in read.images.values()) == ["a b.jpg", "c.jpg"]


def test_text_models_without_lines_of_keypoints_are_refused(tmp_path):
    """COLMAP would take every second photo for the keypoints of the first."""
    (tmp_path / "cameras.txt").write_text("1 SIMPLE_PINHOLE 640 480 500 320 240\n")
    (tmp_path / "points3D.txt").touch()
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.jpg\n2 1 0 0 0 0 0 0 1 b.jpg\n")
    with pytest.raises(FormatError, match=r"1 a\.jpg"):
        read_model(tmp_path)
    (tmp_path / "points3D.txt").unlink()
    with pytest.raises(InputError, match="expected cameras, images and points3D"):
        read_model(tmp_path)


def test_names_in_text_models_may_contain_spaces(model, tmp_path):
    made = read_model(model)
    names = {number: f"my photos/{number} ü.jpg" for number in made.images}
    for number, name in names.items():
        made.images[number].name = name
    (tmp_path / "text").mkdir()
    made.write_text(tmp_path / "text")
    read = read_model(tmp_path / "text")
    assert {number: image.name for number, image in read.images.items()} == names


@pytest.mark.parametrize("name", FILES)
def test_wherever_a_file_is_cut_it_is_told(model, name):
    path = model / f"{name}.bin"
    data = path.read_bytes()
    step = max(1, len(data) // 20)
    for length in [*range(0, len(data) - 1, step), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(FormatError, match=rf"{name}\.bin is empty, cut off or damaged"):
            read_model(model)


def test_an_empty_file_is_one_sentence_and_not_17_gigabytes(model):
    (model / "points3D.bin").write_bytes(b"")
    with pytest.raises(FormatError, match=r"points3D\.bin is empty.*its 0 bytes end before"):
        read_model(model)


def test_damaged_counts_are_told(model):
    path = model / "points3D.bin"
    data = bytearray(path.read_bytes())
    struct.pack_into("<Q", data, 8 + 43, 1 << 60)  # the first point's track
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"points3D\.bin .*50 points3D, .* before number 1"):
        read_model(model)


def test_an_unknown_kind_of_camera_is_told(model):
    path = model / "cameras.bin"
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8 + 4, 999)
    path.write_bytes(data)
    with pytest.raises(FormatError, match=r"cameras\.bin"):
        read_model(model)


def test_panoramas_are_refused(tmp_path):
    (tmp_path / "cameras.txt").write_text("1 EQUIRECTANGULAR 640 320 640 320\n")
    (tmp_path / "points3D.txt").touch()
    (tmp_path / "images.txt").write_text("1 1 0 0 0 0 0 0 1 a.jpg\n\n")
    with pytest.raises(InputError, match="cut them into perspective photos"):
        read_model(tmp_path)
