"""Points of photos whose poses are known: the way the localization benchmarks build their maps.

Poses and intrinsics stay as they are. What makes the engine trust a match is the geometry that is
known already, not one that is estimated from the matches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.geometry.cameras import quiet_colmap, rays
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS
from d2net.geometry.epipolar import (
    essential_from_pose,
    fundamental_from_essential,
    sampson_distance,
)

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]
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
    """Triangulate matched keypoints of photos with known poses, by COLMAP.

    Args:
        model: photos with poses and cameras; its points, if it has any, are not used.
        keypoints: of every photo of the model, by name: N x 2 (x, y) in pixels, the centre of the
            top-left pixel at (0, 0).
        matches: names of two photos and K x 2 rows of their keypoints. Those whose distance from
            the known epipolar geometry is larger than `max_error` are left out.
        max_error: largest reprojection error of a point in pixels (4 is COLMAP's).
        seed: of random samples.

    Returns:
        A new model with the same photos, poses and cameras. Row i of a photo's keypoints is its
        `points2D[i]`, moved by COLMAP's half pixel. Points have no colour; those seen in two
        photos only are among them, unless COLMAP holds their rays for too parallel (1.5 degrees).

    Raises:
        InputError: a photo of the model has no pose or no keypoints, or matches name a photo that
            the model does not have.
    """
    import pycolmap

    images = {image.name: image for image in model.images.values()}
    _check(images, keypoints)
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed = seed
    options.num_threads = 1  # several give points in another order each time
    options.mapper.filter_max_reproj_error = max_error
    options.triangulation.complete_max_reproj_error = max_error
    options.triangulation.merge_max_reproj_error = max_error
    options.triangulation.ignore_two_view_tracks = False
    options.triangulation.random_seed = seed
    with quiet_colmap(), TemporaryDirectory() as folder:
        path = Path(folder, "database.db")
        with pycolmap.Database.open(path) as database:
            _write_photos(database, model, keypoints)
            with pycolmap.DatabaseTransaction(database):
                for first, second, rows in matches:
                    _check_name(first, second, images)
                    a, b = images[first], images[second]
                    points = keypoints[first][rows[:, 0]], keypoints[second][rows[:, 1]]
                    right = _distances(model, a, b, *points) <= max_error
                    _write_pair(database, a.image_id, b.image_id, rows[right])
        return pycolmap.triangulate_points(
            pycolmap.Reconstruction(model), path, folder, folder, options=options
        )


def _check(images: Mapping[str, pycolmap.Image], keypoints: Mapping[str, Points]) -> None:
    for name, image in images.items():
        if not image.has_pose:
            raise InputError(f"the model has no pose of the photo {name}")
        if name not in keypoints:
            raise InputError(f"the model holds the photo {name}, of which there are no keypoints")


def _check_name(first: str, second: str, images: Mapping[str, pycolmap.Image]) -> None:
    for name in (first, second):
        if name not in images:
            raise InputError(f"matches name the photo {name}, which the model does not hold")


def _write_photos(
    database: pycolmap.Database,
    model: pycolmap.Reconstruction,
    keypoints: Mapping[str, Points],
) -> None:
    """With the model's own numbers of cameras, rigs, frames and photos."""
    import pycolmap

    with pycolmap.DatabaseTransaction(database):
        for camera in model.cameras.values():
            database.write_camera(camera, True)
        for rig in model.rigs.values():
            database.write_rig(rig, True)
        for frame in model.frames.values():
            database.write_frame(frame, True)
        for image in model.images.values():
            database.write_image(image, True)
            points = torch.from_numpy(np.array(keypoints[image.name], dtype=np.float32))
            database.write_keypoints(image.image_id, COLMAP_FROM_PIXELS(points).numpy())


def _distances(
    model: pycolmap.Reconstruction, a: pycolmap.Image, b: pycolmap.Image, *points: Points
) -> Array:
    """Of matched points from the known epipolar geometry, in pixels (Sampson distance)."""
    cameras = [model.cameras[image.camera_id] for image in (a, b)]
    focal = [camera.mean_focal_length() for camera in cameras]
    ideal = [
        rays(camera, np.asarray(p, dtype=np.float64)) * f
        for camera, p, f in zip(cameras, points, focal, strict=True)
    ]
    b_from_a = b.cam_from_world() * a.cam_from_world().inverse()
    E = essential_from_pose(b_from_a.rotation.matrix(), b_from_a.translation)
    F = fundamental_from_essential(E, *(np.diag([f, f, 1.0]) for f in focal))
    return sampson_distance(F, *ideal)


def _write_pair(database: pycolmap.Database, first: int, second: int, rows: Rows) -> None:
    import pycolmap

    geometry = pycolmap.TwoViewGeometry()
    geometry.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
    geometry.inlier_matches = rows.astype(np.uint32)
    database.write_two_view_geometry(first, second, geometry)
