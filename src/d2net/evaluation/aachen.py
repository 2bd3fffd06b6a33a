"""Aachen Day-Night (Sattler et al., CVPR 2018).

The layout is the one of https://www.visuallocalization.net.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from d2net.errors import FormatError, InputError
from d2net.evaluation.localization_dataset import (
    Limit,
    LocalizationDataset,
    Query,
    read_candidates,
)
from d2net.io.colmap_model import is_model, read_model
from d2net.io.intrinsics import read_intrinsics
from d2net.matching.pair_selection import from_covisibility

LIMITS = (
    Limit("0.25 m, 2°", 0.25, 2),
    Limit("0.5 m, 5°", 0.5, 5),
    Limit("5 m, 10°", 5, 10),
    # of the D2-Net paper
    Limit("0.5 m, 2°", 0.5, 2),
    Limit("1 m, 5°", 1, 5),
    Limit("10 m, 25°", 10, 25),
)
THRESHOLD = 12.0
"""Largest reprojection error of an inlier in pixels (hloc's and COLMAP's)."""
NUM_COVISIBLE = 20
"""Each photo of the map is matched with so many others, which see the most of the same points."""

VERSIONS = {4328: "aachen-v1.0", 6697: "aachen-v1.1"}
"""Names of the dataset by the number of photos of the map."""

QUERY_LISTS = "*_time_queries_with_intrinsics.txt"


def read_aachen(
    folder: Path, query_lists: Sequence[Path], pair_lists: Sequence[Path], model_path: Path | None
) -> LocalizationDataset:
    """Read the dataset, or other photos in its layout.

    Args:
        folder: holds the photos in `images/images_upright`, `images_upright` or `images`.
        query_lists: queries with intrinsics. The name before `_time_queries` is the group.
        pair_lists: lists of a query and a photo of the map.
        model_path: a COLMAP model with points; None for the one in `3D-models` or in one of its
            folders.

    Raises:
        InputError: no two photos of the model see the same points.
        FormatError: files are broken, or do not belong together.
    """
    photo_folders = [folder / "images/images_upright", folder / "images_upright", folder / "images"]
    photos = next((path for path in photo_folders if path.is_dir()), None)
    if photos is None:
        raise FormatError(f"{folder} has no photos: a folder images_upright is expected")
    if model_path is None:
        models = [path for path in sorted((folder / "3D-models").glob("**")) if is_model(path)]
        if len(models) != 1:
            raise FormatError(
                f"{folder / '3D-models'} holds {len(models) or 'no'} COLMAP models, but one is "
                "expected; give the model"
            )
        model_path = models[0]
    model = read_model(model_path)
    in_model = {image.name for image in model.images.values() if image.has_pose}
    candidates = read_candidates(pair_lists)
    queries = [
        Query(name, query_list.stem.partition("_time_queries")[0], candidates.get(name, ()), camera)
        for query_list in query_lists
        for name, camera in read_intrinsics(query_list).items()
    ]
    for query in queries:
        if not query.candidates:
            raise FormatError(
                f"the lists of pairs name no photo of the map for the query {query.name}"
            )
        unknown = [name for name in query.candidates if name not in in_model]
        if unknown:
            raise FormatError(
                f"the query {query.name} is paired with {unknown[0]}, but the model {model_path} "
                "has no pose of that photo"
            )
    pairs = from_covisibility(model, NUM_COVISIBLE)
    if not pairs:
        raise InputError(
            f"the model {model_path} has no points that two photos see, by which photos of the map "
            "are paired"
        )
    name = VERSIONS.get(len(model.images), "")
    return LocalizationDataset(name, photos, queries, LIMITS, THRESHOLD, model, pairs)
