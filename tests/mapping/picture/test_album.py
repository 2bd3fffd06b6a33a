"""The colours of points, from the photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from d2net.mapping.cloud import read_cloud
from d2net.mapping.picture.album import add_colours

from ..clouds import ball, decoded, drawn, front_row, page, paint, upright


def test_points_take_their_colours_from_the_photos(tmp_path: Path) -> None:
    points = np.array([[-0.5, 0, 0], [0.5, 0, 0], [0.6, 0.1, 0.3]])
    cloud = read_cloud(upright(points, np.array([[0, -5.0, 0], [0.1, -5, 0.2]])))
    paint(tmp_path, ["photo1.png", "photo2.png"])
    coloured, album = add_colours(cloud, [tmp_path])
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
    coloured, _ = add_colours(cloud, [tmp_path])
    assert coloured.colours.tolist() == [[200, 0, 0], [0, 0, 0]]


def test_colours_of_the_map_are_kept(tmp_path: Path) -> None:
    made = upright(ball(), front_row())
    for point in made.points3D.values():
        point.color = [10, 20, 30]
    paint(tmp_path, [f"photo{i}.png" for i in range(1, 6)])
    assert (add_colours(read_cloud(made), [tmp_path])[0].colours == [10, 20, 30]).all()


def test_without_photos_points_are_grey_and_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "photo1.png").write_bytes(b"no photo")
    made = upright(ball(), front_row())
    text = page(made, tmp_path, tmp_path / "photos")
    _, looks = decoded(drawn(text))
    assert (looks[:, :3] == looks[0, 0]).all()
    assert looks[0, 0] > 0
    assert "5 photos of the map could not be read." in text
    assert "150 points of unknown colour shown in grey." in text
