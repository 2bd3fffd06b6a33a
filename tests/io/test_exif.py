from pathlib import Path

import pytest
from PIL import Image
from PIL.TiffImagePlugin import IFDRational

from d2net.io.exif import Position, camera_name, gps_position, gps_positions, photo_size
from d2net.io.image_lists import FoundImage

NORTH_EAST = {1: "N", 2: (48.0, 51.0, 30.24), 3: "E", 4: (2.0, 17.0, 40.2)}


def put_photo(path: Path, gps: object) -> Path:
    exif = Image.Exif()
    if gps is not None:
        exif[0x8825] = gps
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6)).save(path, exif=exif.tobytes())
    return path


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
def test_a_known_place(tmp_path, ending):
    position = gps_position(put_photo(tmp_path / f"a.{ending}", NORTH_EAST))
    assert position is not None
    assert position.latitude == pytest.approx(48 + 51 / 60 + 30.24 / 3600, abs=1e-9)
    assert position.longitude == pytest.approx(2 + 17 / 60 + 40.2 / 3600, abs=1e-9)


def test_of_heic_photos(tmp_path):
    pillow_heif = pytest.importorskip("pillow_heif")
    exif = Image.Exif()
    exif[0x8825] = NORTH_EAST
    exif[0x010F], exif[0x0110], exif[0x8769] = "Apple", "iPhone", {0x920A: 4.25}
    pillow_heif.from_pillow(Image.new("RGB", (80, 60))).save(
        tmp_path / "a.heic", exif=exif.tobytes()
    )
    position = gps_position(tmp_path / "a.heic")
    assert position is not None
    assert position.latitude == pytest.approx(48 + 51 / 60 + 30.24 / 3600, abs=1e-9)
    assert camera_name(tmp_path / "a.heic") == "Apple|iPhone|4.25|||"


def test_south_and_west_are_negative(tmp_path):
    tags = {1: "S", 2: (33.5, 0.0, 0.0), 3: "W", 4: (70.0, 30.0, 0.0)}
    assert gps_position(put_photo(tmp_path / "a.jpg", tags)) == Position(-33.5, -70.5)


@pytest.mark.parametrize(
    ("tags", "altitude"),
    [
        ({5: b"\0", 6: 35.5}, 35.5),
        ({5: b"\1", 6: 35.5}, -35.5),
        ({5: b"\2", 6: 35.5}, 35.5),
        ({5: b"\3", 6: 35.5}, -35.5),
        ({6: IFDRational(0, 0)}, None),
    ],
)
def test_the_altitude_may_be_below_the_sea_or_missing(tmp_path, tags, altitude):
    position = gps_position(put_photo(tmp_path / "a.jpg", {**NORTH_EAST, **tags}))
    assert position is not None
    assert position.altitude == altitude


@pytest.mark.parametrize(
    "tags",
    [
        None,
        {},
        {0: b"\2\3\0\0"},
        {**NORTH_EAST, 2: (0.0, 0.0, 0.0), 4: (0.0, 0.0, 0.0)},
        {**NORTH_EAST, 2: (95.0, 0.0, 0.0)},
        {**NORTH_EAST, 4: (200.0, 0.0, 0.0)},
        {**NORTH_EAST, 1: "?"},
        {**NORTH_EAST, 1: ""},
        {**NORTH_EAST, 2: (48.0, 51.0)},
        {**NORTH_EAST, 2: (IFDRational(0, 0), IFDRational(0, 0), IFDRational(0, 0))},
        {1: "N", 2: NORTH_EAST[2]},
    ],
)
def test_no_or_senseless_data_are_no_position(tmp_path, tags):
    assert gps_position(put_photo(tmp_path / "a.jpg", tags)) is None


@pytest.mark.parametrize("ending", ["png", "tiff", "jpg"])
def test_the_size_of_a_rotated_photo(tmp_path, ending):
    """Pillow gives the size of TIFF files as it is after the rotation."""
    path, exif = tmp_path / f"photo.{ending}", Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(path, exif=exif)
    assert photo_size(path) == (30, 40)
    assert photo_size(path, upright=False) == (40, 30)


def test_photos_that_cannot_be_read_have_none(tmp_path):
    good = put_photo(tmp_path / "my photo.jpg", NORTH_EAST)
    (tmp_path / "b.jpg").write_bytes(good.read_bytes()[:40])
    (tmp_path / "c.jpg").write_text("no photo")
    names = ["my photo.jpg", "b.jpg", "c.jpg", "none.jpg"]
    found = gps_positions(FoundImage(tmp_path / name, name) for name in names)
    assert list(found) == ["my photo.jpg"]
