"""Cameras of photos before mapping: focal lengths from EXIF, and which photos share a camera."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from d2net.errors import InputError
from d2net.geometry.coordinates import Size
from d2net.io.colmap_database import guessed_camera
from d2net.io.exif import camera_name
from d2net.mapping.settings import CameraMode, MappingSettings

if TYPE_CHECKING:
    import pycolmap


def photo_camera(path: Path | None, size: Size, model: str = "SIMPLE_RADIAL") -> pycolmap.Camera:
    """A photo's camera with the focal length from EXIF, or with COLMAP's guess.

    Args:
        path: the photo; None if it is not a file.
        size: (width, height) of the photo as its features were extracted, which may be turned.
            COLMAP itself does not turn photos.
        model: COLMAP's name of the camera model.

    Raises:
        InputError: COLMAP has no such model.
    """
    import pycolmap

    if model not in pycolmap.CameraModelId.__members__ or model == "INVALID":
        raise InputError(
            f"COLMAP has no camera model {model!r}; it has SIMPLE_RADIAL, OPENCV, PINHOLE and more"
        )
    focal_length = None
    if path is not None:
        try:
            inferred = pycolmap.infer_camera_from_image(path)
        except (RuntimeError, ValueError):  # COLMAP reads fewer file formats than Pillow
            return guessed_camera(size, model)
        if inferred.has_prior_focal_length and {inferred.width, inferred.height} == set(size):
            focal_length = inferred.mean_focal_length()
    return guessed_camera(size, model, focal_length)


def assign_cameras(
    photos: Iterable[tuple[str, Path, Size]], settings: MappingSettings
) -> dict[str, pycolmap.Camera]:
    """A camera for each photo; photos that share a camera get the same object.

    Args:
        photos: name, file and (width, height) of each.
        settings: the camera model, which photos share a camera, and known parameters.

    Raises:
        InputError: the camera model is unknown or has another number of parameters, or photos of
            different sizes would share a camera.
    """
    cameras: dict[str, pycolmap.Camera] = {}
    shared: dict[tuple[object, ...], str] = {}
    for name, path, size in photos:
        first = shared.setdefault(_key(name, path, size, settings.camera_mode), name)
        if first == name:
            cameras[name] = photo_camera(path, size, settings.camera_model)
            _set_params(cameras[name], settings)
        camera = cameras[name] = cameras[first]
        if (camera.width, camera.height) != size:
            raise InputError(
                f"{first} ({camera.width} x {camera.height}) and {name} ({size[0]} x {size[1]}) "
                "cannot share a camera; choose camera mode auto or per-image"
            )
    return cameras


def _key(name: str, path: Path, size: Size, mode: CameraMode) -> tuple[object, ...]:
    """Photos with the same key share a camera."""
    if mode == "single":
        return ()
    if mode == "per-folder":
        return (PurePosixPath(name).parent,)
    exif = camera_name(path) if mode == "auto" else None
    return (name,) if exif is None else (exif, size)


def _set_params(camera: pycolmap.Camera, settings: MappingSettings) -> None:
    params = settings.camera_params
    if params is None:
        return
    if len(params) != len(camera.params):
        raise InputError(
            f"{camera.model_name} has {len(camera.params)} parameters ({camera.params_info}), "
            f"not {len(params)}"
        )
    camera.params = list(params)
    camera.has_prior_focal_length = True
