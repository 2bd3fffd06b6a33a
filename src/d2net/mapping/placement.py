"""Where a photo belongs in a map: its matches with the map's photos, and the pose they agree on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from d2net.features import Features, Matches
from d2net.geometry.absolute import AbsolutePose, AbsolutePoseOptions, absolute_pose
from d2net.mapping.correspondences import Array, Links, link

if TYPE_CHECKING:
    import pycolmap

_SHARED_POINTS = 10  # photos of a map that see so many of the same points show one place


@dataclass(frozen=True, eq=False)
class Placement:
    """A photo in a map.

    Attributes:
        photos: of the map, which were matched, in the order that `links.photos` counts.
        links: the photo's keypoints with places in the map.
        pose: with camera, inliers and uncertainty; None if no pose agrees with the links.
    """

    photos: tuple[str, ...]
    links: Links
    pose: AbsolutePose | None

    @property
    def inliers(self) -> NDArray[np.bool_]:
        """Marks of the links that agree with the pose."""
        return np.zeros(len(self.links), np.bool_) if self.pose is None else self.pose.inliers

    @property
    def num_inliers(self) -> int:
        """How many keypoints agree with the pose."""
        return len(np.unique(self.links.rows[self.inliers]))

    @property
    def best_photo(self) -> str | None:
        """The photo of the map with which most inliers are shared; None without inliers."""
        counts = np.bincount(self.links.photos[self.inliers], minlength=len(self.photos) or 1)
        return self.photos[int(counts.argmax())] if counts.any() else None


def place(
    features: Features,
    camera: pycolmap.Camera,
    options: AbsolutePoseOptions,
    groups: Iterable[tuple[str, ...]],
    matches: Callable[[str], Matches],
    places: Callable[[str], Array],
) -> Placement:
    """Place a photo by matches with photos of a map.

    Args:
        features: of the photo.
        camera: of the photo.
        options: of the pose.
        groups: photos of the map, those that show one place together. They are tried apart, and
            where most keypoints agree, there it is.
        matches: of the photo with one of the map's.
        places: where the keypoints of one of the map's photos are, N x 3, not a number where
            nothing is known.
    """
    best = Placement((), link([]), None)
    for photos in groups:
        links = link((matches(name), places(name)) for name in photos)
        pixels = features.keypoints.double().cpu().numpy()[links.rows]
        found = Placement(photos, links, absolute_pose(pixels, links.points, camera, options))
        if not best.photos or found.num_inliers > best.num_inliers:
            best = found
    return best


def covisible(photos: Sequence[str], seen: Callable[[str], Set[int]]) -> list[tuple[str, ...]]:
    """Photos of a map by the place they show (Sarlin et al., CVPR 2019, section 4).

    Args:
        photos: those that look most alike first.
        seen: which points of the map each sees.

    Returns:
        Groups whose photos see enough of the same points, directly or through others.
    """
    left, groups = list(photos), []
    while left:
        group = [left.pop(0)]
        for member in group:  # grows while it is gone through
            points = seen(member)
            near = [name for name in left if len(points & seen(name)) >= _SHARED_POINTS]
            group += near
            left = [name for name in left if name not in near]
        groups.append(tuple(group))
    return groups
