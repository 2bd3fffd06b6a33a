"""The report of a map: its figures, its picture, and what the page draws."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

from d2net.errors import OutputError
from d2net.mapping.album import colour
from d2net.mapping.cloud import Cloud, read_cloud
from d2net.mapping.cloud_page import page_data
from d2net.mapping.report import write_html, write_json, write_picture, write_report
from d2net.mapping.summary import (
    NO_FEATURES,
    NO_MATCHES,
    in_another_model,
    summarise,
    text_lines,
)
from d2net.mapping.viewpoint import from_above, oblique, scene_from_world, view_from_scene

SLOPE = np.array([0.25, 0.1875])


def synthetic(points: int = 200, frames: int = 6, noise: float = 0.0) -> pycolmap.Reconstruction:
    """Cameras around a ball of points; every camera sees all points."""
    pycolmap.set_random_seed(3)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig = 1, frames
    options.num_cameras_per_rig, options.num_points3D = 1, points
    made = pycolmap.synthesize_dataset(options)
    if noise:
        amount = pycolmap.SyntheticNoiseOptions()
        amount.point2D_stddev = noise
        pycolmap.synthesize_noise(amount, made)
    return made


def upright(points: np.ndarray, centres: np.ndarray, **camera: Any) -> pycolmap.Reconstruction:
    """Cameras at `centres` that look at the origin, without roll, in a world whose z is up."""
    made = pycolmap.Reconstruction()
    size = {"width": 640, "height": 480} | camera
    made.add_camera_with_trivial_rig(
        pycolmap.Camera(camera_id=1, model="SIMPLE_PINHOLE", params=[500, 320, 240], **size)
    )
    for number, centre in enumerate(centres, 1):
        away = -centre / np.linalg.norm(centre)
        right = np.cross(away, [0, 0, 1])
        right /= np.linalg.norm(right)
        rotation = np.stack([right, np.cross(away, right), away])
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(rotation), -rotation @ centre)
        image = pycolmap.Image(name=f"photo{number}.png", camera_id=1, image_id=number)
        image.points2D = pycolmap.Point2DList(
            [
                pycolmap.Point2D(made.cameras[1].img_from_cam(pose * p, check_cheirality=False))
                for p in points
            ]
        )
        made.add_image_with_trivial_frame(image, pose)
    for row, point in enumerate(points):
        elements = [pycolmap.TrackElement(n, row) for n in range(1, len(centres) + 1)]
        made.add_point3D(point, pycolmap.Track(elements), np.zeros(3, np.uint8))
    return made


def ball(number: int = 150, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (number, 3))


def front_row() -> np.ndarray:
    """Centres in a row on the side of negative y, some higher than others."""
    return np.array([[x, -6.0, 1 + 0.2 * x] for x in np.linspace(-2, 2, 5)])


def drawn(text: str) -> dict[str, Any]:
    """The data of a page, as its script reads them."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def decoded(data: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Positions in the world, and looks (red, green, blue, size), as the shader computes them."""
    packed = np.frombuffer(base64.b64decode(data["positions"]), "<u2").reshape(-1, 3)
    looks = np.frombuffer(base64.b64decode(data["looks"]), np.uint8).reshape(-1, 4)
    return np.array(data["offset"]) + np.array(data["span"]) * packed / 65535, looks


def page(
    made: pycolmap.Reconstruction, path: Path, photos: Path | None = None, **known: Any
) -> str:
    write_html(made, path, summarise(made, **known), [photos] if photos else [])
    return path.read_text(encoding="utf-8")


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]


# --- Figures ---------------------------------------------------------------------------------


def test_figures_are_those_of_the_reconstruction() -> None:
    made = synthetic(noise=0.7)
    summary = summarise(made, {"blank.jpg": NO_FEATURES}, models=[2, 6])
    assert (summary.num_registered, len(summary.photos)) == (6, 7)
    assert summary.num_points == made.num_points3D()
    assert summary.num_observations == made.compute_num_observations()
    assert summary.mean_track_length == pytest.approx(made.compute_mean_track_length())
    made.update_point_3d_errors()
    assert summary.mean_error == pytest.approx(made.compute_mean_reprojection_error())
    assert summary.models == (6, 2)
    seen = {image.name: image.num_points3D for image in made.images.values()}
    assert {p.name: p.num_points for p in summary.photos if p.registered} == seen


def test_errors_are_measured_and_not_taken_from_the_model() -> None:
    made = upright(ball(), front_row())
    for image in made.images.values():
        for point in image.points2D:
            point.xy += np.array([3, 4])
    summary = summarise(made)
    assert summary.mean_error == pytest.approx(5)
    assert [photo.error for photo in summary.photos] == pytest.approx([5] * 5)


def test_a_registered_photo_has_not_failed() -> None:
    made = upright(ball(), front_row())
    summary = summarise(made, {"photo1.png": NO_MATCHES, "other.png": in_another_model(1)})
    assert [(p.name, p.reason) for p in summary.failed] == [
        ("other.png", "in another model with 1 photo")
    ]


def test_text_tells_what_was_found_and_why_photos_failed() -> None:
    made = upright(ball(), front_row())
    failed = {f"dark{i:02}.jpg": NO_FEATURES for i in range(10)} | {"x.jpg": NO_MATCHES}
    seconds = {"features": 8.25, "mapping": 3671.0}
    text = "\n".join(text_lines(summarise(made, failed, models=[5, 3, 2], seconds=seconds)))
    assert "5 of 16 photos registered" in text
    assert "150 points, each seen in 5.0 photos on average" in text
    assert "mean reprojection error 0.00 px" in text
    assert "3 models, of 5, 3 and 2 photos" in text
    assert "no features: dark00.jpg" in text
    assert "dark07.jpg and 2 more" in text
    assert "no verified matches with any photo: x.jpg" in text
    assert "features 8.2 s, mapping 1 h 01 min" in text


def test_json_holds_every_photo_and_no_nan(tmp_path: Path) -> None:
    made = upright(ball(), front_row())
    failed = {"x.jpg": NO_MATCHES}
    write_json(tmp_path / "report.json", summarise(made, failed, settings={"seed": 1}))

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} is no JSON")

    text = (tmp_path / "report.json").read_text()
    report = json.loads(text, parse_constant=refuse)
    assert (report["photos_registered"], report["photos_given"], report["points"]) == (5, 6, 150)
    assert report["settings"] == {"seed": 1}
    assert report["photos"][-1] == {
        "name": "x.jpg",
        "registered": False,
        "reason": NO_MATCHES,
        "points": 0,
        "mean_reprojection_error_px": None,
    }


# --- Where a person looks from ---------------------------------------------------------------


def tilt(made: pycolmap.Reconstruction, up: Any) -> float:
    """Degrees between the up that was guessed and the true one."""
    rotation = scene_from_world(read_cloud(made))
    assert rotation @ rotation.T == pytest.approx(np.eye(3), abs=1e-9)
    return float(np.degrees(np.arccos(min((rotation @ up)[2], 1.0))))


@pytest.mark.parametrize("seed", range(3))
def test_up_is_up_in_any_world(seed: int) -> None:
    made = upright(ball(), front_row())
    turn = pycolmap.Rotation3d(np.random.default_rng(seed).normal(size=3))  # axis times angle
    made.transform(pycolmap.Sim3d(2.5, turn, np.array([7.0, -100, 3])))
    assert tilt(made, turn.matrix() @ [0, 0, 1]) < 3


def test_one_photo_on_its_side_does_not_tilt_the_scene() -> None:
    made = upright(ball(), front_row())
    image = made.images[3]
    quarter = pycolmap.Rigid3d(pycolmap.Rotation3d(np.array([0, 0, np.pi / 2])), np.zeros(3))
    image.frame.rig_from_world = quarter * image.cam_from_world()
    assert tilt(made, [0, 0, 1]) < 3


def test_photos_from_the_air_give_up_by_their_view() -> None:
    centres = [[np.cos(a), np.sin(a), 12] for a in np.linspace(0, 5, 9)]
    assert tilt(upright(ball(), np.array(centres)), [0, 0, 1]) < 5


def test_the_scene_lies_before_the_viewer_with_its_cameras() -> None:
    cloud = read_cloud(upright(ball(), front_row()))
    for look in (oblique(cloud, SLOPE), from_above(cloud, SLOPE)):
        distance = look.frame.distance(SLOPE)
        things = np.concatenate([cloud.points, cloud.centres]) - look.frame.target
        x, y, z = (things @ look.view_from_world.T).T
        assert (np.abs(x / (z + distance)) < 1.1 * SLOPE[0]).all()
        assert (np.abs(y / (z + distance)) < 1.1 * SLOPE[1]).all()
        # From the photos' side: their cameras are nearer to the viewer than most points.
    centres = (cloud.centres - oblique(cloud, SLOPE).frame.target) @ look.view_from_world.T
    assert centres[:, 1].mean() > 0  # seen from above, cameras are below the points


def test_far_points_do_not_shrink_the_scene() -> None:
    points = ball(300)
    far = np.concatenate([points, [[1e6, 1e6, 1e5], [-3e4, 5e5, 2]]])
    alone, with_far = (
        from_above(read_cloud(upright(p, front_row())), SLOPE).frame for p in (points, far)
    )
    assert with_far.extent == pytest.approx(alone.extent, rel=0.1)
    assert np.linalg.norm(with_far.target - alone.target) < 0.1 * alone.extent.max()


def test_far_cameras_are_shown_where_most_are_far_and_left_out_where_few_are() -> None:
    row = front_row()
    near = from_above(read_cloud(upright(ball(), row)), SLOPE).frame
    one_far = np.concatenate([row, [[0, -500.0, 0]]])
    assert from_above(read_cloud(upright(ball(), one_far)), SLOPE).frame.extent == pytest.approx(
        near.extent, rel=0.1
    )
    assert near.extent[1] > 3  # down to the cameras, six from the middle of the points


def test_a_viewer_turns_and_looks_down() -> None:
    assert view_from_scene(0, 0) == pytest.approx(np.array([[1, 0, 0], [0, 0, -1], [0, 1, 0]]))
    assert view_from_scene(0, np.pi / 2)[2] == pytest.approx([0, 0, -1])
    assert view_from_scene(np.pi / 2, 0)[2] == pytest.approx([1, 0, 0])
    some = view_from_scene(0.4, 0.3)
    assert some @ some.T == pytest.approx(np.eye(3))
    assert np.linalg.det(some) == pytest.approx(1)


# --- Colours ---------------------------------------------------------------------------------


def paint(folder: Path, names: list[str]) -> None:
    """Photos that are red on the left and green on the right."""
    folder.mkdir(exist_ok=True)
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[:, :320, 0] = 200
    pixels[:, 320:, 1] = 200
    for name in names:
        Image.fromarray(pixels).save(folder / name)


def test_points_take_their_colours_from_the_photos(tmp_path: Path) -> None:
    points = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0.6, 0.1, 0.3]])
    cloud = read_cloud(upright(points, np.array([[0, -5.0, 0], [0.1, -5, 0.2]])))
    paint(tmp_path, ["photo1.png", "photo2.png"])
    coloured, album = colour(cloud, [tmp_path])
    assert coloured.colours.tolist() == [[200, 0, 0], [0, 200, 0], [0, 200, 0]]
    assert sorted(album.thumbnails) == ["photo1.png", "photo2.png"]
    assert not album.unreadable
    assert not cloud.colours.any(), "the cloud given was changed"


def test_photos_stored_on_their_side_are_taken_as_the_map_has_them(tmp_path: Path) -> None:
    points = np.array([[-0.5, 0, 0.1], [0.5, 0, 0]])
    cloud = read_cloud(upright(points, np.array([[0, -5.0, 0]])))
    pixels = np.zeros((480, 640, 3), np.uint8)
    pixels[:, :320, 0] = 200
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "photo1.png", exif=exif)
    coloured, _ = colour(cloud, [tmp_path])
    assert coloured.colours.tolist() == [[200, 0, 0], [0, 0, 0]]


def test_colours_of_the_map_are_kept(tmp_path: Path) -> None:
    made = upright(ball(), front_row())
    for point in made.points3D.values():
        point.color = [10, 20, 30]
    paint(tmp_path, [f"photo{i}.png" for i in range(1, 6)])
    assert (colour(read_cloud(made), [tmp_path])[0].colours == [10, 20, 30]).all()


def test_without_photos_points_are_grey_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo1.png").write_bytes(b"no photo")
    made = upright(ball(), front_row())
    text = page(made, tmp_path / "map.html", tmp_path / "photos")
    _, looks = decoded(drawn(text))
    assert (looks[:, :3] == looks[0, 0]).all()
    assert looks[0, 0] > 0
    assert "5 photos of the map could not be read. 150 points of unknown colour in grey." in text


# --- The page --------------------------------------------------------------------------------


def test_positions_and_colours_decode_to_the_cloud(tmp_path: Path) -> None:
    made = synthetic(points=500)
    rng = np.random.default_rng(1)
    for point in made.points3D.values():
        point.color = rng.integers(1, 256, 3)
    data = drawn(page(made, tmp_path / "map.html"))
    positions, looks = decoded(data)
    truth = [made.points3D[i] for i in sorted(made.points3D)]
    assert data["count"] == len(truth) == 500
    step = np.array(data["span"]) / 65535
    assert (np.abs(positions - [p.xyz for p in truth]) <= 0.5001 * step).all()
    assert looks[:, :3].tolist() == [p.color.tolist() for p in truth]
    assert (step < 1e-3).all()


def test_cameras_are_where_they_are_and_open_the_way_they_look(tmp_path: Path) -> None:
    made = synthetic()
    data = drawn(page(made, tmp_path / "map.html"))
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


def test_the_page_keeps_the_best_seen_of_too_many_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2net.mapping.cloud_page.MAX_POINTS", 40)
    made = upright(ball(), front_row())
    short = sorted(made.points3D)[:100]
    for point_id in short:
        made.delete_observation(1, made.points3D[point_id].track.elements[0].point2D_idx)
    text = page(made, tmp_path / "map.html")
    positions, _ = decoded(drawn(text))
    best = np.array([made.points3D[i].xyz for i in sorted(made.points3D)[100:140]])
    assert np.abs(positions - best).max() < 1e-3
    assert "the 40 points that most photos see" in text


def test_a_far_point_does_not_cost_the_others_their_precision(tmp_path: Path) -> None:
    points = np.concatenate([ball(), [[1e7, 0, 0]]])
    text = page(upright(points, front_row()), tmp_path / "map.html")
    positions, _ = decoded(drawn(text))
    assert np.abs(positions - points[:-1]).max() < 1e-3
    assert "1 point far from all others left out" in text


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    paint(tmp_path / "photos", [f"photo{i}.png" for i in range(1, 6)])
    text = page(upright(ball(), front_row()), tmp_path / "map.html", tmp_path / "photos")
    found = _Parser()
    found.feed(text)
    sources = [reference for reference in found.references if reference]
    assert len(sources) == 6  # a still, and the photos
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert not re.search(r"url\(|@import|https?://|\bfetch\(|\bimport\b", text)
    assert not found.tags & {"link", "iframe", "object"}


def test_page_names_what_failed_and_shows_names_as_they_are(tmp_path: Path) -> None:
    odd = "</script><img src=x onerror=y>.png"
    made = upright(ball(), front_row())
    made.images[1].name = odd
    text = page(made, tmp_path / "map.html", failed={"<b>dark</b>.jpg": NO_FEATURES})
    assert "<img src=x" not in text
    assert "<b>dark" not in text
    assert "&lt;b&gt;dark&lt;/b&gt;.jpg" in text
    assert NO_FEATURES in text
    assert odd in [camera["name"] for camera in drawn(text)["cameras"]]


def test_page_with_a_hundred_photos_stays_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    names = [f"photo{i}.jpg" for i in range(100)]
    small = rng.integers(0, 256, (48, 64, 3), dtype=np.uint8)  # as busy as a photo of leaves
    busy = Image.fromarray(small).resize((640, 480), Image.Resampling.BICUBIC)
    for name in names:
        busy.save(tmp_path / "photos" / name)
    made = upright(ball(), front_row())
    page(made, tmp_path / "map.html", tmp_path / "photos", failed=dict.fromkeys(names, NO_MATCHES))
    # 200,000 points of ten bytes take 2.7 MB as base64 beside this.
    assert (tmp_path / "map.html").stat().st_size < 2.3e6


def test_page_shows_times_and_settings(tmp_path: Path) -> None:
    known = {"seconds": {"matching": 75.0, "mapping": 25.0}, "settings": {"a": {"b": [1, 2]}}}
    text = page(upright(ball(), front_row()), tmp_path / "map.html", **known)
    assert "width:75.0%" in text
    assert "<dt>a.b</dt><dd>[1, 2]</dd>" in text


# --- The picture -----------------------------------------------------------------------------


def test_picture_shows_points_and_cameras(tmp_path: Path) -> None:
    made = upright(ball(), front_row())
    for point in made.points3D.values():
        point.color = [200, 30, 30]
    write_picture(made, tmp_path / "map.png", summarise(made))
    with Image.open(tmp_path / "map.png") as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    assert pixels[0, 0].tolist() == [255, 255, 255]
    red = (pixels[..., 0] > 150) & (pixels[..., 2] < 80)
    blue = (pixels[..., 2] > 200) & (pixels[..., 0] < 120)
    for half in (slice(0, 1200), slice(1240, None)):  # oblique, and from above
        assert red[:, half].sum() > 500
        assert blue[:, half].sum() > 200
    above = slice(1240, None)  # photos were taken from below the points there
    assert np.nonzero(blue[:, above])[0].mean() > np.nonzero(red[:, above])[0].mean() + 50


def test_bright_points_are_seen_on_white(tmp_path: Path) -> None:
    made = upright(ball(), front_row())
    for point in made.points3D.values():
        point.color = [255, 255, 255]
    write_picture(made, tmp_path / "map.png", summarise(made))
    with Image.open(tmp_path / "map.png") as image:
        grey = np.asarray(image.convert("L"))[:900, :1200]
    assert (grey < 200).sum() > 1500


# --- Whatever the map ------------------------------------------------------------------------


def bare(images: int) -> pycolmap.Reconstruction:
    return upright(np.zeros((0, 3)), front_row()[:images])


ODD = {
    "nothing": pycolmap.Reconstruction,
    "one camera": lambda: bare(1),
    "cameras without points": lambda: bare(5),
    "one point": lambda: upright(np.zeros((1, 3)), front_row()),
    "equal cameras": lambda: upright(ball(), np.repeat(front_row()[:1], 4, axis=0)),
    "a plane": lambda: upright(ball() * [1, 0, 1], front_row()),
    "huge": lambda: upright(np.concatenate([ball(), [[1e9, 1e9, 0]]]), front_row()),
}


@pytest.mark.parametrize("name", ODD)
def test_every_map_gets_a_report_twice_the_same(name: str, tmp_path: Path) -> None:
    made = ODD[name]()
    summary = summarise(made, {"dark.jpg": NO_FEATURES})
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.mkdir()
        write_report(made, folder, summary, [tmp_path / "missing"])
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == ["map.html", "map.png", "report.json"]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    text = (tmp_path / "a" / "map.html").read_text()
    assert "nan" not in json.dumps(drawn(text)).lower()
    assert np.isfinite([*drawn(text)["oblique"]["target"], *drawn(text)["above"]["extent"]]).all()
    assert f"{summary.num_registered} of {summary.num_registered + 1} photos registered" in text


def test_photos_without_a_pose_are_no_cameras() -> None:
    made = upright(ball(), front_row())
    made.deregister_frame(made.images[2].frame_id)
    cloud = read_cloud(made)
    assert len(cloud.views) == 4
    assert summarise(made).num_registered == 4


def test_points_behind_a_camera_have_no_error_there() -> None:
    made = upright(np.concatenate([ball(20), [[0, -50.0, 0]]]), front_row())
    cloud = read_cloud(made)
    assert np.isnan(cloud.errors).tolist() == [False] * 20 + [True]
    assert summarise(made).mean_error == pytest.approx(0)
    assert isinstance(page_data(cloud, np.arange(21), summarise(made)), dict)
    assert isinstance(cloud, Cloud)


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    made = bare(1)
    with pytest.raises(OutputError, match="does not exist"):
        write_report(made, tmp_path / "missing", summarise(made))


# --- In a browser ----------------------------------------------------------------------------


@pytest.mark.slow
def test_the_page_draws_in_a_browser(tmp_path: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("wants chromium")
    made = upright(ball(), front_row())
    for point in made.points3D.values():
        point.color = [200, 30, 30]
    page(made, tmp_path / "map.html")
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
    assert ((pixels[..., 2] > 200) & (pixels[..., 0] < 120)).sum() > 200  # cameras
