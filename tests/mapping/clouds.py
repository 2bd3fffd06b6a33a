"""Made reconstructions, and what their pages and photos hold."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from d2net.io.images import Pixels, to_pixels


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


def reading(folder: Path, *, upright: bool = True) -> Callable[[str], Pixels]:
    """A function that reads the photos of a folder."""
    return lambda name: to_pixels(folder / name, upright=upright)


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
