"""InLoc (Taira et al., CVPR 2018): telephone photos localized in photos cut out of laser scans.

`NAME.jpg.mat` holds `XYZcut`, height x width x 3: the 3D point of each pixel in the scan's frame,
NaN where the laser measured nothing. `database/alignments/FLOOR/transformations/
BUILDING_trans_SCAN.txt` holds the pose of the scan on its floor: lines 8 to 11 are a 4 x 4 matrix
(`P_after_GICP`). The position of the matrix is from
https://github.com/cvg/Hierarchical-Localization, hloc/localize_inloc.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np

from d2net.errors import FormatError
from d2net.evaluation.aachen import read_candidates
from d2net.evaluation.cache import CachedMatches
from d2net.evaluation.localization_dataset import (
    Limit,
    LocalizationDataset,
    Query,
    QueryMap,
    check_photos_exist,
)
from d2net.evaluation.results import Array
from d2net.features import Features
from d2net.io.pairs import Pair

if TYPE_CHECKING:
    from d2net.geometry.coordinates import Size

LIMITS = (Limit("0.25 m", 0.25, 10), Limit("0.5 m", 0.5, 10), Limit("1 m", 1, 10))
THRESHOLD = 48.0
"""Largest reprojection error of an inlier in pixels (hloc's, for photos of 4032 px)."""
_MATRIX_LINES = slice(7, 11)


@dataclass(frozen=True)
class InLoc(LocalizationDataset):
    """The dataset, or other photos in its layout."""

    def choose_pairs(self, photos: CachedMatches) -> tuple[list[Query], list[Pair]]:
        """The map needs no matches: its scans have a point for each pixel."""
        return list(self.queries), []

    def build_map(self, photos: CachedMatches, pairs: Sequence[Pair]) -> QueryMap:
        """Look the keypoints up in the scans, whose photos count as one group."""

        @cache
        def points_of(name: str) -> Array:
            return scanned_points(self.photos, name, photos.features(name))

        return QueryMap(points_of, lambda names: [names])


def read_inloc(folder: Path, pair_lists: Sequence[Path]) -> InLoc:
    """Read the dataset.

    Args:
        folder: holds `database/cutouts`, `database/alignments` and `query`.
        pair_lists: lists of a query and a photo of the map.

    Raises:
        FormatError: a photo is missing.
    """
    queries = []
    for name, cutouts in read_candidates(pair_lists).items():
        # The benchmark counts by floor, but does not say on which floor a query was taken.
        floors = [Path(cutout).parts[-3] if cutout.count("/") > 1 else "" for cutout in cutouts]
        queries.append(Query(name, max(floors, key=floors.count), cutouts))
    check_photos_exist(
        folder, [name for query in queries for name in (query.name, *query.candidates)]
    )
    return InLoc("inloc", folder, queries, LIMITS, THRESHOLD)


def scanned_points(folder: Path, name: str, features: Features) -> Array:
    """3D points of a cutout's keypoints in the frame of its floor.

    Args:
        folder: of the dataset.
        name: of the cutout, `database/cutouts/FLOOR/SCAN/NAME.jpg`.
        features: of the cutout.

    Returns:
        N x 3 in metres, NaN where the scan has no point.

    Raises:
        FormatError: the scan or its alignment is missing or broken, or the scan has another size.
    """
    scan = _read_scan(folder / f"{name}.mat", features.image_size)
    floor_from_scan = _read_alignment(folder, name)
    in_scan = interpolate(scan, features.keypoints.double().numpy())
    return np.asarray(in_scan @ floor_from_scan[:3, :3].T + floor_from_scan[:3, 3])


def interpolate(scan: Array, points: Array) -> Array:
    """A scan's 3D points at positions between pixels.

    Args:
        scan: H x W x 3, NaN where there is no point.
        points: N x 2 (x, y) in pixels of the scan, pixel centres at integers.

    Returns:
        N x 3: bilinear between the four pixels around. Where one of them has no point, the nearest
        pixel's point, or NaN if that has none.
    """
    last = np.array(scan.shape[1::-1]) - 1
    inside = np.clip(points, 0, last)
    corner = np.minimum(inside.astype(int), np.maximum(last - 1, 0))
    x, y = corner.T
    right, below = (inside - corner).T[..., None]
    x_next, y_next = np.minimum(corner + 1, last).T
    bilinear = (1 - below) * ((1 - right) * scan[y, x] + right * scan[y, x_next]) + below * (
        (1 - right) * scan[y_next, x] + right * scan[y_next, x_next]
    )
    column, row = np.rint(inside).astype(int).T
    complete = np.isfinite(bilinear).all(axis=1, keepdims=True)
    return np.asarray(np.where(complete, bilinear, scan[row, column]), dtype=np.float64)


def _read_scan(path: Path, size: Size) -> Array:
    from scipy.io import loadmat

    if not path.is_file():
        raise FormatError(f"there is no scan {path} beside its photo")
    try:
        content: dict[str, Any] = loadmat(path, variable_names=["XYZcut"])
        scan = np.asarray(content["XYZcut"], dtype=np.float64)
    except Exception as error:  # SciPy raises many kinds for damaged files
        raise FormatError(f"{path} is not a MATLAB file with XYZcut in it") from error
    width, height = size
    if scan.shape != (height, width, 3):
        shape = " x ".join(map(str, scan.shape))
        raise FormatError(
            f"{path}: XYZcut is {shape}, but its photo has {width} x {height} pixels; expected "
            f"{height} x {width} x 3"
        )
    return scan


def _read_alignment(folder: Path, name: str) -> Array:
    """4 x 4 floor_from_scan."""
    parts = PurePosixPath(name).parts
    if len(parts) < 3:
        raise FormatError(
            f"{name} is not a cutout: database/cutouts/FLOOR/SCAN/NAME.jpg is expected"
        )
    floor, scan, file = parts[-3:]
    alignments = folder / "database" / "alignments" / floor / "transformations"
    path = alignments / f"{file[:3]}_trans_{scan}.txt"
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
        raise FormatError(f"{path}: lines 8 to 11 are not the 4 x 4 pose of the scan")
    return matrix
