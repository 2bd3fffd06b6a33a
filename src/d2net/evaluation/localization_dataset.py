"""What the datasets of visual localization have in common: queries, a map, and limits of errors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.errors import FormatError
from d2net.evaluation.cache import CachedMatches, cached_model
from d2net.evaluation.results import Array
from d2net.geometry.cameras import check_photo_size
from d2net.io.pairs import Pair
from d2net.mapping.query_pose import covisible_groups, keypoint_points, observed_points
from d2net.mapping.triangulate import triangulate

if TYPE_CHECKING:
    import pycolmap

    from d2net.geometry.coordinates import Size


_IPHONE7_FOCAL = 28 / 36
"""Focal length of InLoc's queries in units of the longer side: 28 mm on a film of 36 mm."""


@dataclass(frozen=True)
class Limit:
    """Largest errors of a pose that counts: in the dataset's unit of length, and in degrees."""

    name: str
    position: float
    rotation: float


@dataclass(frozen=True)
class Query:
    """A photo to be localized.

    Attributes:
        name: its path relative to the folder of photos.
        group: "day" or "night", or the floor of a building.
        candidates: names of the photos of the map that it is matched with.
        known_camera: COLMAP's camera; None for InLoc's telephone.
    """

    name: str
    group: str
    candidates: tuple[str, ...] = ()
    known_camera: pycolmap.Camera | None = None

    def camera(self, size: Size) -> pycolmap.Camera:
        """The camera of the photo, which has this (width, height).

        Raises:
            InputError: the known camera is of another size.
        """
        import pycolmap

        if self.known_camera is not None:
            check_photo_size(self.name, size, self.known_camera)
            return self.known_camera
        width, height = size
        params = [_IPHONE7_FOCAL * max(size), width / 2, height / 2]
        return pycolmap.Camera(model="SIMPLE_PINHOLE", width=width, height=height, params=params)


@dataclass(frozen=True)
class QueryMap:
    """A map in which queries are localized.

    Attributes:
        points_of: 3D points of the keypoints of one of its photos, by the photo's name: N x 3, NaN
            where a keypoint has no point.
        groups: splits names of photos into groups that see the same part of the map.
    """

    points_of: Callable[[str], Array]
    groups: Callable[[tuple[str, ...]], Sequence[tuple[str, ...]]]


@dataclass(frozen=True)
class LocalizationDataset(ABC):
    """Queries, and what a map is built from.

    Attributes:
        name: of the benchmark, with its version; "" for other photos.
        photos: the folder that names of photos are relative to.
        queries: in the order of their lists.
        limits: by which the benchmark counts.
        threshold: usual largest reprojection error of an inlier in pixels; None to choose it by
            the uncertainty of a query's keypoints, as `d2net localize` does.
        true_poses: `cam_from_world` of the queries, where the dataset has them.
        unit: of positions in figures and limits.
        unit_length: of that unit, in units of the map.
        elsewhere: files of photos that are not in the folder, by name.
    """

    name: str
    photos: Path
    queries: Sequence[Query]
    limits: Sequence[Limit]
    threshold: float | None
    true_poses: Mapping[str, pycolmap.Rigid3d] | None = None
    unit: str = "m"
    unit_length: float = 1.0
    elsewhere: Mapping[str, Path] = field(default_factory=dict)

    @abstractmethod
    def choose_pairs(self, photos: CachedMatches) -> tuple[list[Query], list[Pair]]:
        """The queries with their candidates, and the pairs of photos that the map is built from."""

    @abstractmethod
    def build_map(self, photos: CachedMatches, pairs: Sequence[Pair]) -> QueryMap:
        """The map, built from the matches of these pairs."""


def check_photos_exist(folder: Path, names: Iterable[str]) -> None:
    """Raise FormatError if a photo is not in the folder."""
    missing = [name for name in dict.fromkeys(names) if not (folder / name).is_file()]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise FormatError(f"{folder} lacks the photo {missing[0]}{more}")


def triangulated_map(
    model: pycolmap.Reconstruction, photos: CachedMatches, pairs: Sequence[Pair], max_error: float
) -> QueryMap:
    """Triangulate the matches of photos with known poses, or read what an earlier run triangulated.

    Args:
        model: poses and cameras of the photos.
        photos: their features and matches.
        pairs: of photos that have been matched.
        max_error: see `mapping.triangulate.triangulate`.

    Raises:
        InputError: a photo has another size than its camera.
    """
    cameras = {image.name: model.cameras[image.camera_id] for image in model.images.values()}
    poses = {image.name: image.cam_from_world() for image in model.images.values()}
    inputs = {
        "photos": [
            [
                photos.key(name),
                poses[name].matrix().tolist(),
                camera.model_name,
                camera.params.tolist(),
            ]
            for name, camera in cameras.items()
        ],
        "pairs": pairs,
        "max_error": max_error,
    }

    def compute() -> pycolmap.Reconstruction:
        keypoints = {}
        for name, camera in cameras.items():
            features = photos.features(name)
            check_photo_size(name, features.image_size, camera)
            keypoints[name] = features.keypoints.numpy()
        with photos.open() as matches:
            matched = ((a, b, matches(a, b).indices.numpy()) for a, b in pairs)
            return triangulate(model, keypoints, matched, max_error=max_error)

    with_points = cached_model(photos.cache_path("map", inputs), compute).model or model
    groups = partial(covisible_groups, observed=observed_points(with_points))
    return QueryMap(keypoint_points(with_points), groups)
