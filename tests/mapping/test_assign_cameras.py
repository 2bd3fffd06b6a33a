"""Focal lengths from EXIF."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from d2net.mapping.assign_cameras import photo_camera


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
