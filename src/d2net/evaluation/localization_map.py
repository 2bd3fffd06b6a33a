"""What queries are placed in: keypoints of the map's photos, and where they are in the world.

Matches and maps are kept beside the source's features, by the photos' content and all settings, so
that a run that was stopped goes on and a second one is quick.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.evaluation.held_out import pairs_by_looks
from d2net.evaluation.inloc import scan_places
from d2net.evaluation.kept_models import Made, made_once
from d2net.evaluation.localization_data import LocalizationData
from d2net.evaluation.photos import Photos
from d2net.geometry.cameras import check_photo_size
from d2net.io.pairs import Pair
from d2net.mapping.query_pose import covisible_groups, keypoint_points, observed_points
from d2net.mapping.settings import MappingSettings
from d2net.mapping.triangulate import triangulate
from d2net.matching.pairs import from_covisibility

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]


MAX_ERROR = 4.0
"""Largest reprojection error in pixels of a benchmark's triangulated point (COLMAP's, hloc's)."""


def map_pairs(data: LocalizationData, photos: Photos, num_covisible: int) -> list[Pair]:
    """Pairs of the map's photos; none for scans."""
    if data.model is None:
        return []
    if data.layout == "scene":
        return pairs_by_looks(data, photos)
    pairs = from_covisibility(data.model, num_covisible)
    if not pairs:
        raise InputError(
            "the model has no points that two photos see, by which photos of the map are paired"
        )
    return pairs


def largest_error(data: LocalizationData, photos: Photos) -> float:
    """Largest reprojection error of a triangulated point: of a scene's, as when mapping."""
    if data.layout != "scene" or data.model is None:
        return MAX_ERROR
    features = (photos.features(image.name) for image in data.model.images.values())
    sigmas = [float(found.uncertainty.median()) for found in features if len(found)]
    return MappingSettings().thresholds(sigmas).reprojection


@dataclass(frozen=True)
class QueryMap:
    """What queries are placed in.

    Attributes:
        places: where the keypoints of its photos are, by name.
        groups: some of its photos by the place they show.
    """

    places: Callable[[str], Array]
    groups: Callable[[tuple[str, ...]], Sequence[tuple[str, ...]]]


def open_map(
    data: LocalizationData, photos: Photos, pairs: Sequence[Pair], max_error: float
) -> QueryMap:
    """Triangulate the map of a dataset, or say how its scans are looked up."""
    if data.model is not None:
        built = build_map(data.model, photos, pairs, max_error).model or data.model
        groups = partial(covisible_groups, observed=observed_points(built))
        return QueryMap(keypoint_points(built), groups)

    @cache
    def places(name: str) -> Array:
        return scan_places(data.photos, name, photos.features(name))

    return QueryMap(places, lambda names: [names])  # scans have no points in common


def build_map(
    model: pycolmap.Reconstruction, photos: Photos, pairs: Sequence[Pair], max_error: float
) -> Made:
    """Triangulate a map's photos from their matches, or read what an earlier run made.

    Args:
        model: the photos' poses and cameras.
        photos: their features and matches.
        pairs: that are used, all matched.
        max_error: see `mapping.triangulate.triangulate`.

    Returns:
        The model with points; row i of a photo's keypoints is its `points2D[i]`.

    Raises:
        FormatError: a photo is not of its camera's size.
    """
    cameras = {image.name: model.cameras[image.camera_id] for image in model.images.values()}
    settings = {
        "photos": [
            [photos.key(image.name), *_known(image, cameras[image.name])]
            for image in model.images.values()
        ],
        "pairs": pairs,
        "max_error": max_error,
    }

    def make() -> pycolmap.Reconstruction:
        keypoints = {}
        for name, camera in cameras.items():
            features = photos.features(name)
            check_photo_size(name, features.image_size, camera)
            keypoints[name] = features.keypoints.numpy()
        with photos.matches() as matches:
            return triangulate(
                model,
                keypoints,
                ((a, b, matches(a, b).indices.numpy()) for a, b in pairs),
                max_error=max_error,
            )

    return made_once(photos.kept("map", settings), make)


def _known(image: pycolmap.Image, camera: pycolmap.Camera) -> list[Any]:
    """A photo's pose and camera, as JSON."""
    return [image.cam_from_world().matrix().tolist(), camera.model_name, camera.params.tolist()]
