"""VisualSFM's models (NVM_V3), the format of the Aachen Day-Night v1.0 model.

The text has a count and that many cameras, `name focal qw qx qy qz cx cy cz distortion 0`, where q
rotates from the world to the camera and c is the camera's centre. Then follow a count and that many
points, `x y z r g b n` and n times `camera feature u v`. The axes of a camera are COLMAP's.

The intrinsics in the file are rounded, belong to VisualSFM's own lens model and have no principal
point. The benchmark provides better ones in a separate list.

Source: http://ccwu.me/vsfm/doc.html#nvm; https://github.com/cvg/Hierarchical-Localization,
hloc/colmap_from_nvm.py, for the meaning of the Aachen model.
"""

from __future__ import annotations

from collections.abc import Iterator
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
        intrinsics: the list of its photos' cameras; see `io.intrinsics`.

    Returns:
        COLMAP's model. The observations tell which photos see which points. Their pixels are those
        of the file, which does not define the origin of its pixels.

    Raises:
        InputError: a file cannot be read.
        FormatError: a file has another format, or the list has no camera for a photo.
    """
    import pycolmap

    cameras = read_intrinsics(intrinsics)
    lines = word_lines(path, "a VisualSFM model (NVM_V3)")
    _, heading = next(lines, (0, [""]))
    if heading[0] != "NVM_V3":  # a fixed calibration may follow on the same line
        raise FormatError(f"{path} is not a VisualSFM model: it does not begin with NVM_V3")
    poses = _read_poses(path, lines)
    missing = [name for name in poses if name not in cameras]
    if missing:
        raise FormatError(f"{intrinsics} has no camera for the photo {missing[0]} of {path}")
    points = _read_points(path, lines, len(poses))

    keypoints: list[list[Array]] = [[] for _ in poses]
    tracks = []
    for values in points:
        track = pycolmap.Track()
        for photo, _, *pixel in values[7:].reshape(-1, 4):
            track.add_element(int(photo) + 1, len(keypoints[int(photo)]))
            keypoints[int(photo)].append(np.array(pixel))
        tracks.append(track)

    model = pycolmap.Reconstruction()
    for i, (name, pose) in enumerate(poses.items()):
        camera = cameras[name]
        camera.camera_id = i + 1
        model.add_camera_with_trivial_rig(camera)
        pixels = np.reshape(keypoints[i], (-1, 2))
        image = pycolmap.Image(name=name, keypoints=pixels, camera_id=i + 1, image_id=i + 1)
        model.add_image_with_trivial_frame(image, pose)
    for values, track in zip(points, tracks, strict=True):
        model.add_point3D(values[:3], track, values[3:6].astype(np.uint8))
    return model


def _read_poses(path: str | Path, lines: Lines) -> dict[str, pycolmap.Rigid3d]:
    """The photos' cam_from_world by name, in the order of the file."""
    import pycolmap

    poses: dict[str, pycolmap.Rigid3d] = {}
    for number, (name, *words) in _entries(path, lines, "cameras"):
        values = _numbers(path, number, words)
        if len(values) < 9 or not values[1:5].any():
            raise FormatError(f"{path}, line {number}: {name} lacks its focal length or pose")
        if name in poses:
            raise FormatError(f"{path}, line {number}: the photo {name} occurs twice")
        rotation = pycolmap.Rotation3d(values[[2, 3, 4, 1]] / np.linalg.norm(values[1:5]))
        poses[name] = pycolmap.Rigid3d(rotation, -(rotation.matrix() @ values[5:8]))
    if not poses:
        raise FormatError(f"{path} contains no cameras; expected a model with photos")
    return poses


def _read_points(path: str | Path, lines: Lines, num_photos: int) -> list[Array]:
    """Each point's numbers as the file has them, with a checked number of observations."""
    points = []
    for number, words in _entries(path, lines, "points"):
        values = _numbers(path, number, words)
        photos = values[7::4]
        if len(photos) == 0 or len(values) != 7 + 4 * values[6]:
            raise FormatError(
                f"{path}, line {number}: a point lacks its position, colour or observations"
            )
        if photos.min() < 0 or photos.max() >= num_photos:
            raise FormatError(
                f"{path}, line {number}: a point is seen in a photo that the model does not have"
            )
        points.append(values)
    return points


def _entries(path: str | Path, lines: Lines, kind: str) -> Lines:
    """Read a count, then yield that many lines."""
    number, words = next(lines, (0, ["0"]))
    if len(words) != 1 or not words[0].isdecimal():
        raise FormatError(f"{path}, line {number}: expected the number of {kind}")
    count = int(words[0])
    for i in range(count):
        entry = next(lines, None)
        if entry is None:
            raise FormatError(f"{path} ends after {i} of {count} {kind}")
        yield entry


def _numbers(path: str | Path, number: int, words: list[str]) -> Array:
    try:
        return np.array(words, dtype=np.float64)
    except ValueError as error:
        raise FormatError(f"{path}, line {number}: expected numbers") from error
