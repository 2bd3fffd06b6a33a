"""A map as the page shows it, and photos localized in it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from d2net.features import Features
from d2net.io.images import read_image
from d2net.mapping.cameras import photo_camera
from d2net.mapping.cloud import Cloud, posed_photo, read_cloud
from d2net.mapping.localize import Localization, Map
from d2net.mapping.picture.album import add_colours
from d2net.mapping.picture.drawing import frustums
from d2net.mapping.picture.page import page_data
from d2net.serving.pairs import matches_to_dict
from d2net.serving.photos import MAX_PIXELS, SentPhoto, screen_jpeg

_PRESET = "map"  # key of features that are extracted with the map's settings


class ShownMap:
    """A map to look at, in which photos are localized."""

    def __init__(self, map_: Map) -> None:
        self.map = map_

    @property
    def upright(self) -> bool:
        """Whether its photos were turned as their EXIF orientation says."""
        return self.map.model.settings.upright

    def about(self) -> dict[str, Any]:
        """Name and size of the map, as JSON."""
        return {
            "name": self.map.folder.path.resolve().name,
            "photos": len(self.map.names),
            "points": len(self.map.reconstruction.points3D),
        }

    @cached_property
    def page_data(self) -> dict[str, Any]:
        """Points and cameras, as `map.js` draws them."""
        return page_data(self._cloud)

    @cached_property
    def _cloud(self) -> Cloud:
        cloud = read_cloud(self.map.reconstruction)
        return add_colours(cloud, self.map.folder.photo_folders)[0]

    def picture(self, name: str) -> bytes:
        """A JPEG of a photo of the map.

        Raises:
            InputError: the photo is missing.
            ImageError: it cannot be read.
        """
        path = self.map.folder.photo(name)
        return screen_jpeg(read_image(path, upright=self.upright, max_pixels=MAX_PIXELS))

    def localize(self, photo: SentPhoto) -> dict[str, Any]:
        """Localize a photo.

        Returns:
            JSON: `Localization.to_dict`, and
            `shape`: the photo's camera as `map.js` draws it; null without a pose.
            `partner`: the map photo with the most inliers; null without inliers. Its name, its
            size, and the matched `query_points` and `points` as x, y, x, y, ..., the `inliers`
            first.
        """
        if _PRESET not in photo.features:
            photo.features[_PRESET] = self.map.model.extract(photo.pixels())
        features = photo.features[_PRESET]
        with _as_file(photo.content) as path:
            camera = photo_camera(path, features.image_size)
        answer = self.map.localize_features(
            features, camera, estimate_focal_length=not camera.has_prior_focal_length
        )
        return {**answer.to_dict(), "shape": self._shape(answer), "partner": self._partner(answer)}

    def _shape(self, answer: Localization) -> list[float] | None:
        """Centre and corners of the query's camera, in the size of the map's cameras."""
        if answer.pose is None:
            return None
        query = posed_photo("", answer.pose.camera, answer.pose.cam_from_world)
        both = replace(self._cloud, photos=(*self._cloud.photos, query))
        shapes = frustums(both, max(self.page_data["oblique"]["extent"]))
        shape: list[float] = shapes[-1].ravel().tolist()
        return shape

    def _partner(self, answer: Localization) -> dict[str, Any] | None:
        name = answer.best_photo
        if name is None:
            return None
        features, matches = self.map.features(name), matches_to_dict(answer.matches(name))
        return {
            "name": name,
            "size": features.image_size,
            "query_points": _points(answer.features, matches["first"]),
            "points": _points(features, matches["second"]),
            "inliers": matches["inliers"],
        }


def _points(features: Features, rows: list[int]) -> list[float]:
    """Keypoints as x, y, x, y, ..."""
    return [round(value, 2) for value in features.keypoints[rows].ravel().tolist()]


@contextmanager
def _as_file(content: bytes) -> Iterator[Path | None]:
    """A temporary file with these bytes, because COLMAP reads EXIF only from files.

    None on systems without such files. The focal length is unknown there.
    """
    if sys.platform != "linux":
        yield None
        return
    descriptor = os.memfd_create("photo")
    with open(descriptor, "wb") as file:  # noqa: PTH123 (of a descriptor)
        file.write(content)
        file.flush()
        yield Path(f"/proc/self/fd/{descriptor}")
