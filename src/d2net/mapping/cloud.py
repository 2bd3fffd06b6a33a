"""A reconstruction as arrays: what its pictures and figures are made from."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from d2net.geometry.coordinates import Size

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]

_NEIGHBOURS = 5  # the nearest points to a point, the first being itself
_WIDEST = 1.5  # half a photo's diagonal over its focal length, as drawn; fisheyes have more


@dataclass(frozen=True)
class View:
    """A registered photo.

    Attributes:
        name: as the reconstruction has it.
        size: (width, height) of its camera in pixels.
        centre: 3, position of the camera in the world.
        world_from_cam: 3 x 3 rotation; its columns point right, down and along the view.
        slope: 2, half the width and half the height of the photo over its focal length.
        points: rows of the cloud's points that it sees (K).
        places: K x 2 where it sees them, in pixels as COLMAP counts them (the centre of the
            top-left pixel is (0.5, 0.5)).
        error: mean reprojection error of these in pixels; not a number without points.
    """

    name: str
    size: Size
    centre: Array
    world_from_cam: Array
    slope: Array
    points: NDArray[np.int64]
    places: Array
    error: float


@dataclass(frozen=True)
class Cloud:
    """Points and photos of a reconstruction, in an order that depends on ids and names only.

    Attributes:
        points: N x 3 in the world.
        colours: N x 3 RGB as the reconstruction has them; black where it has none.
        track_lengths: N, number of observations of each point.
        errors: N, mean reprojection error of each point in pixels, measured anew: those stored in
            a model may be older than its poses. Not a number where no photo can see the point.
        views: the registered photos by name.
    """

    points: Array
    colours: NDArray[np.uint8]
    track_lengths: NDArray[np.int64]
    errors: Array
    views: tuple[View, ...]

    @property
    def centres(self) -> Array:
        """M x 3 positions of the cameras."""
        return np.array([view.centre for view in self.views]).reshape(-1, 3)

    @cached_property
    def gaps(self) -> Array:
        """N distances from each point to its fourth neighbour; none if there are too few points."""
        if len(self.points) < _NEIGHBOURS:
            return np.zeros(0)
        distances = np.asarray(cKDTree(self.points).query(self.points, _NEIGHBOURS)[0])
        return np.asarray(distances[:, -1])

    @property
    def num_observations(self) -> int:
        """How often a photo sees a point."""
        return int(self.track_lengths.sum())


def read_cloud(reconstruction: pycolmap.Reconstruction) -> Cloud:
    """The arrays of a reconstruction, which is left as it is. Photos without a pose are left out.

    A point's error is the mean over its observations, and a photo's over its points.
    """
    points3d = [(i, reconstruction.points3D[i]) for i in sorted(reconstruction.points3D)]
    rows = {point_id: row for row, (point_id, _) in enumerate(points3d)}
    points = np.array([point.xyz for _, point in points3d], np.float64).reshape(-1, 3)
    sums, counts = np.zeros(len(points)), np.zeros(len(points))
    views = []
    posed = [image for image in reconstruction.images.values() if image.has_pose]
    for image in sorted(posed, key=lambda image: image.name):
        view, errors = _view(image, rows, points)
        seen = np.isfinite(errors)
        np.add.at(sums, view.points[seen], errors[seen])
        np.add.at(counts, view.points[seen], 1)
        views.append(view)
    return Cloud(
        points,
        np.array([point.color for _, point in points3d], np.uint8).reshape(-1, 3),
        np.array([point.track.length() for _, point in points3d], np.int64),
        np.divide(sums, counts, out=np.full(len(points), np.nan), where=counts > 0),
        tuple(views),
    )


def _view(image: pycolmap.Image, rows: dict[int, int], points: Array) -> tuple[View, Array]:
    """A photo, and the reprojection error of each point that it sees."""
    observed = image.get_observation_points2D()
    seen = np.array([rows[point.point3D_id] for point in observed], np.int64)
    places = np.array([point.xy for point in observed], np.float64).reshape(-1, 2)
    cam_from_world = image.cam_from_world().matrix()
    rotation, translation = cam_from_world[:, :3], cam_from_world[:, 3]
    camera = image.camera
    assert camera is not None  # noqa: S101 (a reconstruction's images have theirs)
    projected = camera.img_from_cam(points[seen] @ rotation.T + translation)
    errors = np.linalg.norm(projected - places, axis=1)
    view = View(
        image.name,
        (camera.width, camera.height),
        -rotation.T @ translation,
        rotation.T,
        _slope(camera),
        seen,
        places,
        mean(errors),
    )
    return view, errors


def placed(name: str, camera: pycolmap.Camera, cam_from_world: pycolmap.Rigid3d) -> View:
    """A photo that is not in the reconstruction, where its pose says; it sees no points of it."""
    rotation = cam_from_world.matrix()[:, :3]
    return View(
        name,
        (camera.width, camera.height),
        -rotation.T @ cam_from_world.translation,
        rotation.T,
        _slope(camera),
        np.zeros(0, np.int64),
        np.zeros((0, 2)),
        float("nan"),
    )


def mean(values: Array) -> float:
    """The mean of the finite values; not a number if there are none."""
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _slope(camera: pycolmap.Camera) -> Array:
    """The extent of the photo on the plane z = 1, as far as it is good for a picture."""
    focal = camera.mean_focal_length() if len(camera.focal_length_idxs()) else 1e-9
    slope = np.array([camera.width, camera.height]) / 2 / max(focal, 1e-9)
    return np.asarray(slope * min(1.0, _WIDEST / max(float(np.linalg.norm(slope)), 1e-9)))
