"""Aachen Day-Night (Sattler et al., CVPR 2018), v1.0 and v1.1.

The layout is the one of https://www.visuallocalization.net.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedMatches
from d2net.evaluation.localization_dataset import (
    Limit,
    LocalizationDataset,
    Query,
    QueryMap,
    check_photos_exist,
    triangulated_map,
)
from d2net.io.colmap_model import is_model, read_model
from d2net.io.intrinsics import read_intrinsics
from d2net.io.nvm import read_nvm
from d2net.io.pairs import Pair, read_pairs
from d2net.matching.pairs import from_covisibility

if TYPE_CHECKING:
    import pycolmap

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
MAX_ERROR = 4.0
"""Largest reprojection error of a triangulated point in pixels (hloc's and COLMAP's)."""

QUERY_LISTS = "*_time_queries_with_intrinsics.txt"


@dataclass(frozen=True, kw_only=True)
class Aachen(LocalizationDataset):
    """The dataset, or other photos in its layout.

    Attributes:
        model: poses and points of the map's photos.
        num_covisible: each photo of the map is matched with this many others, which see the most of
            the same points.
    """

    model: pycolmap.Reconstruction
    num_covisible: int

    def choose_pairs(self, photos: CachedMatches) -> tuple[list[Query], list[Pair]]:
        """Photos of the map are matched with those that see the same points."""
        pairs = from_covisibility(self.model, self.num_covisible)
        if not pairs:
            raise InputError(
                "the model has no points that two photos see, by which photos of the map are paired"
            )
        return list(self.queries), pairs

    def build_map(self, photos: CachedMatches, pairs: Sequence[Pair]) -> QueryMap:
        """Triangulate the matches with the known poses."""
        return triangulated_map(self.model, photos, pairs, MAX_ERROR)


def read_aachen(
    folder: Path,
    query_lists: Sequence[Path],
    pair_lists: Sequence[Path],
    model_path: Path | None,
    num_covisible: int,
) -> Aachen:
    """Read the dataset.

    Args:
        folder: holds the photos in `images/images_upright`, `images_upright` or `images`.
        query_lists: queries with intrinsics. The name before `_time_queries` is the group.
        pair_lists: lists of a query and a photo of the map.
        model_path: a COLMAP model, or a .nvm file with `database_intrinsics.txt` beside it; None
            for the one in `3D-models` or in one of its folders.
        num_covisible: see `Aachen`.

    Raises:
        FormatError: files are broken, or do not belong together.
    """
    photo_folders = [folder / "images/images_upright", folder / "images_upright", folder / "images"]
    photos = next((path for path in photo_folders if path.is_dir()), None)
    if photos is None:
        raise FormatError(f"{folder} has no photos: a folder images_upright is expected")
    path = model_path or _find_model(folder / "3D-models")
    is_nvm = path.suffix.lower() == ".nvm"
    intrinsics = path.parent / "database_intrinsics.txt"
    model = read_nvm(path, intrinsics) if is_nvm else read_model(path)
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
                f"the query {query.name} is paired with {unknown[0]}, but the model {path} has no "
                "pose of that photo"
            )
    check_photos_exist(photos, [*sorted(in_model), *(query.name for query in queries)])
    return Aachen(
        name="aachen-v1.0" if is_nvm else "aachen-v1.1",
        photos=photos,
        queries=queries,
        limits=LIMITS,
        threshold=THRESHOLD,
        model=model,
        num_covisible=num_covisible,
    )


def read_candidates(pair_lists: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Photos of the map by query, in the order of the lists."""
    candidates: dict[str, dict[str, None]] = {}
    for path in pair_lists:
        for query, photo in read_pairs(path):
            candidates.setdefault(query, {})[photo] = None
    return {query: tuple(photos) for query, photos in candidates.items()}


def _find_model(folder: Path) -> Path:
    """COLMAP's model before VisualSFM's: v1.1 is distributed together with v1.0."""
    if not folder.is_dir():
        raise FormatError(f"there is no folder {folder} with the model of the map; give the model")
    folders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    models = [path for path in folders if is_model(path)] or sorted(folder.glob("*.nvm"))
    if len(models) != 1:
        raise FormatError(
            f"{folder} holds {len(models) or 'no'} models (COLMAP's or .nvm), but one is expected; "
            "give the model"
        )
    return models[0]
