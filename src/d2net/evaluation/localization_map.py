"""What queries are placed in: keypoints of the map's photos, and where they are in the world.

Matches and maps are kept beside the source's features, by the photos' content and all settings, so
that a run that was stopped goes on and a second one is quick.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from d2net.errors import D2NetError
from d2net.evaluation.localization_data import check_size
from d2net.evaluation.photos import Photos
from d2net.formats.atomic import locked, new_folder
from d2net.formats.models import read_model
from d2net.formats.pairs import Pair
from d2net.mapping.links import keypoint_places
from d2net.mapping.triangulate import triangulate

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]


def build_map(
    model: pycolmap.Reconstruction, photos: Photos, pairs: Sequence[Pair], max_error: float
) -> Callable[[str], Array]:
    """Triangulate a map's photos from their matches, or read what an earlier run made.

    Args:
        model: the photos' poses and cameras.
        photos: their features and matches.
        pairs: that are used, all matched.
        max_error: see `mapping.triangulate.triangulate`.

    Returns:
        Where a photo's keypoints are: name to N x 3, not a number where nothing is known.

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
    path = photos.kept("map", settings)
    built = _read(path)
    if built is None:
        keypoints = {}
        for name, camera in cameras.items():
            features = photos.features(name)
            check_size(name, features.image_size, camera)
            keypoints[name] = features.keypoints.numpy()
        with photos.matches() as matches:
            built = triangulate(
                model,
                keypoints,
                ((a, b, matches(a, b).indices.numpy()) for a, b in pairs),
                max_error=max_error,
            )
        with locked(path), new_folder(path) as folder:
            built.write_binary(folder)
    return keypoint_places(built)


def _known(image: pycolmap.Image, camera: pycolmap.Camera) -> list[Any]:
    """A photo's pose and camera, as JSON."""
    return [image.cam_from_world().matrix().tolist(), camera.model_name, camera.params.tolist()]


def _read(path: Path) -> pycolmap.Reconstruction | None:
    """A map that was kept; a damaged one is made anew."""
    if not path.exists():
        return None
    try:
        return read_model(path)
    except D2NetError:
        shutil.rmtree(path)
        return None
