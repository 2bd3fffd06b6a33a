"""Lists of photos with their cameras: `name CAMERA_MODEL width height parameters...` per line.

The visual localization benchmarks (https://www.visuallocalization.net) use such lists for queries
and for database photos. Camera models, parameters and pixels are COLMAP's: the centre of the
top-left pixel is (0.5, 0.5), which matters for principal points.
"""

from __future__ import annotations

from pathlib import Path

import pycolmap

from d2net.errors import FormatError
from d2net.geometry.cameras import known_camera
from d2net.io.resumable_h5 import check_name
from d2net.io.text_lists import CAMERA_LINE, read_lines

_EXPECTED = "name CAMERA_MODEL width height parameters"


def read_intrinsics(path: str | Path) -> dict[str, pycolmap.Camera]:
    """Read the cameras by photo, in the order of the file."""
    cameras: dict[str, pycolmap.Camera] = {}
    for number, line in read_lines(path, f"lines of {_EXPECTED}"):
        where = f"{path}, line {number}"
        match = CAMERA_LINE.fullmatch(line)
        if match is None:
            raise FormatError(f"{where}: expected {_EXPECTED}, not {line[:80]!r}")
        name = match["name"].removeprefix("./")
        if name in cameras:
            raise FormatError(f"{where}: the photo {name} occurs twice")
        size = int(match["width"]), int(match["height"])
        if min(size) == 0:
            raise FormatError(f"{where}: a camera needs a width and a height above 0")
        try:
            params = [float(word) for word in match["params"].split()]
            cameras[check_name(name)] = known_camera(match["model"], size, params)
        except ValueError as error:  # InputError, too
            raise FormatError(f"{where}: {error}") from error
    if not cameras:
        raise FormatError(f"{path} is empty; expected lines of {_EXPECTED}")
    return cameras
