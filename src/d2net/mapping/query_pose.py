"""The pose of a query photo from its matches with photos of a map.

The query's verdict is decided in `localize._verdict`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import pycolmap
from numpy.typing import NDArray
from scipy.cluster.hierarchy import DisjointSet

from d2net.features import Features, Matches
from d2net.geometry.absolute_pose import AbsolutePose, AbsolutePoseOptions, absolute_pose
from d2net.geometry.coordinates import Array

Rows = NDArray[np.int64]

SIGNIFICANT = 10.0  # significance above which a pose is no accident
_MIN_SHARED_POINTS = 10  # two photos of a map that see this many common points are covisible
_CONTRADICTION = 1.02  # gain in inliers by another focal length; docs/experiments.md, Maps
_CACHED_PHOTOS = 2000  # photos of a map whose 3D points stay in memory, about 100 KB each


def keypoint_points(reconstruction: pycolmap.Reconstruction) -> Callable[[str], Array]:
    """A function from a photo's name to its keypoints' 3D points (N x 3, NaN where unknown)."""
    images = {image.name: image for image in reconstruction.images.values()}

    @lru_cache(maxsize=_CACHED_PHOTOS)
    def points_of(name: str) -> Array:
        keypoints = images[name].points2D
        found = np.full((len(keypoints), 3), np.nan)
        for row, keypoint in enumerate(keypoints):
            if keypoint.has_point3D():
                found[row] = reconstruction.points3D[keypoint.point3D_id].xyz
        return found

    return points_of


def observed_points(reconstruction: pycolmap.Reconstruction) -> Callable[[str], frozenset[int]]:
    """A function from a photo's name to the ids of the 3D points that it observes."""
    images = {image.name: image for image in reconstruction.images.values()}

    @cache
    def observed(name: str) -> frozenset[int]:
        return frozenset(p.point3D_id for p in images[name].get_observation_points2D())

    return observed


@dataclass(frozen=True, eq=False)
class Correspondences:
    """2D-3D correspondences of a query's keypoints; a keypoint may have several.

    Attributes:
        rows: N, row of the query's keypoint.
        points: N x 3, 3D point in the map's frame.
        photos: N, index of the map photo among those matched.
        map_rows: N, row of the matched keypoint in that photo.
    """

    rows: Rows
    points: Array
    photos: Rows
    map_rows: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, keep: NDArray[Any]) -> Correspondences:
        return Correspondences(
            self.rows[keep], self.points[keep], self.photos[keep], self.map_rows[keep]
        )

    @classmethod
    def from_matches(cls, matched: Iterable[tuple[Matches, Array]]) -> Correspondences:
        """Correspondences from matches with map photos and the 3D points of their keypoints.

        Points are N x 3, NaN where unknown. Equal correspondences count once.
        """
        rows, points = [np.empty((0, 3), np.int64)], [np.empty((0, 3))]
        for photo, (matches, known) in enumerate(matched):
            indices = matches.indices.cpu().numpy()
            matched_points = known[indices[:, 1]]
            usable = np.isfinite(matched_points).all(axis=1)
            rows.append(np.insert(indices[usable], 1, photo, axis=1))
            points.append(matched_points[usable])
        query_row, photos, map_row = np.concatenate(rows).T
        every = cls(query_row, np.concatenate(points), photos, map_row)
        distinct = np.column_stack([every.rows, every.points])
        _, first = np.unique(distinct, axis=0, return_index=True)
        return every[np.sort(first)]


@dataclass(frozen=True, eq=False)
class QueryPose:
    """A query's correspondences with a map, and the pose that they agree on.

    Attributes:
        photos: names of the map photos that gave the correspondences.
        correspondences: between the query's keypoints and the map's points.
        pose: with camera, inliers and covariance; None if there is no pose.
    """

    photos: tuple[str, ...]
    correspondences: Correspondences
    pose: AbsolutePose | None

    @property
    def inliers(self) -> NDArray[np.bool_]:
        """N, marks the correspondences that agree with the pose."""
        if self.pose is None:
            return np.zeros(len(self.correspondences), np.bool_)
        return self.pose.inliers

    @property
    def num_inliers(self) -> int:
        """Number of keypoints that agree with the pose."""
        return len(np.unique(self.correspondences.rows[self.inliers]))

    @property
    def significance(self) -> float:
        """Minus log10 of the probability that the pose is an accident; 0 without a pose."""
        return 0.0 if self.pose is None else self.pose.significance

    @property
    def rank(self) -> tuple[float, int]:
        """Sort key: significant poses by inliers, then the others by significance."""
        return min(self.significance, SIGNIFICANT), self.num_inliers

    @property
    def best_photo(self) -> str | None:
        """The map photo with the most inliers; None without inliers."""
        photos = self.correspondences.photos[self.inliers]
        return self.photos[int(np.bincount(photos).argmax())] if len(photos) else None


def estimate_query_pose(
    features: Features,
    camera: pycolmap.Camera,
    options: AbsolutePoseOptions,
    groups: Iterable[tuple[str, ...]],
    match: Callable[[str], Matches],
    points_of: Callable[[str], Array],
    *,
    from_exif: bool = False,
) -> QueryPose:
    """Estimate a query's pose once for each group of map photos, and keep the best.

    The photos of a group are covisible: photos of other parts of the scene would only add outliers.
    `points_of` gives the 3D points of a map photo's keypoints, see `keypoint_points`. A focal
    length `from_exif` is estimated if that gives clearly more inliers: the photo may be a part.
    """
    best = QueryPose((), Correspondences.from_matches([]), None)
    for photos in groups:
        found = Correspondences.from_matches((match(name), points_of(name)) for name in photos)
        pixels = features.keypoints.double().cpu().numpy()[found.rows]
        pose = absolute_pose(pixels, found.points, camera, options)
        if from_exif:
            free = replace(options, estimate_focal_length=True)
            other = absolute_pose(pixels, found.points, camera, free)
            limit = 0 if pose is None else _CONTRADICTION * pose.inliers.sum()
            pose = other if other is not None and other.inliers.sum() > limit else pose
        candidate = QueryPose(photos, found, pose)
        if not best.photos or candidate.rank > best.rank:
            best = candidate
    return best


def covisible_groups(
    photos: Sequence[str], observed: Callable[[str], Set[int]]
) -> list[tuple[str, ...]]:
    """The connected components of photos with common points (Sarlin et al., CVPR 2019, section 4).

    `observed` gives the ids of a photo's points, see `observed_points`.
    """
    groups = DisjointSet(photos)
    for a, b in combinations(photos, 2):
        if not groups.connected(a, b) and len(observed(a) & observed(b)) >= _MIN_SHARED_POINTS:
            groups.merge(a, b)
    return [tuple(sorted(group, key=photos.index)) for group in groups.subsets()]
