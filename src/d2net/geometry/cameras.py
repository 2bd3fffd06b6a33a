"""Calibrated cameras: from pixels to rays, and from the world to pixels.

All cameras are COLMAP's, so that every lens model it knows is undone by it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from d2net.errors import InputError
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]


def pinhole(intrinsics: ArrayLike) -> pycolmap.Camera:
    """COLMAP's camera of a camera matrix; its image size is left unknown (0 x 0).

    Args:
        intrinsics: 3 x 3 matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]], pixel centres at integers.

    Raises:
        InputError: it is no such matrix.
    """
    import pycolmap

    K: NDArray[Any] = np.asarray(intrinsics, dtype=np.float64)
    expected = np.diag([*K.diagonal()[:2], 1.0]) if K.shape == (3, 3) else None
    if expected is not None:
        expected[:2, 2] = K[:2, 2]
    if expected is None or not np.array_equal(K, expected) or not (K.diagonal() > 0).all():
        raise InputError(
            "intrinsics must be a camera matrix [[fx, 0, cx], [0, fy, cy], [0, 0, 1]] with "
            f"positive focal lengths, not {K.tolist()}"
        )
    centre = COLMAP_FROM_PIXELS(torch.from_numpy(K[None, :2, 2])).numpy()[0]
    return pycolmap.Camera(
        model="PINHOLE", width=0, height=0, params=[K[0, 0], K[1, 1], centre[0], centre[1]]
    )


def rays(camera: pycolmap.Camera, points: Array) -> Array:
    """Where the rays of points cross the plane z = 1 of the camera, lens distortion undone.

    Args:
        camera: COLMAP's camera.
        points: N x 2 (x, y) in pixels, pixel centres at integers.

    Returns:
        N x 2; not a number for points that no ray of the lens model reaches.
    """
    shifted = COLMAP_FROM_PIXELS(torch.from_numpy(points)).numpy()
    return np.asarray(camera.cam_from_img(shifted), dtype=np.float64).reshape(-1, 2)


def project(camera: pycolmap.Camera, cam_from_world: pycolmap.Rigid3d, points: Array) -> Array:
    """Where points of the world are in a photo.

    Args:
        camera: COLMAP's camera.
        cam_from_world: its pose.
        points: N x 3.

    Returns:
        N x 2 (x, y) in pixels, pixel centres at integers; not a number for points that the camera
        cannot see, as those behind it.
    """
    in_camera = np.asarray(cam_from_world * points, dtype=np.float64)
    pixels = np.asarray(camera.img_from_cam(in_camera), dtype=np.float64).reshape(-1, 2)
    return COLMAP_FROM_PIXELS.inverse()(torch.from_numpy(pixels)).numpy()
