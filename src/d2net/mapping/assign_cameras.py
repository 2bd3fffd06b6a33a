"""Cameras of photos before mapping: focal lengths from EXIF, and which photos share a camera."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

import pycolmap

from d2net.errors import InputError
from d2net.geometry.cameras import check_camera_model, known_camera, possible_focal_length
from d2net.geometry.coordinates import Size
from d2net.io.colmap_database import guessed_camera
from d2net.io.exif import camera_name, focal_length_35mm, photo_size
from d2net.io.image_lists import FoundImage
from d2net.mapping.settings import MappingSettings


def photo_camera(path: Path | None, size: Size, model: str = "SIMPLE_RADIAL") -> pycolmap.Camera:
    """A photo's camera with the focal length from EXIF if it is possible, or with COLMAP's guess.

    `size` is that of the photo from which features were extracted: upright, unless the stored
    orientation was asked for; COLMAP itself does not rotate photos. `path` may be None.
    """
    check_camera_model(model)
    if path is not None:
        try:
            inferred = pycolmap.infer_camera_from_image(path)
        except (RuntimeError, ValueError):  # COLMAP reads neither HEIC nor WebP
            inferred = guessed_camera(size, "SIMPLE_PINHOLE", focal_length_35mm(path, size))
        is_known = inferred.has_prior_focal_length and possible_focal_length(inferred)
        if is_known and {inferred.width, inferred.height} == set(size):
            return guessed_camera(size, model, inferred.mean_focal_length())
    return guessed_camera(size, model)


def assign_cameras(
    photos: Iterable[tuple[str, Path, Size]],
    settings: MappingSettings,
    map_camera: pycolmap.Camera | None = None,
) -> dict[str, pycolmap.Camera]:
    """A camera for each photo (name, file, size); photos that share one get the same object.

    `map_camera` is the camera of all photos of the map that these are added to.
    """
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
            if settings.camera_params is None:
                cameras[name] = photo_camera(path, size, settings.camera_model)
                is_known = map_camera or cameras[name].has_prior_focal_length
                if "FISHEYE" in settings.camera_model and not is_known:
                    raise InputError(
                        f"COLMAP cannot estimate the focal length of {settings.camera_model}, and "
                        f"the EXIF data of {name} have none: give the camera's parameters"
                    )
                if map_camera and key is None and (map_camera.width, map_camera.height) == size:
                    cameras[name] = map_camera
            else:
                first = next(iter(cameras), name)  # known parameters fit one size
                cameras[name] = known_camera(settings.camera_model, size, settings.camera_params)
        camera = cameras[first]
        if (camera.width, camera.height) != size:
            raise InputError(
                f"{first} ({camera.width} x {camera.height}) and {name} ({size[0]} x {size[1]}) "
                "cannot share a camera; use camera mode auto or per-image without known "
                "parameters, or make one map of each size"
            )
        cameras.setdefault(name, camera)
    return cameras


def check_cameras(photos: Sequence[FoundImage], settings: MappingSettings, upright: bool) -> None:
    """Raise `assign_cameras`'s errors before any work, by the headers of the photos."""
    if settings.camera_params is None and settings.camera_mode in ("auto", "per-image"):
        photos = photos[:1]  # only the model can be wrong
    sizes = ((photo.name, photo.path, photo_size(photo.path, upright)) for photo in photos)
    assign_cameras(((name, path, size) for name, path, size in sizes if size), settings)
