"""Folders in the format kapture 1.1: sensors, keypoints, descriptors and matches.

In kapture, [0, 0] is the upper left corner of the photo, so the centre of the top-left pixel is
(0.5, 0.5) as in COLMAP; its converters exchange keypoints with COLMAP unchanged. The half pixel is
added here. A keypoint is (x, y, scale) and a descriptor D numbers in float32; a match is two rows
and a score in float64. The photos of a pair are in lexicographic order.

Source: https://github.com/naver/kapture, kapture_format.adoc ("keypoints.txt"),
kapture/converter/colmap/database_extra.py (add_keypoints_to_database).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from d2net.errors import FormatError, InputError
from d2net.features import Features
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS
from d2net.io.arrays import as_numpy
from d2net.io.atomic import new_folder
from d2net.io.h5 import MatchFile
from d2net.io.resumable_h5 import check_name

TYPE = "d2net"  # the type of our keypoints, descriptors and matches, part of the folders' names

_KEYPOINTS = Path("reconstruction/keypoints", TYPE)
_DESCRIPTORS = Path("reconstruction/descriptors", TYPE)
_MATCHES = Path("reconstruction/matches", TYPE)
_PAIR_SEPARATOR = ".overlapping/"


def write_kapture(
    folder: str | Path, features: Mapping[str, Features], matches: MatchFile | None = None
) -> None:
    """Write a kapture folder, in which each photo has its own camera with unknown intrinsics.

    For kapture's tools, copy or link the photos to `sensors/records_data`. `folder` must be absent
    or empty. The pairs whose photos are both in `features` are written.
    """
    names = sorted(features)
    if not names:
        raise InputError("there are no features to write as kapture.")
    for name in names:
        stripped = name == name.strip() and not any(c in name for c in ",\n\r\\")
        if not stripped or _PAIR_SEPARATOR in check_name(name):
            raise InputError(
                f"{name!r} cannot be in a kapture folder: names must not contain commas, line "
                "breaks or backslashes, nor begin or end with a space; rename the file."
            )
    with new_folder(Path(folder)) as root:
        sizes, num_keypoints = [], {}
        dimension = features[names[0]].descriptors.shape[1]
        for name in names:
            photo = features[name]
            if photo.descriptors.shape[1] != dimension:
                raise FormatError(
                    f"the descriptors of {name!r} have length {photo.descriptors.shape[1]}, but "
                    f"those of {names[0]!r} have length {dimension}; kapture needs one length."
                )
            pixels = COLMAP_FROM_PIXELS(photo.keypoints)
            keypoints = torch.cat([pixels, photo.scales[:, None]], dim=1)
            _write_array(root / _KEYPOINTS / f"{name}.kpt", keypoints)
            _write_array(root / _DESCRIPTORS / f"{name}.desc", photo.descriptors.float())
            sizes.append(photo.image_size)
            num_keypoints[name] = len(photo)
        sensors = [(f"camera{i}", "", "camera", "UNKNOWN_CAMERA", *s) for i, s in enumerate(sizes)]
        records = [(i, f"camera{i}", name) for i, name in enumerate(names)]
        for path, header, rows in (
            ("sensors/sensors.txt", "sensor_id, name, sensor_type, [sensor_params]+", sensors),
            ("sensors/records_camera.txt", "timestamp, device_id, image_path", records),
            (_KEYPOINTS / "keypoints.txt", "name, dtype, dsize", [(TYPE, "float32", 3)]),
            (
                _DESCRIPTORS / "descriptors.txt",
                "name, dtype, dsize, keypoints_type, metric_type",
                [(TYPE, "float32", dimension, TYPE, "L2")],
            ),
        ):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            listed = [(f"# kapture format: 1.1\n# {header}",), *rows]
            text = "".join(", ".join(map(str, row)) + "\n" for row in listed)
            (root / path).write_text(text, encoding="utf-8", newline="\n")
        if matches is not None:
            for first, second, pair in matches.among(num_keypoints):
                ordered = (first, second) if first < second else (second, first)
                indices = pair.indices if first < second else pair.indices.flip(1)
                table = torch.cat([indices, pair.scores[:, None].double()], dim=1)
                _write_array(root / _MATCHES / f"{_PAIR_SEPARATOR.join(ordered)}.matches", table)


def _write_array(path: Path, values: Tensor) -> None:
    """Write little-endian numbers row by row, without a header."""
    array = as_numpy(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(array.astype(array.dtype.newbyteorder("<")).tobytes())
