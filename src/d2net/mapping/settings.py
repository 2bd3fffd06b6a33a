"""Settings of mapping, saved with every map."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import NamedTuple, TypedDict

import numpy as np

from d2net.errors import InputError
from d2net.settings import CameraMode, Mapper, Settings

VERIFICATION_SIGMAS, MIN_VERIFICATION_ERROR = 5.3, 4.0
REPROJECTION_SIGMAS, MIN_REPROJECTION_ERROR = 2.7, 1.0
"""Thresholds in standard deviations of a keypoint's position, and their minimum in pixels. They are
8 and 4 px for a VGG's keypoints (1.5 px), and 4 and 1.4 px for light's (0.5 px). Chosen on training
scenes (docs/experiments.md, Maps): COLMAP's reprojection error of 4 px is made for SIFT. With
points known to 0.4 px, it makes the errors of cameras 1.5 times as large."""

MIN_INLIERS = 15  # verified matches that a pair needs (COLMAP's min_num_inliers)

MIN_PHOTOS = 3  # photos that a map needs. COLMAP's 10 would drop small sets


class MappingOptions(TypedDict, total=False):
    """The fields of `MappingSettings` as keyword arguments; see there for what they mean."""

    matcher: str
    mapper: Mapper
    camera_model: str
    camera_mode: CameraMode
    camera_params: tuple[float, ...] | None
    seed: int


class Thresholds(NamedTuple):
    """Largest distance of an inlier from its epipolar line, and largest reprojection error (px)."""

    verification: float
    reprojection: float


@dataclass(frozen=True)
class MappingSettings(Settings):
    """How a map is made from features."""

    matcher: str = "nearest"
    """"nearest", "learned" or the weights file of a learned matcher, see `match`."""

    mapper: Mapper = "incremental"
    """COLMAP's incremental mapper, or its global mapper (GLOMAP) for new models."""

    camera_model: str = "SIMPLE_RADIAL"
    """COLMAP's name of the camera model."""

    camera_mode: CameraMode = "auto"
    """Which photos share a camera: auto (those with the same size, camera, lens and focal length in
    EXIF), single, per-folder, per-image."""

    camera_params: tuple[float, ...] | None = None
    """Known parameters of the camera model, in COLMAP's order and in pixels; they are not refined.
    None: the focal length comes from EXIF or COLMAP's guess, and everything is refined."""

    seed: int = 0
    """Seed of all random samples; the same seed gives the same map on one machine."""

    def __post_init__(self) -> None:
        if not isinstance(self.camera_params, str | None):  # an array, if it comes from pycolmap
            object.__setattr__(self, "camera_params", tuple(map(float, self.camera_params)))
        super().__post_init__()
        if not 0 <= self.seed < 2**31:
            raise InputError(f"seed must be in 0 .. 2^31 - 1, not {self.seed}")

    @staticmethod
    def thresholds(uncertainties: Collection[float]) -> Thresholds:
        """Thresholds from the median of the photos' keypoint uncertainties (pixels)."""
        sigma = float(np.median(list(uncertainties))) if uncertainties else 0.0
        return Thresholds(
            max(MIN_VERIFICATION_ERROR, VERIFICATION_SIGMAS * sigma),
            max(MIN_REPROJECTION_ERROR, REPROJECTION_SIGMAS * sigma),
        )
