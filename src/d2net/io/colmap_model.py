"""COLMAP's models (cameras, poses and points), read with pycolmap.

pycolmap trusts every count in a binary file, even one that it read beyond the end, and allocates
that much memory: an empty points3D.bin costs 17 GB. So the files are checked first, record by
record.

Source: https://colmap.github.io/format.html; COLMAP's src/colmap/scene/reconstruction_io.cc for
rigs and frames.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.errors import FormatError, InputError

if TYPE_CHECKING:
    import pycolmap


def find_model(folder: Path) -> Path | None:
    """The folder of a scene's model: `model`, `sparse/0`, `sparse` or the scene's folder itself."""
    candidates = (folder / "model", folder / "sparse" / "0", folder / "sparse", folder)
    return next((candidate for candidate in candidates if is_model(candidate)), None)


def is_model(folder: Path) -> bool:
    """Whether a folder contains a model, text or binary."""
    return any((folder / f"images{extension}").is_file() for extension in (".txt", ".bin"))


def read_model(folder: Path) -> pycolmap.Reconstruction:
    """Read the model in a folder, text or binary.

    Raises:
        InputError: the folder contains no model.
        FormatError: the model is damaged or one of its files is cut off.
    """
    import pycolmap

    if not is_model(folder):
        raise InputError(
            f"{folder} holds no COLMAP model: expected cameras, images and points3D as .txt or "
            ".bin files"
        )
    check_model_files(folder)
    try:
        model = pycolmap.Reconstruction(folder)
        if not (folder / "images.bin").is_file():
            for number, name in _read_names(folder / "images.txt").items():
                model.images[number].name = name
    except (ValueError, LookupError, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise FormatError(f"the COLMAP model {folder} cannot be read: {reason}") from error
    return model


def _read_names(path: Path) -> dict[int, str]:
    """The photos' names by number in images.txt, which pycolmap cuts at the first space."""
    names = {}
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            words = line.split(maxsplit=9)
            if words and not words[0].startswith("#"):
                names[int(words[0])] = words[9].strip()
                next(lines, None)  # the keypoints of the photo; the line may be empty
    return names


def check_model_files(folder: Path) -> None:
    """Check that the binary files of a model are as long as the counts in them require.

    Raises:
        FormatError: a file is empty or cut off, or its counts are damaged.
    """
    for name, end_of_record in _END_OF_RECORD.items():
        path = folder / f"{name}.bin"
        if path.is_file():
            _check_file(path, end_of_record)


def _check_file(path: Path, end_of_record: Callable[[bytes, int], int]) -> None:
    data = path.read_bytes()
    position, num_read, count = 8, 0, 0
    try:
        count = _count(data, 0)
        while num_read < count and position <= len(data):
            position = end_of_record(data, position)
            num_read += 1
        is_complete = position <= len(data)
    except (struct.error, ValueError):  # read beyond the end, or an unknown camera model
        is_complete = False
    if not is_complete:
        raise FormatError(
            f"{path} is empty, cut off or damaged: it should contain {count:,} {path.stem}, but "
            f"its {len(data):,} bytes end before number {num_read:,}; copy or make the model again"
        )


def _count(data: bytes, position: int) -> int:
    return int(struct.unpack_from("<Q", data, position)[0])


def _short_count(data: bytes, position: int) -> int:
    return int(struct.unpack_from("<I", data, position)[0])


# Each function takes the position where a record begins and returns where it ends.


def _end_of_camera(data: bytes, start: int) -> int:
    """Number, camera model, width, height; parameters."""
    import pycolmap

    model = pycolmap.CameraModelId(_short_count(data, start + 4))
    camera = pycolmap.Camera.create_from_model_id(1, model, 1.0, 1, 1)
    return start + 24 + 8 * len(camera.params)


def _end_of_image(data: bytes, start: int) -> int:
    """Number, pose, camera; name that ends with a zero; count, and so many x, y, point."""
    end_of_name = data.index(0, start + 64) + 1
    return end_of_name + 8 + 24 * _count(data, end_of_name)


def _end_of_point(data: bytes, start: int) -> int:
    """Number, position, colour, error; count, and so many photo, keypoint."""
    return start + 51 + 8 * _count(data, start + 43)


def _end_of_rig(data: bytes, start: int) -> int:
    """Number; count, and so many sensors: type, number and, except for the first, maybe a pose."""
    num_sensors = _short_count(data, start + 4)
    position = start + 8 + (8 if num_sensors else 0)
    for _ in range(num_sensors - 1):
        (has_pose,) = struct.unpack_from("<8xB", data, position)
        position += 9 + (56 if has_pose else 0)
    return position


def _end_of_frame(data: bytes, start: int) -> int:
    """Number, rig, pose; count, and so many sensor type, sensor, photo."""
    return start + 68 + 16 * _short_count(data, start + 64)


_END_OF_RECORD: Mapping[str, Callable[[bytes, int], int]] = {
    "cameras": _end_of_camera,
    "rigs": _end_of_rig,
    "frames": _end_of_frame,
    "images": _end_of_image,
    "points3D": _end_of_point,
}
