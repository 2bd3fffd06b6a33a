"""A map on the page, and photos localized in it."""

from __future__ import annotations

import io
import json
import math
import shutil
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from d2net.errors import InputError
from d2net.mapping.localize import Map
from d2net.mapping.map_folder import MapFolder
from d2net.mapping.reconstruct import reconstruct
from d2net.serving.photos import SentPhoto
from d2net.serving.shown_map import ShownMap

from ..mapping.made import SIZE, PreparedNetwork, camera, seen
from ..mapping.test_reconstruct import map_of_truth, network
from ..tiny import make_tiny_model
from .served import serving

QUERY = camera(0.9, 6, z=1.0)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A map in the frame of the truth."""
    return map_of_truth(tmp_path_factory.mktemp("places"))


def shown(folder: Path) -> ShownMap:
    """The map, with a network that knows a query that belongs there, and one that does not."""
    queries = [seen(QUERY), seen(QUERY, other=True)]
    return ShownMap(Map(MapFolder(folder), PreparedNetwork(queries)))


def query(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", SIZE, (shade,) * 3).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_camera_of_another_map_is_not_drawn_in_the_first_one(
    root: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "map"
    shutil.copytree(root / "map", folder)
    models = MapFolder(folder).sparse
    (models / "0").rename(models / "1")
    (models / "0").mkdir()
    one_photo = pycolmap.Reconstruction(models / "1")
    for frame in one_photo.reg_frame_ids()[1:]:
        one_photo.deregister_frame(frame)
    one_photo.write_binary(models / "0")
    answer = shown(folder).localize(SentPhoto.read(query(0)))
    assert (answer["verdict"], answer["map"], answer["shape"]) == ("localized", 1, None)
    assert shown(folder).about()["photos"] == 1


def test_a_photo_is_localized_beside_the_best_matching_one(root: Path) -> None:
    answer = shown(root / "map").localize(SentPhoto.read(query(0)))
    json.dumps(answer, allow_nan=False)
    assert answer["verdict"] == "localized"
    np.testing.assert_allclose(answer["position"], QUERY.inverse().translation, atol=0.05)
    np.testing.assert_allclose(answer["shape"][:3], answer["position"])  # the camera's tip
    partner = answer["partner"]
    assert partner["name"] in {f"photo{i:02}.png" for i in range(6)}
    assert partner["size"] == SIZE
    assert len(partner["points"]) == len(partner["query_points"]) >= 2 * partner["inliers"] > 60
    corners = np.reshape(answer["shape"], (5, 3))[1:]
    ahead = QUERY * corners.mean(axis=0)
    assert ahead[2] > 0  # it looks where the camera looks
    np.testing.assert_allclose(ahead[:2] / ahead[2], 0, atol=1e-2)


def test_a_photo_of_another_scene_is_lost_and_has_no_camera(root: Path) -> None:
    answer = shown(root / "map").localize(SentPhoto.read(query(1)))
    assert answer["verdict"] == "lost"
    assert answer["reason"]


def test_the_focal_length_is_read_from_exif(root: Path) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x8769] = {0xA405: 42}
    Image.new("RGB", SIZE).save(buffer, "PNG", exif=exif)
    answer = shown(root / "map").localize(SentPhoto.read(buffer.getvalue()))
    assert json.loads(json.dumps(answer))["camera"]["known"] is True
    diagonal = math.hypot(*SIZE) / 43.27  # pixels per millimetre of 35 mm film
    assert answer["camera"]["params"][0] == pytest.approx(42 * diagonal)


@pytest.mark.parametrize(
    "value",
    ["unknown", (42, 43), b"\1", math.nan, math.inf, 1e-300, -35.0],
    ids=str,
)
def test_an_impossible_focal_length_is_estimated(root: Path, value: object) -> None:
    exif, buffer = Image.Exif(), io.BytesIO()
    exif[0x8769] = {0xA405: value}
    Image.new("RGB", SIZE).save(buffer, "JPEG", exif=exif)
    answer = shown(root / "map").localize(SentPhoto.read(buffer.getvalue()))
    assert not answer["camera"]["known"]
    assert answer["verdict"] == "localized"


def float_tiff(bits: int) -> bytes:
    return cv2.imencode(".tiff", np.zeros((SIZE[1], SIZE[0], 3), f"float{bits}"))[1].tobytes()


def png_with_text(text: bytes, *, whole: bool = True) -> bytes:
    """A black PNG with a text of which pillow refuses the length or the checksum."""
    checksum = zlib.crc32(b"tEXt" + text) ^ (not whole)
    chunk = struct.pack(">I", len(text)) + b"tEXt" + text + struct.pack(">I", checksum)
    return query(0)[:33] + chunk + query(0)[33:]


@pytest.mark.parametrize(
    "content",
    [
        float_tiff(32),
        float_tiff(64),
        png_with_text(b"Comment\0hello", whole=False),
        png_with_text(b"Comment\0" + b"x" * 2_000_000),
    ],
    ids=["float32", "float64", "checksum", "long text"],
)
def test_each_photo_that_is_shown_is_localized(root: Path, content: bytes) -> None:
    answer = shown(root / "map").localize(SentPhoto.read(content))
    assert answer["verdict"] == "localized"


def test_a_photo_that_was_edited_before_the_map_was_made_again_is_not_shown(
    root: Path, tmp_path: Path
) -> None:
    """The page would draw the matches of the old photo on the new one."""
    shutil.copytree(root, tmp_path, dirs_exist_ok=True)
    record = tmp_path / "map" / "map.json"
    record.write_text(record.read_text().replace(str(root), str(tmp_path)))
    page = shown(tmp_path / "map")
    assert page.picture("photo01.png")
    (tmp_path / "photos" / "photo01.png").write_bytes(query(1) + b"edited")
    reconstruct(tmp_path / "photos", tmp_path / "map", model=network())
    with pytest.raises(InputError, match=r"made again.*restart"):
        page.picture("photo01.png")
    # Its pixels are the same, but they no longer colour the points.
    assert page.page_data["colours"] != shown(root / "map").page_data["colours"]
    assert shown(tmp_path / "map").picture("photo01.png")


def test_the_map_is_asked_for_over_http(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "moved")
    record = tmp_path / "moved" / "map" / "map.json"
    record.write_text(record.read_text().replace(str(root / "photos"), str(tmp_path / "photos")))
    (tmp_path / "photos").mkdir()
    shutil.copy(root / "photos" / "photo01.png", tmp_path / "photos")
    (tmp_path / "photos" / "private.png").write_bytes(query(3))
    with serving(make_tiny_model(), shown(tmp_path / "moved" / "map")) as served:
        assert served.ask("/api/about").json["map"]["photos"] == 6
        key = served.sent(query(0))
        assert served.ask(f"/api/photos/{key}/localize").json["verdict"] == "localized"
        page = served.ask("/map").content.decode()
        assert "photo05.png" in page
        picture = served.ask("/api/map/picture?name=photo01.png")
        assert picture.headers["content-type"] == "image/jpeg"
        gone = served.ask("/api/map/picture?name=photo02.png")
        assert (gone.status, "not in" in gone.json["error"]) == (422, True)
        for name in ("private.png", "../map/map.json", ""):
            assert served.ask(f"/api/map/picture?name={name}").status == 404
