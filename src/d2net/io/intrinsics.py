"""Lists of photos with their cameras: `name CAMERA_MODEL width height parameters...` per line.

The visual localization benchmarks (https://www.visuallocalization.net) use such lists for queries
and for database photos. Camera models, parameters and pixels are COLMAP's: the centre of the
top-left pixel is (0.5, 0.5), which matters for principal points.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.errors import FormatError, InputError
from d2net.io.container import check_name
from d2net.io.text import CAMERA_LINE, read_lines

if TYPE_CHECKING:
    import pycolmap

_EXPECTED = "name CAMERA_MODEL width height parameters"


def read_intrinsics(path: str | Path) -> dict[str, pycolmap.Camera]:
    """Read the cameras by photo, in the order of the file."""
    cameras: dict[str, pycolmap.Camera] = {}
    for number, line in read_lines(path, f"lines of {_EXPECTED}"):
        where = f"{path}, line {number}"
        match = CAMERA_LINE.fullmatch(line)
        if match is None:
            raise FormatError(f"{where}: expected {_EXPECTED}, not {line[:80]!r}")
        name = match["name"]
        try:
            check_name(name)
        except InputError as error:
            raise FormatError(f"{where}: {error}") from error
        if name in cameras:
            raise FormatError(f"{where}: the photo {name} occurs twice")
        cameras[name] = _camera(match, where)
    if not cameras:
        raise FormatError(f"{path} is empty; expected lines of {_EXPECTED}")
    return cameras


def _camera(match: re.Match[str], where: str) -> pycolmap.Camera:
    import pycolmap

    model, width, height = match["model"], int(match["width"]), int(match["height"])
    if model not in pycolmap.CameraModelId.__members__ or model == "INVALID":
        raise FormatError(f"{where}: {model} is not a camera model of COLMAP")
    try:
        params = [float(word) for word in match["params"].split()]
        camera = pycolmap.Camera(model=model, width=width, height=height, params=params)
        is_valid = camera.verify_params() and camera.mean_focal_length() > 0
    except (ValueError, TypeError, OverflowError):
        is_valid = False
    if not is_valid or min(width, height) == 0:
        num_params = len(pycolmap.Camera.create_from_model_name(0, model, 1.0, 1, 1).params)
        raise FormatError(
            f"{where}: {model} needs a width, a height and {num_params} parameters with a positive "
            "focal length"
        )
    return camera
