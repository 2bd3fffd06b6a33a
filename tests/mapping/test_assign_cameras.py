"""Focal lengths from EXIF."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from d2net.errors import InputError
from d2net.mapping.assign_cameras import assign_cameras, photo_camera
from d2net.mapping.settings import MappingSettings


@pytest.mark.parametrize(("equivalent", "is_known"), [(28, True), (65535, False), (1, False)])
def test_only_focal_lengths_of_real_lenses_are_taken_from_exif(
    tmp_path: Path, equivalent: int, is_known: bool
) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = equivalent  # focal length in 35 mm film
    Image.new("RGB", (640, 480)).save(tmp_path / "photo.jpg", exif=exif)
    camera = photo_camera(tmp_path / "photo.jpg", (640, 480))
    assert camera.has_prior_focal_length is is_known
    assert 400 < camera.mean_focal_length() < 800


@pytest.mark.parametrize("ending", ["webp", "heic"])
def test_the_focal_length_of_formats_that_colmap_cannot_read(tmp_path: Path, ending: str) -> None:
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0xA405] = 28
    photo = Image.new("RGB", (640, 480))
    photo.save(tmp_path / "photo.jpg", exif=exif)
    path = tmp_path / f"photo.{ending}"
    if ending == "heic":
        pillow_heif = pytest.importorskip("pillow_heif")
        pillow_heif.from_pillow(photo).save(path, exif=exif.tobytes())
    else:
        photo.save(path, exif=exif)
    as_jpeg, camera = (photo_camera(p, (640, 480)) for p in (tmp_path / "photo.jpg", path))
    assert camera.has_prior_focal_length
    assert camera.mean_focal_length() == pytest.approx(as_jpeg.mean_focal_length(), abs=0.1)


def test_a_fisheye_lens_needs_a_focal_length(tmp_path: Path) -> None:
    """Without one, COLMAP takes no pair of photos."""
    Image.new("RGB", (640, 480)).save(tmp_path / "photo.jpg")
    settings = MappingSettings(camera_model="OPENCV_FISHEYE")
    photos = [("photo.jpg", tmp_path / "photo.jpg", (640, 480))]
    with pytest.raises(InputError, match="cannot estimate the focal length of OPENCV_FISHEYE"):
        assign_cameras(photos, settings)
    known = replace(settings, camera_params=(300.0, 300.0, 320.0, 240.0, 0.0, 0.0, 0.0, 0.0))
    assert len(assign_cameras(photos, known)) == 1
