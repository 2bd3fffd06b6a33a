"""Localization in a scene: every third photo is held out of the map and localized in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from d2net.errors import FormatError
from d2net.evaluation.localization_dataset import Limit, LocalizationDataset, Query
from d2net.evaluation.night import write_at_night
from d2net.geometry.alignment import spread_of
from d2net.io.colmap_model import read_model
from d2net.io.image_lists import photos_folder

EVERY = 3
"""In the order of the names, the second of each three photos is a query."""

LIMITS = (Limit("1 %, 1°", 1, 1), Limit("2 %, 2°", 2, 2), Limit("5 %, 5°", 5, 5))


def read_held_out(folder: Path, model_path: Path, night: Path | None) -> LocalizationDataset:
    """Read a scene: photos in `images` or in the folder itself, and a COLMAP model.

    Args:
        folder: of the scene.
        model_path: folder of the model. Its points, if it has any, are not used.
        night: where to write the queries as they would look at night; these are queries too. None
            for the day alone.

    Raises:
        FormatError: a photo of the model is missing, or there are fewer than three.
    """
    import pycolmap

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
    queries, true_poses, elsewhere = [], {}, {}
    for name in names[1::EVERY]:
        queries.append(Query(name, "day", camera=model.cameras[images[name].camera_id]))
        true_poses[name] = images[name].cam_from_world()
    if night is not None:
        for query in list(queries):
            dark = query._replace(name=f"night/{query.name}", group="night")
            elsewhere[dark.name] = night / f"{query.name}.png"
            write_at_night(photos / query.name, elsewhere[dark.name])
            queries.append(dark)
            true_poses[dark.name] = true_poses[query.name]
    without_points = pycolmap.Reconstruction()
    for image_id, image in sorted(model.images.items()):
        if image.name in images and image.name not in true_poses:
            if image.camera_id not in without_points.cameras:
                without_points.add_camera_with_trivial_rig(model.cameras[image.camera_id])
            copy = pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image_id)
            without_points.add_image_with_trivial_frame(copy, image.cam_from_world())
    centres = np.array([image.cam_from_world().inverse().translation for image in images.values()])
    return LocalizationDataset(
        name="",
        photos=photos,
        queries=queries,
        limits=LIMITS,
        threshold=None,
        model=without_points,
        map_pairs=None,
        true_poses=true_poses,
        unit="% of the spread of the cameras",
        unit_length=spread_of(centres) / 100,
        elsewhere=elsewhere,
    )
