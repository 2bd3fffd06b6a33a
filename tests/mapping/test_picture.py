"""The picture and the page of a map: colours, viewpoint, and what the page draws."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

from d2net.mapping.picture.drawing import TAN_HALF_FOV, add_colours, find_look
from d2net.mapping.plausibility import MapTrust
from d2net.mapping.reconstruction_arrays import read_cloud
from d2net.mapping.report import write_report
from d2net.mapping.summary import NO_FEATURES, summarise

from .clouds import ball, drawn, front_row, reading, synthetic, upright

Failed = dict[str, str]


def page(made: pycolmap.Reconstruction, folder: Path, failed: Failed | None = None) -> str:
    """The text of the page in the map's report; its photos are in the folder, too."""
    cloud = read_cloud(made)
    write_report([cloud], folder, summarise([cloud], failed or {}), [folder], reading(folder))
    return (folder / "map.html").read_text(encoding="utf-8")


def paint(folder: Path, names: list[str], **saved: Any) -> None:
    """Photos that are red on the left and green on the right."""
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[:, :320, 0] = 200
    pixels[:, 320:, 1] = 200
    for name in names:
        Image.fromarray(pixels).save(folder / name, **saved)


def test_points_take_their_colours_from_the_photos(tmp_path: Path) -> None:
    points = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0.6, 0.1, 0.3]])
    cloud = read_cloud(upright(points, np.array([[0, -5.0, 0], [0.1, -5, 0.2]])))
    paint(tmp_path, ["photo1.png", "photo2.png"])
    coloured, thumbnails = add_colours(cloud, reading(tmp_path))
    assert coloured.colours.tolist() == [[200, 0, 0], [0, 200, 0], [0, 200, 0]]
    assert sorted(thumbnails) == ["photo1.png", "photo2.png"]
    grey, _ = add_colours(cloud, reading(tmp_path / "gone"))
    assert len(np.unique(grey.colours)) == 1


def test_photos_stored_on_their_side_are_taken_as_the_map_has_them(tmp_path: Path) -> None:
    points = np.array([[-0.5, 0, 0.1], [0.5, 0, 0]])
    cloud = read_cloud(upright(points, np.array([[0, -5.0, 0]])))
    exif = Image.Exif()
    exif[0x0112] = 6
    paint(tmp_path, ["photo1.png"], exif=exif)
    read = reading(tmp_path, upright=False)
    assert add_colours(cloud, read)[0].colours.tolist() == [[200, 0, 0], [0, 200, 0]]


@pytest.mark.parametrize("seed", range(3))
def test_the_scene_lies_upright_before_the_viewer_with_its_cameras(seed: int) -> None:
    made = upright(np.concatenate([ball(300), [[1e6, 1e6, 1e5]]]), front_row())
    turn = pycolmap.Rotation3d(np.random.default_rng(seed).normal(size=3))  # axis times angle
    made.transform(pycolmap.Sim3d(2.5, turn, np.array([7.0, -100, 3])))
    cloud = read_cloud(made)
    look = find_look(cloud)
    assert look.scene_from_world @ turn.matrix() @ [0, 0, 1] == pytest.approx([0, 0, 1], abs=0.1)
    distance = np.max(look.extent / TAN_HALF_FOV)
    things = np.concatenate([cloud.points[:-1], cloud.centres]) - look.target
    x, y, z = (things @ look.view_from_world.T).T
    assert 0.6 * TAN_HALF_FOV[0] < np.abs(x / (z + distance)).max() < 1.1 * TAN_HALF_FOV[0]
    assert np.abs(y / (z + distance)).max() < 1.1 * TAN_HALF_FOV[1]
    assert z[-5:].mean() < z[:-5].mean()  # from the photos' side


def test_positions_and_colours_decode_to_the_cloud(tmp_path: Path) -> None:
    made = synthetic(points=500)
    rng = np.random.default_rng(1)
    for point in made.points3D.values():
        point.color = rng.integers(1, 256, 3)
    data = drawn(page(made, tmp_path))
    positions, colours = (base64.b64decode(data[key]) for key in ("positions", "colours"))
    truth = [made.points3D[i] for i in sorted(made.points3D)]
    assert data["count"] == len(truth) == 500
    found = np.frombuffer(positions, "<f4").reshape(-1, 3)
    np.testing.assert_allclose(found, [p.xyz for p in truth], rtol=1e-6)
    found = np.frombuffer(colours, np.uint8).reshape(-1, 4)
    assert found[:, :3].tolist() == [p.color.tolist() for p in truth]


def test_cameras_are_where_they_are_and_open_the_way_they_look(tmp_path: Path) -> None:
    made = synthetic()
    data = drawn(page(made, tmp_path))
    assert len(data["cameras"]) == made.num_reg_images()
    for camera in data["cameras"]:
        image = made.find_image_with_name(camera["name"])
        shape = np.array(camera["shape"]).reshape(5, 3)
        assert shape[0] == pytest.approx(image.projection_center())
        corners = np.array([image.cam_from_world() * corner for corner in shape[1:]])
        assert (corners[:, 2] > 0).all()
        assert (np.sign(corners[:, :2]) == [[-1, -1], [1, -1], [1, 1], [-1, 1]]).all()
        assert camera["points"] == image.num_points3D
        slope = np.ptp(corners, axis=0)[:2] / corners[0, 2]
        assert slope == pytest.approx(np.array([1024, 768]) / image.camera.mean_focal_length())


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    paint(tmp_path, [f"photo{i}.png" for i in range(1, 6)])
    text = page(upright(ball(), front_row()), tmp_path)
    sources = [source for source in re.findall(r'src="([^"]*)"', text) if source]
    assert len(sources) == 5
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://|\bfetch\(|\bimport\b|<link|<iframe", text)


def test_page_names_what_failed_and_shows_names_as_they_are(tmp_path: Path) -> None:
    odd = "</script><img src=x onerror=y>.png"
    made = upright(ball(), front_row())
    made.images[1].name = odd
    text = page(made, tmp_path, {"<b>dark</b>.jpg": NO_FEATURES})
    assert "<img src=x" not in text
    assert "<b>dark" not in text
    assert "&lt;b&gt;dark&lt;/b&gt;.jpg" in text
    assert NO_FEATURES in text
    assert odd in [camera["name"] for camera in drawn(text)["cameras"]]


def test_smaller_maps_have_pages(tmp_path: Path) -> None:
    clouds = [read_cloud(upright(ball(), front_row()[:n])) for n in (5, 4)]
    names = [tuple(photo.name for photo in cloud.photos) for cloud in clouds]
    maps = (MapTrust(names[0], "good"), MapTrust(names[1], "doubtful", ("it is flat",)))
    write_report(clouds, tmp_path, replace(summarise(clouds, {}), maps=maps), [], reading(tmp_path))
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["map.html", "map.png", "map1.html", "map1.png", "report.json"]
    assert "4 of 4 photos registered" in (tmp_path / "map1.html").read_text()
    assert "The map is doubtful: it is flat." in (tmp_path / "map1.html").read_text()
    assert "Map 1 is doubtful: it is flat." in (tmp_path / "map.html").read_text()
    assert len(json.loads((tmp_path / "report.json").read_text())["photos"]) == 5


@pytest.mark.slow
def test_the_page_draws_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("wants chromium")
    made = upright(ball(), front_row())
    for point in made.points3D.values():
        point.color = [200, 30, 30]
    page(made, tmp_path)
    options = "--headless --no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader"
    options += " --no-first-run --disable-background-networking --virtual-time-budget=3000"
    shot = tmp_path / "shot.png"
    subprocess.run(
        [browser, *options.split(), f"--user-data-dir={tmp_path / 'profile'}",
         f"--screenshot={shot}", "--window-size=1000,800", (tmp_path / "map.html").as_uri()],
        check=True, capture_output=True, timeout=120,
    )  # fmt: skip
    with Image.open(shot) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert ((pixels[..., 0] > 150) & (pixels[..., 2] < 80)).sum() > 500  # points
    assert ((pixels[..., 2] > 200) & (pixels[..., 0] < 150)).sum() > 200  # cameras
