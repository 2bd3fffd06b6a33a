"""COLMAP's models (cameras, poses and points), read with pycolmap.

pycolmap trusts every count in a binary file, even one that it read beyond the end, and allocates
that much memory: an empty points3D.bin costs 17 GB. So the files are checked first.

Source: https://colmap.github.io/format.html; COLMAP's src/colmap/scene/reconstruction_io.cc.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Container
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.errors import FormatError, InputError
from d2net.geometry.cameras import check_camera_model
from d2net.io.text_lists import as_known

if TYPE_CHECKING:
    import pycolmap


def find_model(folder: Path | str) -> Path | None:
    """The folder of a scene's model: the scene's folder itself, `model`, `sparse/0` or `sparse`.

    `folder` may be the scene's folder, or `sparse` in it.
    """
    folder = Path(folder)
    candidates = [folder, folder / "model", folder / "sparse" / "0", folder / "sparse"]
    if folder.resolve().name == "sparse":
        candidates.append(folder / "0")
    return next((candidate for candidate in candidates if is_model(candidate)), None)


def is_model(folder: Path) -> bool:
    """Whether a folder contains a model, text or binary."""
    names = ("cameras", "images", "points3D")
    return any(all((folder / (name + end)).is_file() for name in names) for end in (".txt", ".bin"))


def read_model(folder: Path | str, photos: Container[str] = ()) -> pycolmap.Reconstruction:
    """Read the model that `find_model` finds; with the names of `photos` as they are there."""
    import pycolmap

    found = find_model(folder)
    if found is None:
        raise InputError(
            f"{folder} holds no COLMAP model: expected cameras, images and points3D (.txt or .bin)"
        )
    for name in ("cameras", "rigs", "frames", "images", "points3D"):
        if (found / f"{name}.bin").is_file():
            _check_file(found / f"{name}.bin")
    try:
        model = pycolmap.Reconstruction(found)
        if not (found / "images.bin").is_file():
            _read_names(model, found / "images.txt")
    except (ValueError, LookupError, RuntimeError, MemoryError) as error:
        reason = " ".join(str(error).split())
        raise FormatError(f"the COLMAP model {found} cannot be read: {reason}") from error
    for camera in model.cameras.values():
        check_camera_model(camera.model.name)
    for image in model.images.values():
        image.name = as_known(image.name.removeprefix("./"), photos)
    return model


def _read_names(model: pycolmap.Reconstruction, path: Path) -> None:
    """Read the photos' names, which pycolmap cuts at the first space."""
    with path.open(encoding="utf-8", errors="surrogateescape") as lines:
        for line in lines:
            words = line.split(maxsplit=9)
            if words and not words[0].startswith("#"):
                model.images[int(words[0])].name = words[9].strip()
                if len(next(lines, "").split()) % 3:  # x, y, point
                    raise ValueError(f"a line of keypoints, or an empty one, must follow {line}")


def write_model(model: pycolmap.Reconstruction, folder: Path) -> None:
    """Write a model into a new folder; OSError on a full disk, which COLMAP does not notice."""
    folder.mkdir(parents=True)
    model.write_binary(folder)
    try:
        for file in folder.glob("*.bin"):
            _check_file(file)
    except FormatError as error:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder)) from error


def _check_file(path: Path) -> None:
    """Check that a binary file is as long as the counts in it require."""
    data = path.read_bytes()
    position, num_read, count = 8, 0, 0
    try:
        count = _count(data, 0)
        while num_read < count and position <= len(data):
            position = _end_of_record(path.stem, data, position)
            num_read += 1
        is_complete = position <= len(data)
    except (struct.error, ValueError):  # read beyond the end, or an unknown camera model
        is_complete = False
    if not is_complete:
        raise FormatError(
            f"{path} is empty, cut off or damaged: it should contain {count:,} {path.stem}, but "
            f"its {len(data):,} bytes end before number {num_read:,}; copy or make the model again"
        )


def _count(data: bytes, position: int, code: str = "<Q") -> int:
    return int(struct.unpack_from(code, data, position)[0])


def _end_of_record(kind: str, data: bytes, start: int) -> int:
    """Where the record that begins at `start` ends."""
    import pycolmap

    if kind == "cameras":  # number, camera model, width, height; parameters
        model = pycolmap.CameraModelId(_count(data, start + 4, "<I"))
        camera = pycolmap.Camera.create_from_model_id(1, model, 1.0, 1, 1)
        return start + 24 + 8 * len(camera.params)
    if kind == "images":  # number, pose, camera; name and a zero; count, and x, y, point
        end_of_name = data.index(0, start + 64) + 1
        return end_of_name + 8 + 24 * _count(data, end_of_name)
    if kind == "points3D":  # number, position, colour, error; count, and photo, keypoint
        return start + 51 + 8 * _count(data, start + 43)
    if kind == "frames":  # number, rig, pose; count, and sensor type, sensor, photo
        return start + 68 + 16 * _count(data, start + 64, "<I")
    # rigs: number; count, and sensor type, number and, except for the first, maybe a pose
    num_sensors = _count(data, start + 4, "<I")
    position = start + 8 + (8 if num_sensors else 0)
    for _ in range(num_sensors - 1):
        has_pose = _count(data, position + 8, "<B")
        position += 9 + (56 if has_pose else 0)
    return position
