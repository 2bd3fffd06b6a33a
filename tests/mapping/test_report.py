"""The report of a map: its figures and its picture."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2net.errors import OutputError
from d2net.mapping.plausibility import MapTrust
from d2net.mapping.reconstruction_arrays import read_cloud
from d2net.mapping.report import page_data, write_report
from d2net.mapping.summary import NO_FEATURES, NO_MATCHES, summarise, text_lines

from .clouds import ball, drawn, front_row, reading, synthetic, upright

# --- Figures ---------------------------------------------------------------------------------


def test_figures_are_those_of_the_reconstruction() -> None:
    made = synthetic(noise=0.7)
    summary = summarise([read_cloud(made)], {"blank.jpg": NO_FEATURES})
    assert (summary.num_registered, len(summary.photos)) == (6, 7)
    assert summary.points == made.num_points3D()
    assert summary.mean_track_length == pytest.approx(made.compute_mean_track_length())
    made.update_point_3d_errors()
    assert summary.mean_reprojection_error_px == pytest.approx(
        made.compute_mean_reprojection_error()
    )
    seen = {image.name: image.num_points3D for image in made.images.values()}
    assert {p.name: p.points for p in summary.photos if not p.reason} == seen


def test_errors_are_measured_and_not_taken_from_the_model() -> None:
    made = upright(ball(), front_row())
    for image in made.images.values():
        for point in image.points2D:
            point.xy += np.array([3, 4])
    summary = summarise([read_cloud(made)], {})
    assert summary.mean_reprojection_error_px == pytest.approx(5)
    assert [photo.mean_reprojection_error_px for photo in summary.photos] == pytest.approx([5] * 5)


def test_a_registered_photo_has_not_failed() -> None:
    made = upright(ball(), front_row())
    summary = summarise([read_cloud(made)], {"photo1.png": NO_MATCHES, "other.png": NO_MATCHES})
    assert [photo.name for photo in summary.failed] == ["other.png"]


def test_text_tells_what_was_found_and_why_photos_failed() -> None:
    made = upright(ball(), front_row())
    failed = {f"dark{i:02}.jpg": NO_FEATURES for i in range(10)} | {"x.jpg": NO_MATCHES}
    seconds = {"features": 8.25, "mapping": 3671.0}
    names = tuple(f"photo{i}.png" for i in range(1, 6))
    maps = [
        MapTrust(names, "good", uncertain=("photo2.png",)),
        MapTrust(("y.jpg",), "doubtful", ("only 12 points per photo",)),
    ]
    summary = summarise([read_cloud(made)], failed)
    text = "\n".join(text_lines(replace(summary, maps=tuple(maps), seconds=seconds)))
    assert "5 of 16 photos registered" in text
    assert "150 points, each seen in 5.0 photos on average" in text
    assert "mean reprojection error 0.00 px" in text
    assert "2 separate maps" in text
    assert text.startswith("map 1 is doubtful: only 12 points per photo\n")
    assert "uncertain cameras in map 0: photo2.png" in text
    assert "map 0: photo1.png, photo2.png" in text
    assert "map 1: y.jpg" in text
    assert "no features: dark00.jpg" in text
    assert "dark07.jpg and 2 more" in text
    assert "no verified matches with any photo: x.jpg" in text
    assert "features 8 s, mapping 3,671 s" in text


def test_json_holds_every_photo_and_no_nan(tmp_path: Path) -> None:
    made = upright(ball(), front_row())
    failed = {"x.jpg": NO_MATCHES}
    cloud = read_cloud(made)
    summary = replace(summarise([cloud], failed), settings={"seed": 1})
    write_report([cloud], tmp_path, summary, [], reading(tmp_path))

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    text = (tmp_path / "report.json").read_text()
    report = json.loads(text, parse_constant=refuse)
    assert (report["photos_registered"], report["photos_given"], report["points"]) == (5, 6, 150)
    assert report["settings"] == {"seed": 1}
    assert report["photos"][-1] == {
        "name": "x.jpg",
        "reason": NO_MATCHES,
        "points": 0,
        "mean_reprojection_error_px": None,
    }


# --- The picture -----------------------------------------------------------------------------


def test_picture_shows_points_and_cameras(tmp_path: Path) -> None:
    made = upright(ball(), front_row())
    for point in made.points3D.values():
        point.color = [200, 30, 30]
    cloud = read_cloud(made)
    write_report([cloud], tmp_path, summarise([cloud], {}), [], reading(tmp_path))
    with Image.open(tmp_path / "map.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    red = (pixels[..., 0] > 150) & (pixels[..., 2] < 80)
    blue = (pixels[..., 2] > 200) & (pixels[..., 0] < 120)
    assert red.sum() > 500
    assert blue.sum() > 200


# --- Whatever the map ------------------------------------------------------------------------


ODD = {
    "one point": lambda: upright(np.zeros((1, 3)), front_row()),
    "equal cameras": lambda: upright(ball(), np.repeat(front_row()[:1], 4, axis=0)),
    "a plane": lambda: upright(ball() * [1, 0, 1], front_row()),
    "huge": lambda: upright(np.concatenate([ball(), [[1e9, 1e9, 0]]]), front_row()),
}


@pytest.mark.parametrize("name", ODD)
def test_every_map_gets_a_report_twice_the_same(name: str, tmp_path: Path) -> None:
    made = ODD[name]()
    summary = summarise([read_cloud(made)], {"dark.jpg": NO_FEATURES})
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_report([read_cloud(made)], folder, summary, [tmp_path / "missing"], reading(folder))
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["map.html", "map.png", "report.json"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    text = (tmp_path / "a" / "map.html").read_text()
    assert "nan" not in json.dumps(drawn(text)).lower()
    assert np.isfinite([*drawn(text)["oblique"]["target"], *drawn(text)["oblique"]["extent"]]).all()
    assert f"{summary.num_registered} of {summary.num_registered + 1} photo" in text


def test_photos_without_a_pose_are_no_cameras() -> None:
    made = upright(ball(), front_row())
    made.deregister_frame(made.images[2].frame_id)
    cloud = read_cloud(made)
    assert len(cloud.photos) == 4
    assert summarise([read_cloud(made)], {}).num_registered == 4


def test_points_behind_a_camera_have_no_error_there() -> None:
    made = upright(np.concatenate([ball(20), [[0, -50.0, 0]]]), front_row())
    cloud = read_cloud(made)
    assert np.isnan(cloud.errors).tolist() == [False] * 20 + [True]
    assert summarise([cloud], {}).mean_reprojection_error_px == pytest.approx(0)
    json.dumps(page_data(cloud), allow_nan=False)


def test_a_folder_of_photos_whose_name_is_no_unicode(tmp_path: Path) -> None:
    cloud = read_cloud(upright(ball(), front_row()))
    folders = [Path(os.fsdecode(b"/photos\xff"))]
    write_report([cloud], tmp_path, summarise([cloud], {}), folders, reading(tmp_path))
    assert "photos?" in (tmp_path / "map.html").read_text()


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    made = upright(ball(), front_row())
    cloud, folder = read_cloud(made), tmp_path / "missing"
    with pytest.raises(OutputError, match="does not exist"):
        write_report([cloud], folder, summarise([cloud], {}), [], reading(folder))
