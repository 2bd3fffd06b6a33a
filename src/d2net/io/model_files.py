"""Whether the files of a binary COLMAP model are whole, found out before pycolmap reads them.

pycolmap believes every count in a file, also one read past its end, and allocates accordingly: an
empty points3D.bin costs 17 GB. So each record is stepped over here.

Source: https://colmap.github.io/format.html; COLMAP's src/colmap/scene/reconstruction_io.cc for
rigs and frames.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from d2net.errors import FormatError

_COUNT = struct.Struct("<Q")
_NUMBER = struct.Struct("<I")


def check_model_files(folder: Path) -> None:
    """Compare the sizes of a model's .bin files with what is said in them.

    Raises:
        FormatError: a file is empty or cut, or its counts are damaged.
    """
    for name, step in _STEPS.items():
        path = folder / f"{name}.bin"
        if path.is_file():
            _check(path, step)


def _check(path: Path, step: Callable[[bytes, int], int]) -> None:
    data = path.read_bytes()
    at, done, count = _COUNT.size, 0, 0
    try:
        (count,) = _COUNT.unpack_from(data)
        while done < count and at <= len(data):
            at, done = step(data, at), done + 1
    except (struct.error, ValueError):  # beyond the end, or a kind that does not exist
        at = len(data) + 1
    if at > len(data):
        raise FormatError(
            f"{path} is empty, cut or damaged: its {len(data):,} bytes end before number {done:,} "
            f"of the {count:,} {path.stem} that it says it holds; copy or make the model again"
        )


def _camera(data: bytes, at: int) -> int:
    """Number, model, width, height, parameters."""
    import pycolmap

    kind = pycolmap.CameraModelId(_NUMBER.unpack_from(data, at + 4)[0])
    camera = pycolmap.Camera.create_from_model_id(1, kind, 1.0, 1, 1)
    return at + 24 + 8 * len(camera.params)


def _image(data: bytes, at: int) -> int:
    """Number, pose, camera, name that ends with a zero; count of x, y, point."""
    end = data.index(0, at + 64) + 1
    return end + 8 + 24 * int(_COUNT.unpack_from(data, end)[0])


def _point(data: bytes, at: int) -> int:
    """Number, position, colour, error; count of photo, keypoint."""
    return at + 51 + 8 * int(_COUNT.unpack_from(data, at + 43)[0])


def _rig(data: bytes, at: int) -> int:
    """Number; count of sensors: type, number and, of all but the first, maybe a pose."""
    (sensors,) = _NUMBER.unpack_from(data, at + 4)
    at += 8 + (8 if sensors else 0)
    for _ in range(sensors - 1):
        (posed,) = struct.unpack_from("<8xB", data, at)
        at += 9 + (56 if posed else 0)
    return at


def _frame(data: bytes, at: int) -> int:
    """Number, rig, pose; count of type, sensor, photo."""
    return at + 68 + 16 * int(_NUMBER.unpack_from(data, at + 64)[0])


_STEPS: Mapping[str, Callable[[bytes, int], int]] = {
    "cameras": _camera,
    "rigs": _rig,
    "frames": _frame,
    "images": _image,
    "points3D": _point,
}
"""From where a record begins to where it ends, in the file of each kind."""
