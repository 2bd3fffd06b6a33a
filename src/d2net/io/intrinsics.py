"""Lists of photos with their cameras: `name CAMERA_MODEL width height parameters...` a line.

The lists of queries and of database cameras of the visual localization benchmarks
(https://www.visuallocalization.net). Model and parameters are COLMAP's, and so are the pixels of
principal points: the centre of the top-left pixel is (0.5, 0.5) there.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from d2net.errors import FormatError, InputError
from d2net.io.container import check_name
from d2net.io.text import word_lines

if TYPE_CHECKING:
    import pycolmap

_EXPECTED = "lines of name CAMERA_MODEL width height parameters"


def read_intrinsics(path: str | Path) -> dict[str, pycolmap.Camera]:
    """The cameras by the photos' names, in the order of the file.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is empty, a line is not of that form, or a photo is there twice.
    """
    cameras: dict[str, pycolmap.Camera] = {}
    for number, (name, *words) in word_lines(path, _EXPECTED):
        where = f"{path}, line {number}"
        try:
            check_name(name)
        except InputError as error:
            raise FormatError(f"{where}: {error}") from error
        if name in cameras:
            raise FormatError(f"{where}: the photo {name} is there twice")
        cameras[name] = _camera(words, where)
    if not cameras:
        raise FormatError(f"{path} is empty; expected {_EXPECTED}")
    return cameras


def _camera(words: list[str], where: str) -> pycolmap.Camera:
    import pycolmap

    model, *numbers = words or [""]
    if model not in pycolmap.CameraModelId.__members__ or model == "INVALID":
        raise FormatError(f"{where}: {model!r} is no camera model of COLMAP; expected {_EXPECTED}")
    try:
        width, height = map(int, numbers[:2])
        params = [float(word) for word in numbers[2:]]
        camera = pycolmap.Camera(model=model, width=width, height=height, params=params)
        good = camera.verify_params() and camera.mean_focal_length() > 0 and min(width, height) > 0
    except (ValueError, TypeError, OverflowError):
        good = False
    if not good:
        raise FormatError(
            f"{where}: {model} wants width, height and {_num_params(model)} parameters, all numbers"
        )
    return camera


def _num_params(model: str) -> int:
    import pycolmap

    return len(pycolmap.Camera.create_from_model_name(0, model, 1.0, 1, 1).params)
