"""A reconstruction as arrays, from which its figures and pictures are made."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
import pycolmap
from numpy.typing import NDArray

from d2net.geometry.coordinates import Array, Size

_MAX_ERROR = 1e6  # pixels; COLMAP gives points behind a camera its largest number
_MAX_TAN_HALF_FOV = 1.5  # over half the diagonal, for drawing; fisheye lenses have more


@dataclass(frozen=True)
class PosedPhoto:
    """A photo whose pose is known.

    Attributes:
        centre: 3, position of the camera in the world.
        world_from_cam: 3 x 3 rotation; its columns point right, down and forward.
        tan_half_fov: 2, tangents of half the horizontal and half the vertical field of view.
        point_rows: K, rows of the cloud's points that it observes.
        pixels: K x 2 (x, y) of these observations, in COLMAP's pixels.
        error: mean reprojection error of these points in all photos, in pixels; NaN without points.
    """

    name: str
    size: Size
    centre: Array
    world_from_cam: Array
    tan_half_fov: Array
    point_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    pixels: Array = field(default_factory=lambda: np.zeros((0, 2)))
    error: float = math.nan


@dataclass(frozen=True)
class Cloud:
    """Points and registered photos of a reconstruction, ordered by point id and by photo name.

    Attributes:
        points: N x 3 in the world.
        colours: N x 3 RGB; black where unknown.
        track_lengths: N, number of photos that observe each point.
        errors: N, mean reprojection error of each point in pixels; NaN behind a camera.
    """

    points: Array
    colours: NDArray[np.uint8]
    track_lengths: NDArray[np.int64]
    errors: Array
    photos: tuple[PosedPhoto, ...]

    @property
    def centres(self) -> Array:
        """M x 3, positions of the cameras."""
        return np.array([photo.centre for photo in self.photos]).reshape(-1, 3)


def read_cloud(reconstruction: pycolmap.Reconstruction) -> Cloud:
    """Read the points and the registered photos of a reconstruction."""
    reconstruction.update_point_3d_errors()  # stored errors may be older than the poses
    points3D = sorted(reconstruction.points3D.items())
    rows = {point_id: row for row, (point_id, _) in enumerate(points3D)}
    errors = np.array([point.error for _, point in points3D], np.float64)
    errors[~(errors < _MAX_ERROR)] = np.nan
    photos = []
    posed = [image for image in reconstruction.images.values() if image.has_pose]
    for image in sorted(posed, key=lambda image: image.name):
        observed = image.get_observation_points2D()
        seen = np.array([rows[point.point3D_id] for point in observed], np.int64)
        pixels = np.array([point.xy for point in observed], np.float64).reshape(-1, 2)
        camera, pose = reconstruction.cameras[image.camera_id], image.cam_from_world()
        photo = posed_photo(image.name, camera, pose)
        photos.append(replace(photo, point_rows=seen, pixels=pixels, error=mean(errors[seen])))
    return Cloud(
        np.array([point.xyz for _, point in points3D], np.float64).reshape(-1, 3),
        np.array([point.color for _, point in points3D], np.uint8).reshape(-1, 3),
        np.array([point.track.length() for _, point in points3D], np.int64),
        errors,
        tuple(photos),
    )


def posed_photo(name: str, camera: pycolmap.Camera, cam_from_world: pycolmap.Rigid3d) -> PosedPhoto:
    """A photo with this pose that observes no points."""
    world_from_cam = cam_from_world.inverse()
    tan = np.array([camera.width, camera.height]) / 2 / max(camera.mean_focal_length(), 1e-9)
    tan *= min(1.0, _MAX_TAN_HALF_FOV / max(float(np.linalg.norm(tan)), 1e-9))
    return PosedPhoto(
        name,
        (camera.width, camera.height),
        np.asarray(world_from_cam.translation),
        np.asarray(world_from_cam.rotation.matrix()),
        tan,
    )


def mean(values: Array) -> float:
    """The mean of the finite values; NaN if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan
