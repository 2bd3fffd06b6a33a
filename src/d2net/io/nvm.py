"""VisualSFM's models (NVM_V3), the form of Aachen Day-Night v1.0's.

The text holds a count and so many cameras, `name focal qw qx qy qz cx cy cz distortion 0`, where q
turns the world into the camera and c is the camera's centre; then a count and so many points,
`x y z r g b n` and n times `camera feature u v`. The axes of a camera are COLMAP's.

The intrinsics in it are those of VisualSFM's own lens model, rounded, without principal point; the
benchmark's are in a list beside it.

Source: http://ccwu.me/vsfm/doc.html#nvm; https://github.com/cvg/Hierarchical-Localization,
hloc/colmap_from_nvm.py, for what the Aachen model means by it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError
from d2net.io.intrinsics import read_intrinsics
from d2net.io.text import word_lines

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]
Lines = Iterator[tuple[int, list[str]]]


def read_nvm(path: str | Path, intrinsics: str | Path) -> pycolmap.Reconstruction:
    """Read a model.

    Args:
        path: the .nvm file.
        intrinsics: the list of its photos' cameras, see `io.intrinsics`.

    Returns:
        COLMAP's model. Its observations tell which photos see which points; their pixels are as
        in the file, which does not say where its pixels begin.

    Raises:
        InputError: a file cannot be read.
        FormatError: a file is no such model or list, or a photo has no camera in the list.
    """
    import pycolmap

    cameras = read_intrinsics(intrinsics)
    lines = _numbered(path)
    photos, poses = _read_cameras(path, lines)
    unknown = [name for name in photos if name not in cameras]
    if unknown:
        raise FormatError(f"{intrinsics} has no camera of the photo {unknown[0]}, which {path} has")
    points = _read_points(path, lines, len(photos))
    model = pycolmap.Reconstruction()
    pixels: list[list[Array]] = [[] for _ in photos]
    for point in points:
        for photo, pixel in zip(point.photos, point.pixels, strict=True):
            pixels[photo].append(pixel)
    for i, (name, pose) in enumerate(zip(photos, poses, strict=True)):
        camera = cameras[name]
        camera.camera_id = i + 1
        model.add_camera_with_trivial_rig(camera)
        seen = np.reshape(pixels[i], (-1, 2))
        image = pycolmap.Image(name=name, keypoints=seen, camera_id=i + 1, image_id=i + 1)
        model.add_image_with_trivial_frame(image, pose)
    used = [0] * len(photos)
    for point in points:
        track = pycolmap.Track()
        for photo in point.photos:
            track.add_element(photo + 1, used[photo])
            used[photo] += 1
        model.add_point3D(point.place, track, point.colour)
    return model


def _numbered(path: str | Path) -> Lines:
    """The lines after the heading, which may go on after NVM_V3 with a fixed calibration."""
    lines = word_lines(path, "a model of VisualSFM (NVM_V3)")
    _, heading = next(lines, (0, [""]))
    if heading[0] != "NVM_V3":
        raise FormatError(f"{path} is no model of VisualSFM: it does not begin with NVM_V3")
    return lines


def _read_cameras(path: str | Path, lines: Lines) -> tuple[list[str], list[pycolmap.Rigid3d]]:
    import pycolmap

    photos, poses = [], []
    for number, (name, *words) in _entries(path, lines, "cameras"):
        values = _numbers(path, number, words)
        if len(values) < 9 or not values[1:5].any():
            raise FormatError(
                f"{path}, line {number}: {name} does not have its focal length and pose"
            )
        rotation = pycolmap.Rotation3d(values[[2, 3, 4, 1]] / np.linalg.norm(values[1:5]))
        photos.append(name)
        poses.append(pycolmap.Rigid3d(rotation, -(rotation.matrix() @ values[5:8])))
    if not photos:
        raise FormatError(f"{path} holds no cameras; expected a model with photos in it")
    if len(set(photos)) < len(photos):
        twice = next(name for i, name in enumerate(photos) if name in photos[:i])
        raise FormatError(f"{path} holds the photo {twice} twice")
    return photos, poses


@dataclass(frozen=True)
class _Point:
    place: Array
    colour: NDArray[np.uint8]
    photos: list[int]
    pixels: Array


def _read_points(path: str | Path, lines: Lines, num_photos: int) -> list[_Point]:
    points = []
    for number, words in _entries(path, lines, "points"):
        values = _numbers(path, number, words)
        track = values[7:].reshape(-1, 4) if len(values) % 4 == 3 else np.empty((0, 4))
        photos = track[:, 0].astype(int)
        if len(track) == 0 or len(track) != values[6]:
            raise FormatError(
                f"{path}, line {number}: a point does not have place, colour and observations"
            )
        if photos.min() < 0 or photos.max() >= num_photos:
            raise FormatError(
                f"{path}, line {number}: a point is seen in a photo that is not there"
            )
        points.append(
            _Point(values[:3], values[3:6].astype(np.uint8), photos.tolist(), track[:, 2:])
        )
    return points


def _entries(path: str | Path, lines: Lines, what: str) -> Lines:
    """The lines that a count announces."""
    number, words = next(lines, (0, ["0"]))
    if len(words) != 1 or not words[0].isdecimal():
        raise FormatError(f"{path}, line {number}: expected how many {what} there are")
    count = int(words[0])
    for i in range(count):
        entry = next(lines, None)
        if entry is None:
            raise FormatError(f"{path} ends after {i} of {count} {what}")
        yield entry


def _numbers(path: str | Path, number: int, words: list[str]) -> Array:
    try:
        return np.array(words, dtype=np.float64)
    except ValueError as error:
        raise FormatError(f"{path}, line {number}: expected numbers") from error
