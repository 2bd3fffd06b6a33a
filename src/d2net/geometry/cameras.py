"""Calibrated cameras: from pixels to rays, and from 3D points to pixels.

All cameras are COLMAP's, so every lens model that COLMAP knows is supported.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike

from d2net.errors import InputError
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS, Array, Size

if TYPE_CHECKING:
    import pycolmap


@contextmanager
def quiet_colmap() -> Iterator[None]:
    """Silence COLMAP's log lines on the terminal; errors are raised."""
    import pycolmap

    before, silent = pycolmap.logging.minloglevel, pycolmap.logging.Level.FATAL.value
    pycolmap.logging.minloglevel = silent
    try:
        yield
    finally:
        if before != silent:  # else another thread restores it
            pycolmap.logging.minloglevel = before


MIN_FIELD_OF_VIEW, MAX_FIELD_OF_VIEW = 5.0, 170.0
"""Degrees across the longer side of a photo. Wrong matches give cameras beyond these limits."""


def possible_focal_length(camera: pycolmap.Camera) -> bool:
    """Whether a camera's field of view, without distortion, is that of a real lens."""
    half = max(camera.width, camera.height) / 2
    field_of_view = 2 * np.degrees(np.arctan2(half, camera.mean_focal_length()))
    return bool(MIN_FIELD_OF_VIEW <= field_of_view <= MAX_FIELD_OF_VIEW)


def known_camera(
    model: str, size: Size, params: Sequence[float], is_known: bool = True
) -> pycolmap.Camera:
    """COLMAP's camera with these parameters, in COLMAP's order, for a photo of this size.

    InputError: there is no such model, or no camera of this size can have these parameters.
    """
    import pycolmap

    check_camera_model(model)
    names = pycolmap.Camera.create_from_model_name(0, model, 1.0, 1, 1).params_info
    if len(params) != len(names.split(", ")):
        raise InputError(f"{model} takes the parameters {names}, not {len(params)} numbers")
    camera = pycolmap.Camera(model=model, width=size[0], height=size[1], params=list(params))
    focal_lengths = [params[i] for i in camera.focal_length_idxs()]
    centre = [params[i] for i in camera.principal_point_idxs()]
    given = ", ".join(f"{value:g}" for value in params)
    if not np.isfinite(params).all() or min(focal_lengths) <= 0:
        raise InputError(f"{model} needs finite numbers and a positive focal length, not {given}")
    if not all(0 <= c <= length for c, length in zip(centre, size, strict=True)):
        raise InputError(
            f"the principal point of {model} {given} is outside a photo of {size[0]} x {size[1]}"
        )
    camera.has_prior_focal_length = is_known
    return camera


def check_camera_model(model: str) -> None:
    """Raise InputError unless COLMAP has a camera model of this name, with an image plane."""
    import pycolmap

    if model == "EQUIRECTANGULAR":
        raise InputError(
            "panoramas (EQUIRECTANGULAR) are not supported; cut them into perspective photos"
        )
    if model not in pycolmap.CameraModelId.__members__ or model == "INVALID":
        raise InputError(
            f"COLMAP has no camera model {model!r}; it has SIMPLE_RADIAL, OPENCV, PINHOLE and more"
        )


def check_photo_size(photo: str, size: Size, camera: pycolmap.Camera) -> None:
    """Raise InputError if a photo and its camera differ in size; a camera of 0 x 0 fits any."""
    if (camera.width, camera.height) not in (size, (0, 0)):
        raise InputError(
            f"{photo} has {size[0]} x {size[1]} pixels, but its camera {camera.width} x "
            f"{camera.height}; they must be the same"
        )


def camera_matrix(intrinsics: ArrayLike) -> Array:
    """A 3 x 3 matrix [[fx, s, cx], [0, fy, cy], [0, 0, 1]], checked."""
    K = np.asarray(intrinsics, dtype=np.float64)
    valid = K.shape == (3, 3) and np.isfinite(K).all() and (K.diagonal() > 0).all()
    if not valid or not np.array_equal(K[[1, 2, 2, 2], [0, 0, 1, 2]], [0, 0, 0, 1]):
        raise InputError(
            "intrinsics must be a camera matrix [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with "
            f"positive focal lengths, not {K.tolist()}"
        )
    return K


def pinhole(intrinsics: ArrayLike) -> pycolmap.Camera:
    """COLMAP's camera of unknown image size (0 x 0) for a 3 x 3 camera matrix without skew."""
    import pycolmap

    K = camera_matrix(intrinsics)
    if K[0, 1] != 0:
        raise InputError(f"intrinsics must have no skew, but they are {K.tolist()}")
    params = [*K.diagonal()[:2], *COLMAP_FROM_PIXELS(K[:2, 2])]
    return pycolmap.Camera(model="PINHOLE", width=0, height=0, params=params)


def rays(camera: pycolmap.Camera, points: Array) -> Array:
    """Where the rays through N x 2 pixels cross the camera's plane z = 1, distortion removed.

    N x 2; NaN for pixels that no ray of the lens model reaches.
    """
    in_colmap = COLMAP_FROM_PIXELS(points)
    return np.asarray(camera.cam_from_img(in_colmap), dtype=np.float64).reshape(-1, 2)


def project(camera: pycolmap.Camera, points: Array) -> Array:
    """N x 2 pixels of N x 3 points in the camera's frame.

    NaN for points behind the camera and points that the lens model cannot project.
    """
    pixels = np.asarray(camera.img_from_cam(points), dtype=np.float64).reshape(-1, 2)
    return COLMAP_FROM_PIXELS.inverse()(pixels)


def intrinsics_from_colmap(matrix: Array) -> Array:
    """A 3 x 3 camera matrix from COLMAP's pixels to pixels with centres at integers."""
    shifted = np.array(matrix, dtype=np.float64)
    shifted[:2, 2] = COLMAP_FROM_PIXELS.inverse()(shifted[:2, 2])
    return shifted
