"""Poses in the format of the visual localization benchmarks: `name qw qx qy qz tx ty tz` per line.

The poses are `cam_from_world` (world to camera). The benchmarks identify a photo by its file name
without folders (https://www.visuallocalization.net/submission).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import pycolmap

from d2net.errors import FormatError, InputError
from d2net.io.atomic import write_text
from d2net.io.resumable_h5 import check_name
from d2net.io.text_lists import finite_numbers, read_lines

_EXPECTED = "lines of name qw qx qy qz tx ty tz"
BESIDE = "# d2net localize wrote this file beside its output\n"


def check_pose_name(name: str) -> str:
    """Return the name of a photo that a list of poses can hold; else InputError."""
    if len(check_name(name).splitlines()) > 1:
        raise InputError(f"{name!r} cannot be in a list of poses: it contains a line break")
    return name


def write_poses(
    path: str | Path,
    poses: Mapping[str, pycolmap.Rigid3d],
    *,
    photos: Iterable[str] = (),
    beside: bool = False,
) -> None:
    """Write poses by the photos' paths.

    The file name is written, or the whole path if another photo has the same file name: one of the
    poses, or one of the `photos` that have none. With `beside`, a comment marks the file as one
    beside the output of a command.
    """
    file_names = Counter(PurePosixPath(photo).name for photo in {*poses, *photos})
    lines = [BESIDE] if beside else []
    for photo, pose in poses.items():
        file_name = PurePosixPath(photo).name
        name = check_pose_name(file_name if file_names[file_name] == 1 else photo)
        x, y, z, w = pose.rotation.quat
        numbers = (w, x, y, z, *pose.translation)
        lines.append(" ".join([name, *(repr(float(number)) for number in numbers)]) + "\n")
    write_text(Path(path), "".join(lines))


def read_poses(path: str | Path) -> dict[str, pycolmap.Rigid3d]:
    """Read the poses by name, in the order of the file. Names may contain spaces."""
    poses: dict[str, pycolmap.Rigid3d] = {}
    for number, line in read_lines(path, _EXPECTED):
        name, *words = line.rsplit(None, 7)
        values = finite_numbers(words, 7)
        if values is None or not values[:4].any():
            raise FormatError(f"{path}, line {number}: expected {_EXPECTED}")
        if name in poses:
            raise FormatError(f"{path}, line {number}: the photo {name} occurs twice")
        rotation = pycolmap.Rotation3d(values[[1, 2, 3, 0]] / np.linalg.norm(values[:4]))
        poses[name] = pycolmap.Rigid3d(rotation, values[4:])
    if not poses:
        raise FormatError(f"{path} is empty; expected {_EXPECTED}")
    return poses
