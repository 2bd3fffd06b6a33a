"""`Map`: a finished map, in which the poses of new photos are estimated and judged."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import pycolmap
import torch

from d2net.errors import InputError
from d2net.extraction.d2net import D2Net
from d2net.features import Features, Matches
from d2net.geometry.absolute_pose import AbsolutePoseOptions
from d2net.geometry.cameras import check_photo_size, known_camera
from d2net.io.h5 import FeatureFile
from d2net.io.images import ImageLike
from d2net.mapping.assign_cameras import photo_camera
from d2net.mapping.georeference import Georeference
from d2net.mapping.map_folder import MapFolder
from d2net.mapping.query_pose import (
    SIGNIFICANT,
    QueryPose,
    covisible_groups,
    estimate_query_pose,
    keypoint_points,
    observed_points,
)
from d2net.matching import check_matcher, create_matcher
from d2net.matching.retrieval import GlobalDescriptors
from d2net.networks.catalogue import CATALOGUE

Verdict: TypeAlias = Literal["localized", "doubtful", "lost"]

NUM_RETRIEVED = 20  # map photos that a query is matched with: those most similar to it

_FEW_PHOTOS = 5
"""The pose is also estimated from this many of a group's most similar photos. With all photos,
outliers may be so many that RANSAC misses the pose."""

POSE_SIGMAS, MIN_POSE_ERROR = 8.0, 3.0
"""RANSAC's threshold in standard deviations of a keypoint's position, and its minimum in pixels.
COLMAP's 12 px are 8 sigma of a VGG's keypoints in photos of full size. In maps whose points are
known to 0.4 px, a threshold of 3 px places queries 1.5 times as accurately as one of 8 px
(docs/experiments.md, Maps)."""

DOUBTFUL = 2.0
"""A query is lost at this significance or below, and doubtful up to `SIGNIFICANT`. Above that it is
localized if its rotation is also known well enough."""

MAX_ROTATION_DEVIATION = 1.0  # standard deviation of a localized query's rotation, in degrees

_CACHED_PHOTOS = 64  # map photos whose descriptors stay in memory, a few MB each


@dataclass(frozen=True, eq=False)
class Localization(QueryPose):
    """A query's pose and how far it can be trusted.

    Attributes:
        verdict: "localized", "doubtful" (perhaps an accident, or uncertain) or "lost".
        reason: why the query is not localized; empty if it is.
        known_camera: the camera was given or read from EXIF; the focal length was not estimated.
        map_number: number n of the map `sparse/n` in whose frame the pose is.
        georeference: the place on the earth of that map; None if unknown.
    """

    verdict: Verdict
    reason: str
    features: Features
    known_camera: bool
    map_number: int
    georeference: Georeference | None

    @property
    def cam_from_world(self) -> pycolmap.Rigid3d | None:
        """COLMAP's rigid transform; None without a pose."""
        return None if self.pose is None else self.pose.cam_from_world

    def matches(self, photo: str) -> Matches:
        """With one map photo: the matches that gave correspondences, with inliers marked."""
        if photo not in self.photos:
            raise InputError(f"{photo!r} gave no correspondences: name one of `photos`")
        shown = self.correspondences.photos == self.photos.index(photo)
        chosen = self.correspondences[shown]
        return Matches(
            torch.from_numpy(np.column_stack([chosen.rows, chosen.map_rows])),
            torch.ones(len(chosen), dtype=torch.float32, device="cpu"),
            inliers=torch.from_numpy(self.inliers[shown]),
            model="pose",
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON. Quaternions are w x y z, as in the benchmarks' files."""
        values: dict[str, Any] = {
            "verdict": self.verdict,
            "reason": self.reason,
            "significance": self.significance,
            "keypoints": len(self.features),
            "correspondences": len(self.correspondences),
            "inliers": self.num_inliers,
            "best_photo": self.best_photo,
            "map": self.map_number,
        }
        if self.pose is not None:
            x, y, z, w = self.pose.cam_from_world.rotation.quat.tolist()
            camera = self.pose.camera
            values |= {
                "cam_from_world": {
                    "rotation_wxyz": [w, x, y, z],
                    "translation": self.pose.cam_from_world.translation.tolist(),
                },
                "position": self.pose.centre.tolist(),
                "position_deviation": self.pose.position_deviation,
                "rotation_deviation_deg": self.pose.rotation_deviation,
                "camera": {
                    "model": camera.model_name,
                    "width": camera.width,
                    "height": camera.height,
                    "params": camera.params.tolist(),
                    "known": self.known_camera,
                },
            }
        if self.pose is not None and self.georeference is not None:
            place = self.georeference.position(self.pose.centre)
            alignment = self.georeference.deviation(self.pose.centre)
            values |= {
                "latitude": place.latitude,
                "longitude": place.longitude,
                "earth_deviation_m": float(np.hypot(self.pose.position_deviation, alignment)),
            }
        return values


class Map:
    """A finished map that answers where photos were taken.

    ```python
    answer = d2net.Map.open("map/").localize("query.jpg")
    answer.verdict, answer.cam_from_world, answer.num_inliers
    ```

    Attributes:
        model: extracts queries as the map's photos were extracted.
        reconstruction: the first of COLMAP's models.
        names: photos of all maps in the folder, sorted.
        map_numbers: number n of the map `sparse/n` that a photo is in, by name.
        features: returns the features of a registered photo by its name.
    """

    def __init__(self, folder: MapFolder, model: D2Net, matcher: str = "nearest") -> None:
        self.folder = folder
        self.model = model
        check_matcher(matcher, model.descriptor_id())
        self._matcher = create_matcher(matcher)
        found = folder.read_models()
        models = [model for model, _ in found]
        self.reconstruction = models[0]
        self._georeferences = [place for _, place in found]
        self.map_numbers = {
            model.images[image].name: number
            for number, model in reversed(list(enumerate(models)))
            for image in model.reg_image_ids()
        }
        self.names = tuple(sorted(self.map_numbers))
        file = FeatureFile(folder.features)
        self._retrieval = GlobalDescriptors.open(folder.retrieval).only(self.names)
        if self._retrieval.names != self.names:
            raise InputError(
                f"{folder.retrieval} lacks photos of the map, because d2net reconstruct failed or "
                "was stopped: run it again"
            )
        self._points_of = [keypoint_points(model) for model in models]
        self._observed = [observed_points(model) for model in models]
        self.features = lru_cache(maxsize=_CACHED_PHOTOS)(
            lambda name: file[name].to(self.model.device)
        )

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        weights: str | os.PathLike[str] | None = None,
        device: str = "cpu",
        matcher: str = "nearest",
    ) -> Map:
        """Open a map that `d2net reconstruct` made. Its photos are not needed.

        Args:
            path: the map's folder.
            weights: name or file of the map's weights. None: the map's, if they come with d2net.
            device: where the network runs and descriptors are compared.
            matcher: how queries are matched, see `match`.

        Raises:
            InputError: the folder holds no finished map, or the weights are not the map's.
        """
        folder = MapFolder(Path(path))
        recorded = folder.made_by()
        name, sha256 = recorded["weights"]["name"], recorded["weights"]["sha256"]
        made_with = f"the map {folder.path} was made with the weights {name} (sha256 {sha256[:12]})"
        if weights is None and not CATALOGUE.keys() >= {*name.split("+")}:
            raise InputError(f"{made_with}, which d2net does not have: give their file as weights")
        model = D2Net.from_pretrained(weights or name, device=device)
        if model.weights["sha256"] != sha256:
            raise InputError(
                f"{made_with}, not with {model.weights['name']} ({model.weights['sha256'][:12]}); "
                "give their file as weights"
            )
        model.weights = recorded["weights"]  # a file may have been renamed
        model.settings = model.resolve(**recorded["extraction"])
        return cls(folder, model, matcher)

    def localize(
        self,
        image: ImageLike,
        *,
        camera: pycolmap.Camera | None = None,
        num_retrieved: int = NUM_RETRIEVED,
        seed: int = 0,
    ) -> Localization:
        """Estimate where a photo was taken.

        Args:
            image: the query, in any form that `D2Net.extract` takes.
            camera: COLMAP's camera of the query, which counts as known. None reads it from the
                EXIF data of a path; without a focal length there, it is estimated with the pose.
            num_retrieved: number of map photos that the query is matched with.
            seed: seed of RANSAC's random samples.
        """
        features = self.model.extract(image)
        if camera is None:
            path = Path(image) if isinstance(image, str | os.PathLike) else None
            query_camera = photo_camera(path, features.image_size)
        else:
            query_camera = pycolmap.Camera(camera.todict() | {"has_prior_focal_length": True})
        return self.localize_features(
            features, query_camera, from_exif=camera is None, num_retrieved=num_retrieved, seed=seed
        )

    def localize_features(
        self,
        features: Features,
        camera: pycolmap.Camera,
        *,
        from_exif: bool = False,
        num_retrieved: int = NUM_RETRIEVED,
        seed: int = 0,
    ) -> Localization:
        """`localize` for features that were extracted with the map's settings.

        The focal length is estimated unless the camera is marked `has_prior_focal_length`, and also
        if it is `from_exif` and the correspondences contradict it, as for cropped photos.
        """
        check_photo_size("the photo", features.image_size, camera)
        is_known, params = camera.has_prior_focal_length, camera.params.tolist()
        camera = known_camera(camera.model_name, features.image_size, params, is_known)
        similar = [name for name, _ in self._retrieval.query(features, num_retrieved)]
        found = estimate_query_pose(
            features,
            camera,
            AbsolutePoseOptions(
                threshold=pose_threshold(features), estimate_focal_length=not is_known, seed=seed
            ),
            (
                photos
                for number, observed in enumerate(self._observed)
                for group in covisible_groups(
                    [name for name in similar if self.map_numbers[name] == number], observed
                )
                for photos in dict.fromkeys((group, group[:_FEW_PHOTOS]))
            ),
            cache(lambda name: self._matcher(features, self.features(name))),
            lambda name: self._points_of[self.map_numbers[name]](name),
            from_exif=from_exif and is_known,
        )
        is_kept = found.pose is None or bool(found.pose.camera.params[0] == camera.params[0])
        map_number = self.map_numbers[found.photos[0]] if found.photos else 0
        return Localization(
            found.photos,
            found.correspondences,
            found.pose,
            *_verdict(found, features),
            features,
            is_known and is_kept,
            map_number,
            self._georeferences[map_number],
        )


def pose_threshold(features: Features) -> float:
    """RANSAC's threshold for a query in pixels, from the uncertainty of its keypoints."""
    sigma = float(features.uncertainty.median()) if len(features) else 0.0
    return max(MIN_POSE_ERROR, POSE_SIGMAS * sigma)


def _verdict(found: QueryPose, features: Features) -> tuple[Verdict, str]:
    """The verdict, and the reason if the query is not localized."""
    if len(features) == 0:
        return "lost", "the photo has no keypoints"
    total = len(found.correspondences)
    if found.pose is None:
        return "lost", f"no pose agrees with its {total} correspondences to the map's points"
    agreeing = f"{found.num_inliers} of {total} correspondences agree with the pose"
    if found.pose.significance <= DOUBTFUL:
        return "lost", f"{agreeing}, as many as agree by accident"
    if found.pose.significance <= SIGNIFICANT:
        return "doubtful", f"only {agreeing}, which may be an accident"
    deviation = found.pose.rotation_deviation
    if deviation > MAX_ROTATION_DEVIATION:
        return "doubtful", f"the rotation is uncertain by {deviation:.1f} degrees"
    return "localized", ""
