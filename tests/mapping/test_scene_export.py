"""Maps written for Gaussian splatting and nerfstudio."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

from d2net.cli import main
from d2net.errors import FormatError, OutputError
from d2net.mapping.map_folder import MapFolder
from d2net.mapping.scene_export import export_scene

from .test_reconstruct import map_of_truth


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map whose camera has a distorted lens, and its exported scene."""
    root = map_of_truth(tmp_path_factory.mktemp("export"))
    folder = MapFolder(root / "map")
    model = folder.read_models()[0][0]
    for camera in model.cameras.values():
        camera.params = [*camera.params[:3], 0.1]
    folder.save_models([(model, None)])
    export_scene(root / "map", root / "scene")
    return root


def project(frame: dict[str, Any], point: np.ndarray) -> np.ndarray:
    """The pixel of a world point, as nerfstudio's cameras see it (x right, y up, z backward)."""
    x, y, z, _ = np.linalg.inv(frame["transform_matrix"]) @ [*point, 1.0]
    return np.array([frame["cx"] - frame["fl_x"] * x / z, frame["cy"] + frame["fl_y"] * y / z])


def test_nerfstudio_and_colmap_project_a_point_to_the_same_pixel(root: Path) -> None:
    transforms = json.loads((root / "scene" / "transforms.json").read_text())
    model = pycolmap.Reconstruction(root / "scene" / "sparse" / "0")
    images = {image.name: image for image in model.images.values()}
    assert [f"images/{name}" for name in sorted(images)] == [
        frame["file_path"] for frame in transforms["frames"]
    ]
    for frame in transforms["frames"]:
        image = images[frame["file_path"].removeprefix("images/")]
        with Image.open(root / "scene" / frame["file_path"]) as photo:
            assert photo.size == (frame["w"], frame["h"])
        for point in model.points3D.values():
            expected = image.project_point(point.xyz)
            if expected is not None:
                np.testing.assert_allclose(project(frame, point.xyz), expected, atol=1e-6)


def test_keypoints_and_errors_stay_those_of_the_map(root: Path) -> None:
    before = MapFolder(root / "map").read_models()[0][0]
    after = pycolmap.Reconstruction(root / "scene" / "sparse" / "0")
    assert {camera.model_name for camera in after.cameras.values()} == {"PINHOLE"}
    assert after.num_points3D() == before.num_points3D() > 100
    image, old = after.images[1], before.images[1]
    lens, pinhole = before.cameras[old.camera_id], after.cameras[image.camera_id]
    for point, old_point in zip(image.points2D, old.points2D, strict=True):
        ray, old_ray = pinhole.cam_from_img(point.xy), lens.cam_from_img(old_point.xy)
        np.testing.assert_allclose(ray, old_ray, atol=1e-9)


def test_points_have_the_colours_of_the_photos(root: Path) -> None:
    cloud = pycolmap.Reconstruction()
    cloud.import_PLY(root / "scene" / "points.ply")
    model = pycolmap.Reconstruction(root / "scene" / "sparse" / "0")
    assert cloud.num_points3D() == model.num_points3D()
    assert max(point.color.max() for point in cloud.points3D.values()) > 0


def test_the_command_says_what_it_wrote(
    root: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "scene"
    command = ["d2net", "export", "scene", str(root / "map"), str(out), "--json"]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code in (None, 0)
    assert json.loads(capsys.readouterr().out)["photos"] == 6
    assert {path.name for path in out.iterdir()} == {
        "images",
        "sparse",
        "transforms.json",
        "points.ply",
    }


def test_an_existing_folder_is_kept(root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="exists"):
        export_scene(root / "map", tmp_path)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("cut", ["images/photo00.png", "sparse/0/images.bin", "points.ply"])
def test_a_full_disk_leaves_no_half_scene(root: Path, tmp_path: Path, cut: str) -> None:
    largest = (root / "scene" / cut).stat().st_size - 1
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest, before[1]))  # as on a disk that is full
    try:
        with pytest.raises(OutputError, match="disk is full"):
            export_scene(root / "map", tmp_path / "scene")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_photos_that_would_get_one_name_stay_apart(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "map", tmp_path / "map")
    folder = MapFolder(tmp_path / "map")
    model = folder.read_models()[0][0]
    for image, name in zip(list(model.images.values())[:2], ("q.tif", "q.tif.jpg"), strict=True):
        Image.open(folder.photo(image.name)).convert("RGB").save(root / "photos" / name)
        image.name = name
    folder.save_models([(model, None)])
    export_scene(folder.path, tmp_path / "scene")
    assert len(list((tmp_path / "scene" / "images").iterdir())) == model.num_reg_images()


def test_photos_of_16_bits(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MapFolder, "is_photo", lambda *_: True)  # as if the map were made of them
    shutil.copytree(root / "map", tmp_path / "map")
    shutil.copytree(root / "photos", tmp_path / "photos")
    folder = MapFolder(tmp_path / "map")
    folder.record.values["photos"] = [str(tmp_path / "photos")]
    folder.record.save()
    photo = tmp_path / "photos" / "photo00.png"
    grey = np.asarray(Image.open(photo).convert("L"))
    Image.fromarray(grey.astype(np.uint16) * 257).save(photo)
    export_scene(folder.path, tmp_path / "scene")
    written, before = (
        np.asarray(Image.open(path / "scene" / "images" / "photo00.png").convert("L"), np.float32)
        for path in (tmp_path, root)
    )
    assert np.abs(written - before).max() <= 1
    # A narrow range of values is stretched: it would be black in 8 bits.
    shades = np.arange(grey.size, dtype=np.uint32).reshape(grey.shape) * 200 // grey.size
    Image.fromarray((9000 + shades).astype(np.uint16)).save(photo)
    export_scene(folder.path, tmp_path / "narrow")
    with Image.open(tmp_path / "narrow" / "images" / "photo00.png") as picture:
        low, high = picture.convert("L").getextrema()
    assert high - low > 200


def test_a_full_disk_keeps_the_old_models(root: Path) -> None:
    folder = MapFolder(root / "map")
    models = folder.read_models()
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, before[1]))
    try:
        with pytest.raises(OutputError, match="disk is full"):
            folder.save_models(models)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(folder.read_models()) == len(models)


@pytest.mark.parametrize("replaced", [False, True])
def test_a_photo_that_is_missing_or_another_one_leaves_nothing(
    root: Path, tmp_path: Path, replaced: bool
) -> None:
    photo = root / "photos" / "photo03.png"
    photo.rename(tmp_path / "away.png")
    if replaced:
        shutil.copyfile(root / "photos" / "photo02.png", photo)
    with pytest.raises(FormatError, match="photo03.*changed" if replaced else "photo03.*not in"):
        export_scene(root / "map", tmp_path / "scene")
    (tmp_path / "away.png").rename(photo)
    assert not [path for path in tmp_path.iterdir() if "scene" in path.name]
