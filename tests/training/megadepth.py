"""MegaDepth in miniature: its layout exactly, its content a plane."""

from __future__ import annotations

from pathlib import Path

import pycolmap
from PIL import Image

from .plane import UNREDUCED, Plane, write_depth_h5

JPEGS = ("10_a_o.jpg", "11_b_o.jpg", "12_c_o.jpg", "13_d_o.jpg")


def flat_size() -> tuple[int, int]:
    options = pycolmap.UndistortCameraOptions()
    options.max_image_size = 200
    flat = pycolmap.undistort_camera(options, Plane(size=UNREDUCED).camera)
    return flat.width, flat.height


def flat_plane() -> Plane:
    """What the published photos show."""
    return Plane(size=flat_size(), undistorted=True)


def write_raw(root: Path, *scenes: str) -> Path:
    """The published form: undistorted photos and depth, distorted models."""
    flat, raw = flat_plane(), Plane(size=UNREDUCED)
    for scene in scenes:
        dense = root / "phoenix" / "S6" / "zl548" / "MegaDepth_v1" / scene / "dense0"
        (dense / "imgs").mkdir(parents=True)
        for number, name in enumerate(JPEGS):
            Image.fromarray(flat.photo(number)).save(dense / "imgs" / name, quality=95)
            write_depth_h5((dense / "depths" / name).with_suffix(".h5"), flat.depth(number))
        model = root / "MegaDepth_v1_SfM" / scene / "sparse" / "manhattan" / "0"
        model.mkdir(parents=True)
        raw.reconstruction(JPEGS).write_binary(model)
    return root


def photo_number(path: str) -> int:
    return JPEGS.index(Path(path).name)
