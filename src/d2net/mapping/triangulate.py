"""Triangulation of photos with known poses, as the localization benchmarks build their maps.

Poses and intrinsics stay as they are. Matches are verified by the known epipolar geometry, not by
an estimate from the matches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pycolmap
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.geometry.cameras import quiet_colmap
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS
from d2net.geometry.epipolar import pose_distance

Points = NDArray[np.floating[Any]]
Rows = NDArray[np.integer[Any]]


def triangulate(
    model: pycolmap.Reconstruction,
    keypoints: Mapping[str, Points],
    matches: Iterable[tuple[str, str, Rows]],
    *,
    max_error: float = 4.0,
    seed: int = 0,
) -> pycolmap.Reconstruction:
    """Triangulate matched keypoints of photos with known poses, with COLMAP.

    The points of `model` are not used. `keypoints` are those of every photo, by name: N x 2 (x, y)
    in pixels, the centre of the top-left pixel at (0, 0). `matches` are names of two photos and
    K x 2 rows of their keypoints. `max_error` is the largest reprojection error of a point in
    pixels (4 is COLMAP's), and the largest Sampson distance of a match.

    Returns:
        A new model with the same photos, poses and cameras. Row i of a photo's keypoints is its
        `points2D[i]`, moved by COLMAP's half pixel. Points may be observed by only two photos.
    """
    images = {image.name: image for image in model.images.values()}
    for name, image in images.items():
        if not image.has_pose:
            raise InputError(f"the model has no pose of the photo {name}")
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = options.triangulation.random_seed = seed
    options.num_threads = 1  # several threads order the points differently each time
    options.mapper.filter_max_reproj_error = max_error
    options.triangulation.complete_max_reproj_error = max_error
    options.triangulation.merge_max_reproj_error = max_error
    options.triangulation.ignore_two_view_tracks = False
    with quiet_colmap(), TemporaryDirectory() as folder:
        path = Path(folder, "database.db")
        with pycolmap.Database.open(path) as database, pycolmap.DatabaseTransaction(database):
            # Everything keeps the id that it has in the model.
            for camera in model.cameras.values():
                database.write_camera(camera, True)
            for rig in model.rigs.values():
                database.write_rig(rig, True)
            for frame in model.frames.values():
                database.write_frame(frame, True)
            for image in images.values():
                database.write_image(image, True)
                points = np.array(keypoints[image.name], dtype=np.float32)
                database.write_keypoints(image.image_id, COLMAP_FROM_PIXELS(points))
            for first, second, rows in matches:
                a, b = images[first], images[second]
                ends = keypoints[first][rows[:, 0]], keypoints[second][rows[:, 1]]
                b_from_a = b.cam_from_world() * a.cam_from_world().inverse()
                rotation, translation = b_from_a.rotation.matrix(), b_from_a.translation
                cameras = [model.cameras[image.camera_id] for image in (a, b)]
                near = pose_distance(rotation, translation, cameras, ends) <= max_error
                geometry = pycolmap.TwoViewGeometry()
                geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
                geometry.inlier_matches = rows[near].astype(np.uint32)
                database.write_two_view_geometry(a.image_id, b.image_id, geometry)
        return pycolmap.triangulate_points(
            pycolmap.Reconstruction(model), path, folder, folder, options=options
        )
