"""InLoc (Taira et al., CVPR 2018): telephone photos localized in photos cut out of laser scans.

`NAME.jpg.mat` holds `XYZcut`, height x width x 3: the 3D point of each pixel in the scan's frame,
NaN where the laser measured nothing. Lines 8 to 11 of `database/alignments/FLOOR/transformations/
BUILDING_trans_SCAN.txt` are the 4 x 4 pose of the scan on its floor. Source:
https://github.com/cvg/Hierarchical-Localization, hloc/localize_inloc.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError
from d2net.evaluation.cache import CachedPhotos
from d2net.evaluation.localization_dataset import (
    Limit,
    LocalizationDataset,
    Query,
    QueryMap,
    read_candidates,
)
from d2net.evaluation.results import Array
from d2net.features import Features

if TYPE_CHECKING:
    import pycolmap

    from d2net.geometry.coordinates import Size

LIMITS = (Limit("0.25 m", 0.25, 10), Limit("0.5 m", 0.5, 10), Limit("1 m", 1, 10))
THRESHOLD = 48.0
"""Largest reprojection error of an inlier in pixels (hloc's, for photos of 4032 px)."""


def read_inloc(folder: Path, pair_lists: Sequence[Path]) -> LocalizationDataset:
    """Read the dataset: `database/cutouts`, `database/alignments` and `query`.

    The group of a query is the floor of most of its cutouts.
    """
    queries = []
    for name, cutouts in read_candidates(pair_lists).items():
        floors = [Path(cutout).parts[-3] for cutout in cutouts if cutout.count("/") > 1]
        if len(floors) < len(cutouts):
            raise FormatError(
                f"the query {name} is paired with a photo that is not a cutout: "
                "database/cutouts/FLOOR/SCAN/NAME.jpg is expected"
            )
        queries.append(Query(name, max(floors, key=floors.count), cutouts))
    return LocalizationDataset("inloc", folder, queries, LIMITS, THRESHOLD, None, [])


def telephone(size: Size) -> pycolmap.Camera:
    """The camera of a query: 28 mm on a film of 36 mm."""
    import pycolmap

    params = [28 / 36 * max(size), size[0] / 2, size[1] / 2]
    return pycolmap.Camera(model="SIMPLE_PINHOLE", width=size[0], height=size[1], params=params)


def scanned_map(folder: Path, photos: CachedPhotos) -> QueryMap:
    """The points of the scans; the photos count as one group."""

    @cache
    def points_of(name: str) -> Array:
        return scanned_points(folder / name, photos.features(name))

    return QueryMap(points_of, lambda names: [names])


def scanned_points(cutout: Path, features: Features) -> Array:
    """3D points of a cutout's keypoints: the point of the nearest pixel.

    Args:
        cutout: `database/cutouts/FLOOR/SCAN/NAME.jpg`.
        features: of the cutout.

    Returns:
        N x 3 in metres in the frame of the floor, NaN where the scan has no point.

    Raises:
        FormatError: the scan or its alignment is missing or broken, or the scan has another size.
    """
    from scipy.io import loadmat

    path = cutout.with_name(f"{cutout.name}.mat")
    width, height = features.image_size
    try:
        scan = np.asarray(loadmat(path, variable_names=["XYZcut"])["XYZcut"], dtype=np.float64)
    except Exception as error:  # SciPy raises many kinds for damaged files
        raise FormatError(f"{path} is missing or not a MATLAB file with XYZcut in it") from error
    if scan.shape != (height, width, 3):
        raise FormatError(
            f"{path}: XYZcut is {' x '.join(map(str, scan.shape))}, but its photo has {width} x "
            f"{height} pixels; expected {height} x {width} x 3"
        )
    floor, number = cutout.parts[-3:-1]
    alignments = cutout.parents[3] / "alignments" / floor / "transformations"
    path = alignments / f"{cutout.name[:3]}_trans_{number}.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()[7:11]
        floor_from_scan = np.array([line.split() for line in lines], dtype=np.float64).reshape(4, 4)
    except (OSError, ValueError) as error:
        raise FormatError(
            f"{path} is missing, or its lines 8 to 11 are not the 4 x 4 pose of the scan"
        ) from error
    column, row = np.rint(features.keypoints.double().numpy()).astype(int).T
    in_scan = scan[row.clip(0, height - 1), column.clip(0, width - 1)]
    return np.asarray(in_scan @ floor_from_scan[:3, :3].T + floor_from_scan[:3, 3])
