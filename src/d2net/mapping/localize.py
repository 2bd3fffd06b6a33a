"""A photo placed in a map: retrieval, matching, 2D-3D by tracks, absolute pose."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
import torch

from d2net.errors import InputError
from d2net.extraction.d2net import D2Net
from d2net.features import Features, Matches
from d2net.geometry.absolute import AbsolutePoseOptions
from d2net.geometry.cameras import check_photo_size
from d2net.io.h5 import FeatureFile
from d2net.io.images import ImageLike
from d2net.mapping.cameras import photo_camera
from d2net.mapping.correspondences import keypoint_places, points_seen
from d2net.mapping.folder import MapFolder
from d2net.mapping.placement import Placement, covisible, place
from d2net.matching import match
from d2net.matching.retrieval import GlobalDescriptors

if TYPE_CHECKING:
    import pycolmap
    from PIL import Image

Verdict: TypeAlias = Literal["localized", "doubtful", "lost"]

NUM_RETRIEVED = 20
"""Photos of the map that a query is matched with; those that look most alike."""

POSE_SIGMAS = 8.0
LEAST_POSE_ERROR = 3.0
"""Largest reprojection error of an inlier, in standard deviations of a keypoint's position, and at
least in pixels. COLMAP's 12 px are 8 sigma of D2-Net's detections in photos that are not reduced;
with corners 3 px place queries 1.5 times as accurately as 8 px (EXPERIMENTS.md, Maps)."""

SURE_INLIERS, FEWEST_INLIERS = 30, 16
SURE_ROTATION = 1.0
"""A photo counts as localized with so many inliers and a rotation certain to so many degrees, as
doubtful with fewer, and as lost with less than the fewest. No photo of another place had 16 on four
small maps, and 30 is twice what the best of them had (EXPERIMENTS.md, Maps)."""

_PHOTOS_KEPT = 64  # of the map, whose descriptors stay in memory: a few MB each


@dataclass(frozen=True, eq=False)
class Localization(Placement):
    """What became of a query: its `Placement`, and how far that can be relied on.

    Attributes:
        verdict: "localized", "doubtful" (few inliers, or an uncertain pose) or "lost".
        reason: why a query is not localized; empty if it is.
        features: of the query.
        known_camera: whether the camera was given or told by EXIF; otherwise its focal length was
            estimated with the pose.
    """

    verdict: Verdict
    reason: str
    features: Features
    known_camera: bool

    @property
    def cam_from_world(self) -> pycolmap.Rigid3d | None:
        """COLMAP's rigid transform, None without a pose."""
        return None if self.pose is None else self.pose.cam_from_world

    def matches(self, photo: str) -> Matches:
        """Those of the query's keypoints with a photo of the map that gave links."""
        shown = self.links.photos == self.photos.index(photo)
        links = self.links[shown]
        return Matches(
            torch.from_numpy(np.column_stack([links.rows, links.partners])),
            torch.ones(len(links)),
            inliers=torch.from_numpy(self.inliers[shown]),
            model="pose",
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON; quaternions are w x y z, as in the benchmarks' files."""
        values: dict[str, Any] = {
            "verdict": self.verdict,
            "reason": self.reason,
            "keypoints": len(self.features),
            "links": len(self.links),
            "inliers": self.num_inliers,
            "best_photo": self.best_photo,
        }
        if self.pose is not None:
            x, y, z, w = (float(v) for v in self.pose.cam_from_world.rotation.quat)
            camera = self.pose.camera
            values |= {
                "cam_from_world": {
                    "rotation_wxyz": [w, x, y, z],
                    "translation": [float(v) for v in self.pose.cam_from_world.translation],
                },
                "position": [float(v) for v in self.pose.centre],
                "position_deviation": self.pose.position_deviation,
                "rotation_deviation_deg": self.pose.rotation_deviation,
                "camera": {
                    "model": camera.model_name,
                    "width": camera.width,
                    "height": camera.height,
                    "params": [float(v) for v in camera.params],
                    "known": self.known_camera,
                },
            }
        return values


class Map:
    """A map that answers where photos were taken.

    ```python
    place = d2net.Map.open("map/").localize("query.jpg")
    place.verdict, place.cam_from_world, place.num_inliers
    ```

    Attributes:
        folder: the map's files.
        network: extracts queries as the map's photos were.
        model: COLMAP's.
        names: of the photos in it, sorted.
        features: of one of them by its name; those used last stay in memory.
    """

    def __init__(self, folder: MapFolder, model: D2Net) -> None:
        self.folder = folder
        self.network = model
        self.model = folder.read_model()
        images = self.model.images
        self.names = tuple(sorted(images[i].name for i in self.model.reg_image_ids()))
        self._file = FeatureFile(folder.features)
        self._retrieval = GlobalDescriptors.open(folder.retrieval).only(self.names)
        self._places = keypoint_places(self.model)
        self._seen = points_seen(self.model)
        self.features = lru_cache(maxsize=_PHOTOS_KEPT)(self._read)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        weights: str | os.PathLike[str] | None = None,
        device: str = "cpu",
    ) -> Map:
        """Open a map that `d2net reconstruct` made.

        Its photos need not be there any more. Queries are extracted with the settings of the map.

        Args:
            path: the map's folder.
            weights: name or file of the map's weights; None if its own name for them is known.
            device: where the network runs and descriptors are compared.

        Raises:
            InputError: it is no finished map, or these are not its weights.
            FormatError: a part of it is damaged.
            WeightsError: the weights cannot be found.
        """
        folder = MapFolder(Path(path))
        if not folder.features.is_file():
            raise InputError(
                f"{folder.path} is no map: it has no {folder.features.name}; make one with d2net "
                "reconstruct PHOTOS --output MAP"
            )
        with FeatureFile(folder.features) as file:
            made = file.settings or {}
        try:
            known = made["weights"]
            settings, name, sha256 = made["extraction"], known["name"], known["sha256"]
        except (KeyError, TypeError) as error:
            raise InputError(
                f"{folder.features} does not say how it was made, so that queries cannot be "
                "extracted alike"
            ) from error
        network = D2Net.from_pretrained(weights or name, device=device, **settings)
        if network.weights["sha256"] != sha256:
            raise InputError(
                f"the map {folder.path} was made with other weights ({name}, sha256 {sha256[:12]}) "
                f"than {network.weights['name']} ({network.weights['sha256'][:12]}); give its own"
            )
        return cls(folder, network)

    def localize(
        self,
        image: ImageLike,
        *,
        camera: pycolmap.Camera | None = None,
        num_retrieved: int = NUM_RETRIEVED,
        seed: int = 0,
    ) -> Localization:
        """Where a photo was taken.

        Args:
            image: the query, in any form that `D2Net.extract` takes.
            camera: COLMAP's camera of the query. None: by the EXIF data of a file; where they do
                not tell the focal length, it is estimated with the pose.
            num_retrieved: photos of the map that the query is matched with.
            seed: of the random samples.

        Raises:
            ImageError: the photo cannot be read.
            InputError: the camera is of another size than the photo.
        """
        features = self.network.extract(image)
        if camera is not None:
            return self.place(features, camera, num_retrieved=num_retrieved, seed=seed)
        path = Path(image) if isinstance(image, str | os.PathLike) else None
        told = photo_camera(path, features.image_size)
        return self.place(
            features,
            told,
            estimate_focal_length=not told.has_prior_focal_length,
            num_retrieved=num_retrieved,
            seed=seed,
        )

    def place(
        self,
        features: Features,
        camera: pycolmap.Camera,
        *,
        estimate_focal_length: bool = False,
        num_retrieved: int = NUM_RETRIEVED,
        seed: int = 0,
    ) -> Localization:
        """`localize` for features that are extracted already, as the map's are."""
        check_photo_size("the photo", features.image_size, camera)
        options = AbsolutePoseOptions(
            threshold=pose_threshold(features),
            estimate_focal_length=estimate_focal_length,
            seed=seed,
        )
        alike = [name for name, _ in self._retrieval.query(features, num_retrieved)]
        found = place(
            features,
            camera,
            options,
            covisible(alike, self._seen),
            lambda name: match(features, self.features(name)),
            self._places,
        )
        verdict, reason = _verdict(found, features)
        return Localization(
            found.photos,
            found.links,
            found.pose,
            verdict,
            reason,
            features,
            not estimate_focal_length,
        )

    def plot(
        self, answer: Localization, image: ImageLike, output: str | os.PathLike[str] | None = None
    ) -> Image.Image:
        """The query beside the photo of the map with which it shares most inliers.

        Raises:
            InputError: the query shares nothing with the map, or its photo is gone.
        """
        from d2net.visualization import plot_matches

        name = answer.best_photo
        if name is None:
            raise InputError("the query shares no inliers with the map: nothing to draw")
        return plot_matches(
            image,
            self.folder.photo(name),
            answer.features,
            self.features(name),
            answer.matches(name),
            upright=self.network.settings.upright,
            output=output,
        )

    def _read(self, name: str) -> Features:
        return self._file[name].to(self.network.device)


def pose_threshold(features: Features) -> float:
    """Largest reprojection error of a query's inlier in pixels, by its keypoints' uncertainty."""
    sigma = float(features.uncertainty.median()) if len(features) else 0.0
    return max(LEAST_POSE_ERROR, POSE_SIGMAS * sigma)


def _verdict(found: Placement, features: Features) -> tuple[Verdict, str]:
    """The verdict, and in words why it is not better."""
    if len(features) == 0:
        return "lost", "the photo has no keypoints"
    if found.pose is None:
        return "lost", f"no pose agrees with its {len(found.links)} links to the map's points"
    inliers, links = found.num_inliers, len(found.links)
    if inliers < FEWEST_INLIERS:
        return "lost", f"only {inliers} of {links} links agree with one pose"
    if inliers < SURE_INLIERS:
        return "doubtful", f"{inliers} of {links} links agree with the pose"
    uncertain = found.pose.rotation_deviation
    if uncertain > SURE_ROTATION:
        return "doubtful", f"its rotation is uncertain by {uncertain:.1f} degrees"
    return "localized", ""
