"""The cameras of photos before mapping: focal lengths from EXIF, and which photos share one."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, TypeAlias

from d2net.errors import InputError
from d2net.geometry.coordinates import Size
from d2net.io.colmap_database import guessed_camera
from d2net.io.exif import camera_name

if TYPE_CHECKING:
    import pycolmap

CameraMode: TypeAlias = Literal["auto", "single", "per-folder", "per-image"]


def photo_camera(path: Path | None, size: Size, model: str = "SIMPLE_RADIAL") -> pycolmap.Camera:
    """The camera that a photo's EXIF data tell, or COLMAP's guess.

    Args:
        path: the photo; None where it is no file.
        size: (width, height) of the photo as its features were extracted, upright. COLMAP itself
            does not turn photos.
        model: of COLMAP.

    Raises:
        InputError: COLMAP has no such model.
    """
    import pycolmap

    if model not in pycolmap.CameraModelId.__members__ or model == "INVALID":
        raise InputError(
            f"COLMAP has no camera model {model!r}; it has SIMPLE_RADIAL, OPENCV, PINHOLE and more"
        )
    if path is None:
        return guessed_camera(size, model)
    try:
        told = pycolmap.infer_camera_from_image(path)
    except (RuntimeError, ValueError):  # COLMAP reads fewer kinds of files than pillow
        return guessed_camera(size, model)
    known = told.has_prior_focal_length and {told.width, told.height} == set(size)
    return guessed_camera(size, model, told.mean_focal_length() if known else None)


def assign_cameras(
    photos: Iterable[tuple[str, Path, Size]],
    mode: CameraMode = "auto",
    model: str = "SIMPLE_RADIAL",
    params: Sequence[float] | None = None,
) -> dict[str, pycolmap.Camera]:
    """A camera for each photo; photos that share one have the same object.

    Args:
        photos: name, file and (width, height) of each.
        mode: "single" camera for all, "per-folder", "per-image", or "auto": photos of one size
            whose EXIF data name the same camera, lens and focal length share it, and photos
            without such data have each their own.
        model: of COLMAP.
        params: known parameters of the model, in COLMAP's order and pixels, for all photos.

    Raises:
        InputError: COLMAP has no such model, the parameters are not its, or photos that are to
            share a camera differ in size.
    """
    cameras: dict[str, pycolmap.Camera] = {}
    shared: dict[tuple[object, ...], tuple[str, pycolmap.Camera]] = {}
    for name, path, size in photos:
        key = _key(name, path, size, mode)
        first, camera = shared.get(key) or (name, _with(params, photo_camera(path, size, model)))
        if (camera.width, camera.height) != size:
            raise InputError(
                f"{first} ({camera.width} x {camera.height}) and {name} ({size[0]} x {size[1]}) "
                "cannot share a camera; choose camera mode auto or per-image"
            )
        shared.setdefault(key, (first, camera))
        cameras[name] = camera
    return cameras


def _key(name: str, path: Path, size: Size, mode: CameraMode) -> tuple[object, ...]:
    """Photos with the same key share a camera."""
    if mode == "single":
        return ()
    if mode == "per-folder":
        return (PurePosixPath(name).parent,)
    told = camera_name(path) if mode == "auto" else None
    return (name,) if told is None else (told, size)


def _with(params: Sequence[float] | None, camera: pycolmap.Camera) -> pycolmap.Camera:
    if params is not None:
        if len(params) != len(camera.params):
            raise InputError(
                f"{camera.model_name} has {len(camera.params)} parameters ({camera.params_info}), "
                f"not {len(params)}"
            )
        camera.params = list(params)
        camera.has_prior_focal_length = True
    return camera
