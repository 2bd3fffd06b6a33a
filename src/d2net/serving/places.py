"""A map as the page shows it, and photos placed in it."""

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
from d2net.mapping.cloud import Cloud, placed, read_cloud
from d2net.mapping.localize import Localization, Map
from d2net.mapping.picture.album import colour
from d2net.mapping.picture.glyphs import frustums
from d2net.mapping.picture.page import kept_points, page_data
from d2net.mapping.summary import summarise
from d2net.serving.pairs import listed
from d2net.serving.photos import MAX_PIXELS, SentPhoto, small_jpeg

_KIND = "map"  # of the features of photos to be placed: extracted as the map's


class ShownMap:
    """A map that answers and can be looked at."""

    def __init__(self, map_: Map) -> None:
        self.map = map_

    @property
    def upright(self) -> bool:
        """Whether its photos were turned as their EXIF data say."""
        return self.map.network.settings.upright

    def about(self) -> dict[str, Any]:
        """What it is, as JSON."""
        return {
            "name": self.map.folder.path.resolve().name,
            "photos": len(self.map.names),
            "points": len(self.map.model.points3D),
        }

    @cached_property
    def drawn(self) -> dict[str, Any]:
        """Points and cameras, as `map.js` draws them."""
        return page_data(self._cloud, kept_points(self._cloud), summarise(self.map.model))

    @cached_property
    def _cloud(self) -> Cloud:
        return colour(read_cloud(self.map.model), self.map.folder.photo_folders)[0]

    def picture(self, name: str) -> bytes:
        """A JPEG of a photo of the map.

        Raises:
            InputError: it is where it was no more.
            ImageError: it cannot be read.
        """
        path = self.map.folder.photo(name)
        return small_jpeg(read_image(path, upright=self.upright, max_pixels=MAX_PIXELS))

    def place(self, photo: SentPhoto) -> dict[str, Any]:
        """Where a photo was taken, as JSON.

        Returns:
            `Localization.to_dict`; `shape`, the photo's camera as `map.js` draws it; and `partner`,
            the photo of the map that it has most in common with: its name and size, and the places
            (x, y) that match, in the query and in it, of which the first `inliers` agree with the
            pose. The last two are null where there are none.
        """
        if _KIND not in photo.features:
            photo.features[_KIND] = self.map.network.extract(photo.pixels())
        features = photo.features[_KIND]
        with _as_file(photo.content) as path:
            camera = photo_camera(path, features.image_size)
        answer = self.map.place(
            features, camera, estimate_focal_length=not camera.has_prior_focal_length
        )
        return {**answer.to_dict(), "shape": self._shape(answer), "partner": self._partner(answer)}

    def _shape(self, answer: Localization) -> list[float] | None:
        """The tip and the corners of the photo's camera in the world, in the size of the others."""
        if answer.pose is None:
            return None
        view = placed("", answer.pose.camera, answer.pose.cam_from_world)
        whole = replace(self._cloud, views=(*self._cloud.views, view))
        shapes = frustums(whole, float(max(self.drawn["oblique"]["extent"])))
        return [float(value) for value in shapes[-1].ravel()]

    def _partner(self, answer: Localization) -> dict[str, Any] | None:
        name = answer.best_photo
        if name is None:
            return None
        own, found = self.map.features(name), listed(answer.matches(name))
        return {
            "name": name,
            "size": own.image_size,
            "query_points": _points(answer.features, found["first"]),
            "points": _points(own, found["second"]),
            "inliers": found["inliers"],
        }


def _points(features: Features, rows: list[int]) -> list[float]:
    """x, y, x, y, ... of some keypoints."""
    return [round(value, 2) for value in features.keypoints[rows].ravel().tolist()]


@contextmanager
def _as_file(content: bytes) -> Iterator[Path | None]:
    """A path to bytes that stay in memory, as COLMAP reads EXIF data from files only.

    None where the system has no such thing: then the focal length counts as unknown.
    """
    if sys.platform != "linux":
        yield None
        return
    descriptor = os.memfd_create("photo")
    with open(descriptor, "wb") as file:  # noqa: PTH123 (of a descriptor)
        file.write(content)
        file.flush()
        yield Path(f"/proc/self/fd/{descriptor}")
