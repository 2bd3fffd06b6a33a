"""From matches of a photo with a map's photos to pixels with a place in the world."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from d2net.features import Matches

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]
Rows = NDArray[np.int64]

_PHOTOS_KEPT = 2000
"""Photos of the map whose keypoints' places stay in memory (some 100 KB each)."""


def keypoint_places(model: pycolmap.Reconstruction) -> Callable[[str], Array]:
    """Where the keypoints of a model's photos are: name to N x 3, not a number where unknown."""
    images = {image.name: image for image in model.images.values()}

    @lru_cache(maxsize=_PHOTOS_KEPT)
    def places(name: str) -> Array:
        points = images[name].points2D
        found = np.full((len(points), 3), np.nan)
        for row, point in enumerate(points):
            if point.has_point3D():
                found[row] = model.points3D[point.point3D_id].xyz
        return found

    return places


def points_seen(model: pycolmap.Reconstruction) -> Callable[[str], frozenset[int]]:
    """Which points each of a model's photos sees, by their numbers."""
    images = {image.name: image for image in model.images.values()}

    @cache
    def seen(name: str) -> frozenset[int]:
        return frozenset(p.point3D_id for p in images[name].get_observation_points2D())

    return seen


@dataclass(frozen=True, eq=False)
class Links:
    """Keypoints of a photo with places in the world; a keypoint may have several.

    Attributes:
        rows: N, the keypoint.
        points: N x 3, the place.
        photos: N, which of the map's photos says so, by its number among those that were matched.
        partners: N, by which of its keypoints.
    """

    rows: Rows
    points: Array
    photos: Rows
    partners: Rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, keep: NDArray[Any]) -> Links:
        return Links(self.rows[keep], self.points[keep], self.photos[keep], self.partners[keep])


def link(matched: Iterable[tuple[Matches, Array]]) -> Links:
    """The links that matches with photos of a map give.

    What several photos say of a keypoint, that it is one point of the map, counts once.

    Args:
        matched: for each photo of the map the matches of the query with it, and where its
            keypoints are, N x 3, not a number where nothing is known.
    """
    found = []
    for number, (matches, places) in enumerate(matched):
        rows, partners = matches.indices.cpu().T.numpy()
        points = places[partners]
        numbers = np.full(len(rows), number)
        links = Links(rows, points, numbers, partners)
        found.append(links[np.isfinite(points).all(axis=1)])
    whole = Links(
        np.concatenate([np.empty(0, np.int64), *(links.rows for links in found)]),
        np.concatenate([np.empty((0, 3)), *(links.points for links in found)]),
        np.concatenate([np.empty(0, np.int64), *(links.photos for links in found)]),
        np.concatenate([np.empty(0, np.int64), *(links.partners for links in found)]),
    )
    _, first = np.unique(np.column_stack([whole.rows, whole.points]), axis=0, return_index=True)
    return whole[np.sort(first)]
