"""Poses as the visual localization benchmarks take them: `name qw qx qy qz tx ty tz` a line.

They are `cam_from_world` (world to camera), and a photo's name is that of its file, without folders
(https://www.visuallocalization.net/submission).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.io.atomic import write_text
from d2net.io.text import word_lines

if TYPE_CHECKING:
    import pycolmap

_EXPECTED = "lines of name qw qx qy qz tx ty tz"


def write_poses(path: str | Path, poses: Mapping[str, pycolmap.Rigid3d]) -> None:
    """Write poses in their order.

    Args:
        path: the file.
        poses: by the photos' paths, of which the file names are written.

    Raises:
        InputError: two photos of different folders have the same file name, or one holds a space.
        OutputError: the file cannot be written.
    """
    path = Path(path)
    lines: dict[str, str] = {}
    for photo, pose in poses.items():
        name = PurePosixPath(photo).name
        if name in lines or len(name.split()) != 1:
            raise InputError(
                f"{photo} cannot be in a list of poses, which names photos by their file names: "
                + ("another one has the same" if name in lines else "it holds a space")
            )
        x, y, z, w = pose.rotation.quat
        numbers = (w, x, y, z, *pose.translation)
        lines[name] = " ".join([name, *(repr(float(number)) for number in numbers)]) + "\n"
    write_text(path, "".join(lines.values()))


def read_poses(path: str | Path) -> dict[str, pycolmap.Rigid3d]:
    """The poses by file name, in the order of the file.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is empty, a line is not of that form, or a photo is there twice.
    """
    import pycolmap

    poses: dict[str, pycolmap.Rigid3d] = {}
    for number, (name, *words) in word_lines(path, _EXPECTED):
        try:
            values = np.array(words, dtype=np.float64)
        except ValueError:
            values = np.empty(0)
        if len(values) != 7 or not np.isfinite(values).all() or not values[:4].any():
            raise FormatError(f"{path}, line {number}: expected {_EXPECTED}")
        if name in poses:
            raise FormatError(f"{path}, line {number}: the photo {name} is there twice")
        rotation = pycolmap.Rotation3d(values[[1, 2, 3, 0]] / np.linalg.norm(values[:4]))
        poses[name] = pycolmap.Rigid3d(rotation, values[4:])
    if not poses:
        raise FormatError(f"{path} is empty; expected {_EXPECTED}")
    return poses
