"""Folders in the format kapture 1.1: sensors, keypoints, descriptors and matches.

In kapture, [0, 0] is the upper left corner of the photo, so the centre of the top-left pixel is
(0.5, 0.5) as in COLMAP; its converters exchange keypoints with COLMAP unchanged. The half pixel is
added here. A keypoint is (x, y, scale) and a descriptor D numbers in float32; a match is two rows
and a score in float64. The photos of a pair are in lexicographic order.

Source: https://github.com/naver/kapture, kapture_format.adoc ("keypoints.txt"),
kapture/converter/colmap/database_extra.py (add_keypoints_to_database).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from d2net.errors import FormatError, InputError
from d2net.features import Features, Matches
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS
from d2net.io.arrays import as_numpy
from d2net.io.atomic import new_folder
from d2net.io.container import check_name
from d2net.io.h5 import MatchFile

TYPE = "d2net"
"""The type of our keypoints, descriptors and matches, part of the folders' names."""

_KEYPOINTS = Path("reconstruction/keypoints", TYPE)
_DESCRIPTORS = Path("reconstruction/descriptors", TYPE)
_MATCHES = Path("reconstruction/matches", TYPE)
_PAIR_SEPARATOR = ".overlapping/"


def write_kapture(
    folder: str | Path, features: Mapping[str, Features], matches: MatchFile | None = None
) -> None:
    """Write a kapture folder, in which each photo has its own camera with unknown intrinsics.

    For kapture's tools, copy or link the photos to `sensors/records_data`.

    Args:
        folder: must not exist, or be empty.
        features: the features by photo, for example a `FeatureFile`.
        matches: the pairs whose photos are both in `features` are written.

    Raises:
        InputError: there are no features, or kapture cannot express a name.
        FormatError: the descriptors of the photos differ in length.
        OutputError: `folder` exists and is not empty, or cannot be written.
    """
    folder = Path(folder)
    names = sorted(features)
    for name in names:
        _check_name(name)
    if not names:
        raise InputError("there are no features to write as kapture.")
    with new_folder(folder) as root:
        sizes, num_keypoints = {}, {}
        dimension = features[names[0]].descriptors.shape[1]
        for name in names:
            photo = features[name]
            if photo.descriptors.shape[1] != dimension:
                raise FormatError(
                    f"the descriptors of {name!r} have length {photo.descriptors.shape[1]}, but "
                    f"those of {names[0]!r} have length {dimension}; kapture needs one length."
                )
            _write_photo(root, name, photo)
            sizes[name] = photo.image_size
            num_keypoints[name] = len(photo)
        _write_tables(root, sizes, dimension)
        if matches is not None:
            for first, second, pair in matches.among(num_keypoints):
                _write_pair(root, first, second, pair)


def _write_photo(root: Path, name: str, features: Features) -> None:
    pixels = COLMAP_FROM_PIXELS(features.keypoints)
    keypoints = torch.cat([pixels, features.scales[:, None]], dim=1)
    _write_array(root / _KEYPOINTS / f"{name}.kpt", keypoints)
    _write_array(root / _DESCRIPTORS / f"{name}.desc", features.descriptors.float())


def _write_pair(root: Path, first: str, second: str, matches: Matches) -> None:
    rows = matches.indices
    if first > second:
        first, second, rows = second, first, rows.flip(1)
    table = torch.cat([rows, matches.scores[:, None].double()], dim=1)
    _write_array(root / _MATCHES / f"{first}{_PAIR_SEPARATOR}{second}.matches", table)


def _write_tables(root: Path, sizes: dict[str, tuple[int, int]], dimension: int) -> None:
    """Write the text files that describe cameras, photos, keypoints and descriptors."""
    _write_table(
        root / "sensors/sensors.txt",
        "sensor_id, name, sensor_type, [sensor_params]+",
        (
            (f"camera{i}", "", "camera", "UNKNOWN_CAMERA", width, height)
            for i, (width, height) in enumerate(sizes.values())
        ),
    )
    _write_table(
        root / "sensors/records_camera.txt",
        "timestamp, device_id, image_path",
        ((i, f"camera{i}", name) for i, name in enumerate(sizes)),
    )
    _write_table(root / _KEYPOINTS / "keypoints.txt", "name, dtype, dsize", [(TYPE, "float32", 3)])
    _write_table(
        root / _DESCRIPTORS / "descriptors.txt",
        "name, dtype, dsize, keypoints_type, metric_type",
        [(TYPE, "float32", dimension, TYPE, "L2")],
    )


def _check_name(name: str) -> None:
    if (
        name != name.strip()
        or any(c in name for c in ",\n\r\\")
        or _PAIR_SEPARATOR in check_name(name)
    ):
        raise InputError(
            f"{name!r} cannot be in a kapture folder: names must not contain commas, line breaks "
            "or backslashes, nor begin or end with a space; rename the file."
        )


def _write_array(path: Path, values: Tensor) -> None:
    """Write little-endian numbers row by row, without a header."""
    array = as_numpy(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())


def _write_table(path: Path, header: str, rows: Iterable[tuple[object, ...]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["# kapture format: 1.1", f"# {header}", *(", ".join(map(str, row)) for row in rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="\n")
