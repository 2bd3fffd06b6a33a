"""A map as the page shows it, and photos localized in it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from d2net.errors import InputError
from d2net.features import Features
from d2net.io.images import Pixels, read_image
from d2net.io.resume import are_unchanged
from d2net.mapping.assign_cameras import photo_camera
from d2net.mapping.localize import Map
from d2net.mapping.picture.drawing import add_colours, frustums
from d2net.mapping.reconstruction_arrays import Cloud, posed_photo, read_cloud
from d2net.mapping.report import page_data
from d2net.serving.photos import MAX_PIXELS, SentPhoto, matches_to_dict, screen_jpeg

_PRESET = "map"  # key of features that are extracted with the map's settings


class ShownMap:
    """A map to look at, `sparse/0` of its folder; photos are localized in all of its maps."""

    def __init__(self, map_: Map) -> None:
        self.map = map_
        self.upright = map_.model.settings.upright
        self._features_of: dict[str, str] = map_.folder.record.values.get("features", {})

    def about(self) -> dict[str, Any]:
        """The map's name, and the numbers of photos and points of `sparse/0`, as JSON."""
        return {
            "name": self.map.folder.path.resolve().name,
            "photos": len(self.map.reconstruction.reg_image_ids()),
            "points": len(self.map.reconstruction.points3D),
        }

    @cached_property
    def page_data(self) -> dict[str, Any]:
        """Points and cameras, as `map.js` draws them."""
        return page_data(self._cloud)

    @cached_property
    def _cloud(self) -> Cloud:
        cloud = read_cloud(self.map.reconstruction)
        return add_colours(cloud, self._read)[0]

    def _read(self, name: str, **limit: int) -> Pixels:
        path = self.map.folder.photo(name)
        if not are_unchanged(self._features_of.get(name, ""), path):
            raise InputError("the map has been made again since it was opened: restart d2net serve")
        return read_image(path, upright=self.upright, **limit)

    def picture(self, name: str) -> bytes:
        """A JPEG of a photo of the map; InputError if it is missing."""
        return screen_jpeg(self._read(name, max_pixels=MAX_PIXELS))

    def localize(self, photo: SentPhoto) -> dict[str, Any]:
        """Localize a photo.

        Returns:
            `Localization.to_dict`, to which three entries are added. `about` is that of the map.
            `shape` is the photo's camera as `map.js` draws it; null without a pose in `sparse/0`.
            `partner` is the map photo with the most inliers: name, size, and the matched
            `query_points` and `points` as x, y, x, y, ..., the `inliers` first; null without any.
        """
        if _PRESET not in photo.features:
            photo.features[_PRESET] = self.map.model.extract(photo.file)
        features = photo.features[_PRESET]
        with TemporaryDirectory() as folder:  # COLMAP reads EXIF data from files
            path = Path(folder) / "photo"
            path.write_bytes(photo.content)
            camera = photo_camera(path, features.image_size)
        answer = self.map.localize_features(features, camera, from_exif=True)
        shape = partner = None
        if answer.pose is not None and answer.map_number == 0:
            query = posed_photo("", answer.pose.camera, answer.pose.cam_from_world)
            both = replace(self._cloud, photos=(*self._cloud.photos, query))
            shapes = frustums(both, max(self.page_data["oblique"]["extent"]))
            shape = shapes[-1].ravel().tolist()
        name = answer.best_photo
        if name is not None:
            known, matches = self.map.features(name), matches_to_dict(answer.matches(name))
            partner = {
                "name": name,
                "size": known.image_size,
                "query_points": _points(answer.features, matches["first"]),
                "points": _points(known, matches["second"]),
                "inliers": matches["inliers"],
            }
        return {**answer.to_dict(), "about": self.about(), "shape": shape, "partner": partner}


def _points(features: Features, rows: list[int]) -> list[float]:
    """Keypoints as x, y, x, y, ..."""
    return [round(value, 2) for value in features.keypoints[rows].ravel().tolist()]
