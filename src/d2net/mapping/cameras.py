"""Cameras of photos before mapping: focal lengths from EXIF, and which photos share a camera."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path, PurePosixPath

import pycolmap

from d2net.errors import InputError
from d2net.geometry.coordinates import Size
from d2net.io.colmap_database import guessed_camera
from d2net.io.exif import camera_name
from d2net.mapping.settings import MappingSettings


def photo_camera(path: Path | None, size: Size, model: str = "SIMPLE_RADIAL") -> pycolmap.Camera:
    """A photo's camera with the focal length from EXIF, or with COLMAP's guess.

    Args:
        path: the photo; None if it is not a file.
        size: (width, height) of the photo as its features were extracted, which may be turned.
            COLMAP itself does not turn photos.
        model: COLMAP's name of the camera model.
    """
    if model not in pycolmap.CameraModelId.__members__ or model == "INVALID":
        raise InputError(
            f"COLMAP has no camera model {model!r}; it has SIMPLE_RADIAL, OPENCV, PINHOLE and more"
        )
    if path is not None:
        try:
            inferred = pycolmap.infer_camera_from_image(path)
        except (RuntimeError, ValueError):  # COLMAP reads fewer file formats than Pillow
            return guessed_camera(size, model)
        if inferred.has_prior_focal_length and {inferred.width, inferred.height} == set(size):
            return guessed_camera(size, model, inferred.mean_focal_length())
    return guessed_camera(size, model)


def assign_cameras(
    photos: Iterable[tuple[str, Path, Size]], settings: MappingSettings
) -> dict[str, pycolmap.Camera]:
    """A camera for each photo (name, file, size); photos that share one get the same object."""
    cameras: dict[str, pycolmap.Camera] = {}
    shared: dict[object, str] = {}
    for name, path, size in photos:
        key: object = name  # photos with the same key share a camera
        if settings.camera_mode == "single":
            key = None
        elif settings.camera_mode == "per-folder":
            key = PurePosixPath(name).parent
        elif settings.camera_mode == "auto" and (exif := camera_name(path)) is not None:
            key = exif, size
        first = shared.setdefault(key, name)
        if first == name:
            camera = cameras[name] = photo_camera(path, size, settings.camera_model)
            params = settings.camera_params
            if params is not None:
                if len(params) != len(camera.params):
                    raise InputError(
                        f"{camera.model_name} has {len(camera.params)} parameters "
                        f"({camera.params_info}), not {len(params)}"
                    )
                camera.params = list(params)
                camera.has_prior_focal_length = True
        camera = cameras[name] = cameras[first]
        if (camera.width, camera.height) != size:
            raise InputError(
                f"{first} ({camera.width} x {camera.height}) and {name} ({size[0]} x {size[1]}) "
                "cannot share a camera; choose camera mode auto or per-image"
            )
    return cameras
