"""Places of pixels in InLoc's database: photos cut out of laser scans, with a point for each pixel.

`NAME.jpg.mat` holds `XYZcut`, height x width x 3, in the scan's frame, not a number where the laser
saw nothing. `database/alignments/FLOOR/transformations/BUILDING_trans_SCAN.txt` holds the scan's
place on the floor: its lines 8 to 11 are a 4 x 4 matrix (`P_after_GICP`).

Source: Taira et al., "InLoc", CVPR 2018; where the matrix is, from
https://github.com/cvg/Hierarchical-Localization, hloc/localize_inloc.py.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError
from d2net.features import Features

Array = NDArray[np.float64]

_MATRIX_LINES = slice(7, 11)


def scan_places(folder: Path, name: str, features: Features) -> Array:
    """Where a cutout's keypoints are on their floor.

    Args:
        folder: of the dataset.
        name: of the cutout, `database/cutouts/FLOOR/SCAN/NAME.jpg`.
        features: of the cutout.

    Returns:
        N x 3 in metres, not a number where the scan has no point.

    Raises:
        FormatError: the scan or its alignment is missing, broken, or of another size.
    """
    scan = _scan(folder / f"{name}.mat", features)
    floor_from_scan = _alignment(folder, name)
    places = sample(scan, features.keypoints.double().numpy())
    placed = places @ floor_from_scan[:3, :3].T + floor_from_scan[:3, 3]
    return np.asarray(placed, dtype=np.float64)


def sample(scan: Array, points: Array) -> Array:
    """A scan's points between pixels: between the four around, or the nearest where one is missing.

    Args:
        scan: H x W x 3, not a number where there is no point.
        points: N x 2 (x, y) in its pixels, pixel centres at integers.

    Returns:
        N x 3, not a number where neither has a point.
    """
    last = np.array(scan.shape[1::-1]) - 1
    inside = np.clip(points, 0, last)
    corner = np.minimum(inside.astype(int), np.maximum(last - 1, 0))
    x, y = corner.T
    right, below = (inside - corner).T[..., None]
    x_next, y_next = np.minimum(corner + 1, last).T
    between = (1 - below) * ((1 - right) * scan[y, x] + right * scan[y, x_next]) + below * (
        (1 - right) * scan[y_next, x] + right * scan[y_next, x_next]
    )
    column, row = np.rint(inside).astype(int).T
    places = np.where(np.isfinite(between).all(axis=1, keepdims=True), between, scan[row, column])
    return np.asarray(places, dtype=np.float64)


def _scan(path: Path, features: Features) -> Array:
    from scipy.io import loadmat

    if not path.is_file():
        raise FormatError(f"there is no scan {path} beside its photo")
    try:
        content: dict[str, Any] = loadmat(path, variable_names=["XYZcut"])
        scan = np.asarray(content["XYZcut"], dtype=np.float64)
    except Exception as error:  # whatever a damaged file makes the reader do
        raise FormatError(f"{path} is no MATLAB file with XYZcut in it") from error
    width, height = features.image_size
    if scan.shape != (height, width, 3):
        found = " x ".join(map(str, scan.shape))
        raise FormatError(
            f"{path}: XYZcut is {found}, but its photo has {width} x {height} pixels; expected "
            f"{height} x {width} x 3"
        )
    return scan


def _alignment(folder: Path, name: str) -> Array:
    """4 x 4 floor_from_scan."""
    parts = PurePosixPath(name).parts
    if len(parts) < 3:
        raise FormatError(f"{name} is no cutout: database/cutouts/FLOOR/SCAN/NAME.jpg is expected")
    floor, scan, file = parts[-3:]
    path = (
        folder
        / "database"
        / "alignments"
        / floor
        / "transformations"
        / f"{file[:3]}_trans_{scan}.txt"
    )
    if not path.is_file():
        raise FormatError(f"there is no alignment {path} of the scan {floor}/{scan}")
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[_MATRIX_LINES]
    try:
        matrix = np.array([line.split() for line in lines], dtype=np.float64)
    except ValueError:
        matrix = np.empty(0)
    if (
        matrix.shape != (4, 4)
        or not np.isfinite(matrix).all()
        or np.linalg.det(matrix[:3, :3]) <= 0
    ):
        raise FormatError(f"{path}: lines 8 to 11 are no 4 x 4 matrix of the scan's place")
    return matrix
