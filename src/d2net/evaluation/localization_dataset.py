"""What the datasets of visual localization have in common: queries, a map, and limits of errors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from d2net.errors import FormatError
from d2net.evaluation.cache import CachedPhotos
from d2net.evaluation.results import Array
from d2net.geometry.cameras import check_photo_size
from d2net.io.pairs import Pair, read_pairs
from d2net.mapping.query_pose import covisible_groups, keypoint_points, observed_points
from d2net.mapping.triangulate import triangulate

if TYPE_CHECKING:
    import pycolmap


class Limit(NamedTuple):
    """Largest errors of a pose that counts: in the dataset's unit of length, and in degrees."""

    name: str
    position: float
    rotation: float


class Query(NamedTuple):
    """A photo to be localized.

    Attributes:
        name: its path relative to the folder of photos.
        group: "day" or "night", or the floor of a building.
        candidates: names of the photos of the map that it is matched with.
        camera: COLMAP's; None for InLoc's telephone.
    """

    name: str
    group: str
    candidates: tuple[str, ...] = ()
    camera: pycolmap.Camera | None = None


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
class LocalizationDataset:
    """Queries, and what a map is built from.

    Attributes:
        name: of the benchmark; "" for other photos.
        photos: the folder that names of photos are relative to.
        queries: in the order of their lists.
        limits: by which the benchmark counts.
        threshold: usual largest reprojection error of an inlier in pixels; None to choose it by
            the uncertainty of a query's keypoints, as `d2net localize` does.
        model: poses and cameras of the map's photos; None for InLoc's scans.
        map_pairs: pairs of the map's photos. None: these and the candidates of queries are chosen
            by the evaluated features, as `d2net reconstruct` and `d2net localize` do.
        true_poses: `cam_from_world` of the queries, where the dataset has them.
        unit: of positions in figures and limits.
        unit_length: of that unit, in units of the map.
        elsewhere: files of photos that are not in the folder, by name.
    """

    name: str
    photos: Path
    queries: list[Query]
    limits: Sequence[Limit]
    threshold: float | None
    model: pycolmap.Reconstruction | None
    map_pairs: list[Pair] | None
    true_poses: Mapping[str, pycolmap.Rigid3d] | None = None
    unit: str = "m"
    unit_length: float = 1.0
    elsewhere: Mapping[str, Path] = field(default_factory=dict)

    def files(self) -> dict[str, Path]:
        """The files of all photos by name.

        Raises:
            FormatError: one is missing.
        """
        names = {image.name for image in self.model.images.values()} if self.model else set()
        for query in self.queries:
            names.update((query.name, *query.candidates))
        files = {name: self.elsewhere.get(name, self.photos / name) for name in sorted(names)}
        missing = [name for name, path in files.items() if not path.is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FormatError(f"{self.photos} lacks the photo {missing[0]}{more}")
        return files


def read_candidates(pair_lists: Iterable[Path]) -> dict[str, tuple[str, ...]]:
    """Photos of the map by query, in the order of the lists."""
    candidates: dict[str, dict[str, None]] = {}
    for path in pair_lists:
        for query, photo in read_pairs(path):
            candidates.setdefault(query, {})[photo] = None
    return {query: tuple(photos) for query, photos in candidates.items()}


def triangulated_map(
    model: pycolmap.Reconstruction, photos: CachedPhotos, pairs: Sequence[Pair], max_error: float
) -> QueryMap:
    """Triangulate the matches of photos with known poses.

    Raises:
        InputError: a photo has another size than its camera.
    """
    keypoints = {}
    for image in model.images.values():
        features = photos.features(image.name)
        check_photo_size(image.name, features.image_size, image.camera)
        keypoints[image.name] = features.keypoints.numpy()
    matches = ((a, b, photos.matches(a, b).indices.numpy()) for a, b in pairs)
    with_points = triangulate(model, keypoints, matches, max_error=max_error)
    groups = partial(covisible_groups, observed=observed_points(with_points))
    return QueryMap(keypoint_points(with_points), groups)
