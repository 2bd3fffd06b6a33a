"""Localization in a scene: every third photo is held out of the map and localized in it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError
from d2net.evaluation.cache import CachedMatches
from d2net.evaluation.localization_dataset import (
    Limit,
    LocalizationDataset,
    Query,
    QueryMap,
    triangulated_map,
)
from d2net.evaluation.night import write_at_night
from d2net.features import LazyFeatures
from d2net.geometry.alignment import spread_of
from d2net.io.colmap_model import read_model
from d2net.io.image_lists import photos_folder
from d2net.io.pairs import Pair
from d2net.mapping.localize import NUM_RETRIEVED
from d2net.mapping.settings import MappingSettings
from d2net.matching.pair_selection import MAX_EXHAUSTIVE
from d2net.matching.pairs import exhaustive, from_retrieval
from d2net.matching.retrieval import GlobalDescriptors

if TYPE_CHECKING:
    import pycolmap

EVERY = 3
"""In the order of the names, the second of each three photos is a query."""

LIMITS = (Limit("1 %, 1°", 1, 1), Limit("2 %, 2°", 2, 2), Limit("5 %, 5°", 5, 5))


@dataclass(frozen=True, kw_only=True)
class HeldOutScene(LocalizationDataset):
    """A scene; pairs and thresholds are chosen as in `d2net reconstruct` and `d2net localize`.

    Attributes:
        model: poses and cameras of the map's photos, without points.
    """

    model: pycolmap.Reconstruction

    def choose_pairs(self, photos: CachedMatches) -> tuple[list[Query], list[Pair]]:
        """Retrieval by the evaluated features finds the candidates, and the pairs of large maps."""
        names = sorted(image.name for image in self.model.images.values())
        retrieval = GlobalDescriptors.build(LazyFeatures(photos.features, names))
        few = len(names) <= MAX_EXHAUSTIVE
        pairs = exhaustive(names) if few else from_retrieval(retrieval)
        queries = []
        for query in self.queries:
            similar = retrieval.query(photos.features(query.name), NUM_RETRIEVED)
            # A query without features is similar to no photo. Any photo will do: it is not found.
            candidates = tuple(name for name, _ in similar) or tuple(names[:1])
            queries.append(replace(query, candidates=candidates))
        return queries, pairs

    def build_map(self, photos: CachedMatches, pairs: Sequence[Pair]) -> QueryMap:
        """Triangulate the matches with the known poses."""
        features = (photos.features(image.name) for image in self.model.images.values())
        sigmas = [float(found.uncertainty.median()) for found in features if len(found)]
        max_error = MappingSettings().thresholds(sigmas).reprojection
        return triangulated_map(self.model, photos, pairs, max_error)


def read_held_out(folder: Path, model_path: Path, night: Path | None, seed: int) -> HeldOutScene:
    """Read a scene: photos in `images` or in the folder itself, and a COLMAP model.

    Args:
        folder: of the scene.
        model_path: folder of the model. Its points, if it has any, are not used.
        night: where to write the queries as they would look at night; these are queries too. None
            for the day alone.
        seed: of the random numbers for the night.

    Raises:
        FormatError: a photo of the model is missing, or there are fewer than three.
    """
    photos = photos_folder(folder)
    model = read_model(model_path)
    images = {image.name: image for image in model.images.values() if image.has_pose}
    names = sorted(images)
    missing = [name for name in names if not (photos / name).is_file()]
    if missing:
        raise FormatError(
            f"the model {model_path} names the photo {missing[0]}, which is not in {photos}"
        )
    if len(names) < EVERY:
        raise FormatError(
            f"{model_path} has {len(names)} photos with a pose; a map and a query need {EVERY}"
        )
    held_out = names[1::EVERY]
    queries = [
        Query(name, "day", known_camera=model.cameras[images[name].camera_id]) for name in held_out
    ]
    true_poses = {name: images[name].cam_from_world() for name in held_out}
    elsewhere = {}
    if night is not None:
        for query in list(queries):
            dark = replace(query, name=f"night/{query.name}", group="night")
            elsewhere[dark.name] = night / f"{query.name}.png"
            write_at_night(photos / query.name, elsewhere[dark.name], seed)
            queries.append(dark)
            true_poses[dark.name] = true_poses[query.name]
    centres = np.array([image.cam_from_world().inverse().translation for image in images.values()])
    return HeldOutScene(
        name="",
        photos=photos,
        queries=queries,
        limits=LIMITS,
        threshold=None,
        true_poses=true_poses,
        unit="% of the spread of the cameras",
        unit_length=spread_of(centres) / 100,
        elsewhere=elsewhere,
        model=_without_points(model, set(names) - set(held_out)),
    )


def _without_points(
    model: pycolmap.Reconstruction, names: Collection[str]
) -> pycolmap.Reconstruction:
    """Cameras and poses of some of a model's photos."""
    import pycolmap

    kept = pycolmap.Reconstruction()
    for image_id, image in sorted(model.images.items()):
        if image.name not in names:
            continue
        if image.camera_id not in kept.cameras:
            kept.add_camera_with_trivial_rig(model.cameras[image.camera_id])
        copy = pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image_id)
        kept.add_image_with_trivial_frame(copy, image.cam_from_world())
    return kept
