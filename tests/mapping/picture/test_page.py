"""The page: what it draws, and that it stands alone."""

from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2net.mapping.summary import NO_FEATURES, NO_MATCHES

from ..clouds import ball, decoded, drawn, front_row, page, paint, synthetic, upright


class _Parser(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.references: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.references += [v or "" for k, v in attrs if k in ("src", "href", "srcset")]


def test_positions_and_colours_decode_to_the_cloud(tmp_path: Path) -> None:
    made = synthetic(points=500)
    rng = np.random.default_rng(1)
    for point in made.points3D.values():
        point.color = rng.integers(1, 256, 3)
    data = drawn(page(made, tmp_path))
    positions, looks = decoded(data)
    truth = [made.points3D[i] for i in sorted(made.points3D)]
    assert data["count"] == len(truth) == 500
    step = np.array(data["span"]) / 65535
    assert (np.abs(positions - [p.xyz for p in truth]) <= 0.5001 * step).all()
    assert looks[:, :3].tolist() == [p.color.tolist() for p in truth]
    assert (step < 1e-3).all()


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


def test_the_page_keeps_the_best_seen_of_too_many_points(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("d2net.mapping.picture.drawing.MAX_POINTS", 40)
    made = upright(ball(), front_row())
    short = sorted(made.points3D)[:100]
    for point_id in short:
        made.delete_observation(1, made.points3D[point_id].track.elements[0].point2D_idx)
    text = page(made, tmp_path)
    positions, _ = decoded(drawn(text))
    best = np.array([made.points3D[i].xyz for i in sorted(made.points3D)[100:140]])
    assert np.abs(positions - best).max() < 1e-3
    assert "40 of 150 points shown" in text


def test_a_far_point_does_not_cost_the_others_their_precision(tmp_path: Path) -> None:
    points = np.concatenate([ball(), [[1e7, 0, 0]]])
    text = page(upright(points, front_row()), tmp_path)
    positions, _ = decoded(drawn(text))
    assert np.abs(positions - points[:-1]).max() < 1e-3
    assert "150 of 151 points shown" in text


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    paint(tmp_path / "photos", [f"photo{i}.png" for i in range(1, 6)])
    text = page(upright(ball(), front_row()), tmp_path, tmp_path / "photos")
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
    text = page(made, tmp_path, failed={"<b>dark</b>.jpg": NO_FEATURES})
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
    page(made, tmp_path, tmp_path / "photos", failed=dict.fromkeys(names, NO_MATCHES))
    # 200,000 points of ten bytes take 2.7 MB as base64 beside this.
    assert (tmp_path / "map.html").stat().st_size < 2.3e6


def test_page_shows_times_and_settings(tmp_path: Path) -> None:
    known = {"seconds": {"matching": 75.0, "mapping": 25.0}, "settings": {"a": {"b": [1, 2]}}}
    text = page(upright(ball(), front_row()), tmp_path, **known)
    assert "width:75.0%" in text
    assert "&#34;b&#34;: [" in text


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
    assert ((pixels[..., 2] > 200) & (pixels[..., 0] < 120)).sum() > 200  # cameras
