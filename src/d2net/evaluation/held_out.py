"""A scene of which every third photo is left out of the map, to be placed in it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError
from d2net.evaluation.localization_data import Limit, LocalizationData, Query
from d2net.evaluation.night import write_at_night
from d2net.evaluation.photos import Photos
from d2net.features import LazyFeatures
from d2net.geometry.alignment import spread_of
from d2net.io.colmap_model import read_model
from d2net.io.image_lists import photos_folder
from d2net.io.pairs import Pair
from d2net.mapping.localize import NUM_RETRIEVED
from d2net.matching.pair_selection import PairChoice, choose_pairs
from d2net.matching.retrieval import GlobalDescriptors

if TYPE_CHECKING:
    import pycolmap

EVERY = 3
"""Of the photos in the order of their names, the second of each three is a query."""

LIMITS = (Limit("1 %, 1°", 1, 1), Limit("2 %, 2°", 2, 2), Limit("5 %, 5°", 5, 5))


def held_out(folder: Path, path: Path, night: Path | None, seed: int) -> LocalizationData:
    """The scene in a folder: photos in `images`, or in it, and a COLMAP model of their cameras.

    Args:
        folder: of the scene.
        path: folder of the model; its points, if it has any, are not used.
        night: folder where the queries are written as they would look at night, to be placed, too.
        seed: of the nights.

    Raises:
        FormatError: a photo of the model is missing, or there are fewer than three.
    """
    photos = photos_folder(folder)
    model = read_model(path)
    images = {image.name: image for image in model.images.values() if image.has_pose}
    names = sorted(images)
    missing = [name for name in names if not (photos / name).is_file()]
    if missing or len(names) < EVERY:
        raise FormatError(
            f"the model {path} names the photo {missing[0]}, which is not in {photos}"
            if missing
            else f"{path} has {len(names)} photos with a pose, and a map and a query need {EVERY}"
        )
    left_out = names[1::EVERY]
    queries = [Query(name, "day", (), model.cameras[images[name].camera_id]) for name in left_out]
    truth = {name: images[name].cam_from_world() for name in left_out}
    elsewhere = {}
    if night is not None:
        for query in list(queries):
            dark = replace(query, name=f"night/{query.name}", group="night")
            elsewhere[dark.name] = night / f"{query.name}.png"
            write_at_night(photos / query.name, elsewhere[dark.name], seed)
            queries.append(dark)
            truth[dark.name] = truth[query.name]
    centres = np.array([image.cam_from_world().inverse().translation for image in images.values()])
    return LocalizationData(
        layout="scene",
        photos=photos,
        queries=queries,
        model=_only(model, set(names) - set(left_out)),
        limits=LIMITS,
        threshold=None,
        truth=truth,
        unit=spread_of(centres) / 100,
        elsewhere=elsewhere,
    )


def pairs_by_looks(data: LocalizationData, photos: Photos) -> list[Pair]:
    """Pairs of the map's photos, as `d2net reconstruct` chooses them by itself."""
    names = _names(data)
    return choose_pairs(PairChoice(), names, features=LazyFeatures(photos.features, names))


def queries_by_looks(data: LocalizationData, photos: Photos) -> list[Query]:
    """The queries with the photos of the map that look most like them, by their own features."""
    names = _names(data)
    described = GlobalDescriptors.build(LazyFeatures(photos.features, names))
    return [
        replace(
            query,
            candidates=tuple(
                name for name, _ in described.query(photos.features(query.name), NUM_RETRIEVED)
            )
            or tuple(names[:1]),  # without features it looks like no photo, and is placed nowhere
        )
        for query in data.queries
    ]


def _names(data: LocalizationData) -> list[str]:
    return [] if data.model is None else sorted(image.name for image in data.model.images.values())


def _only(model: pycolmap.Reconstruction, names: Collection[str]) -> pycolmap.Reconstruction:
    """Cameras and poses of some of a model's photos, without points."""
    import pycolmap

    kept = pycolmap.Reconstruction()
    for number, image in sorted(model.images.items()):
        if image.name not in names:
            continue
        if image.camera_id not in kept.cameras:
            kept.add_camera_with_trivial_rig(model.cameras[image.camera_id])
        alone = pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=number)
        kept.add_image_with_trivial_frame(alone, image.cam_from_world())
    return kept
