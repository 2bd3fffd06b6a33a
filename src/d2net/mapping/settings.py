"""Settings of mapping: frozen, saved with every map."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from d2net.errors import InputError
from d2net.mapping.cameras import CameraMode

Mapper: TypeAlias = Literal["incremental", "global"]

VERIFICATION_SIGMAS, LEAST_VERIFICATION_ERROR = 5.3, 4.0
REPROJECTION_SIGMAS, LEAST_REPROJECTION_ERROR = 2.7, 1.0
"""Thresholds in standard deviations of a keypoint's position, and at least in pixels. With D2-Net's
detections (1.5 px) they are 8 and 4 px, with corners (0.4 px) 4 and 1.1 px. Chosen on training
scenes (EXPERIMENTS.md, Maps): a reprojection error of 4 px, COLMAP's own, which is made for SIFT,
makes cameras from corners 1.5 times as inaccurate."""


@dataclass(frozen=True)
class MappingSettings:
    """How a map is made from matches."""

    mapper: Mapper = "incremental"
    """COLMAP's incremental mapper, or its global one (GLOMAP)."""

    camera_model: str = "SIMPLE_RADIAL"
    """COLMAP's name of the lens model."""

    camera_mode: CameraMode = "auto"
    """Which photos share a camera: auto (by size and EXIF), single, per-folder, per-image."""

    camera_params: tuple[float, ...] | None = None
    """Known parameters of the camera model, in COLMAP's order and pixels. None: from EXIF, or
    COLMAP's guess; both are refined."""

    verification_error: float | None = None
    """Largest distance from the epipolar geometry of an inlier, pixels. None: by the keypoints'
    uncertainty."""

    reprojection_error: float | None = None
    """Largest reprojection error of an observation, pixels. None: by the keypoints' uncertainty."""

    refine: bool = False
    """Move keypoints along tracks to where the photos fit, between verification and mapping; the
    photos are read again. EXPERIMENTS.md says what it is worth."""

    min_inliers: int = 15
    """Verified matches that a pair needs (COLMAP's min_num_inliers)."""

    min_model_size: int = 3
    """Photos that a map needs. COLMAP's 10 would drop small sets."""

    seed: int = 0
    """Of all random samples; the same seed gives the same map on one machine."""

    def __post_init__(self) -> None:
        for name, allowed in (("mapper", Mapper), ("camera_mode", CameraMode)):
            if getattr(self, name) not in get_args(allowed):
                raise InputError(
                    f"{name} must be one of {', '.join(get_args(allowed))}, not "
                    f"{getattr(self, name)!r}"
                )
        for name in ("verification_error", "reprojection_error"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise InputError(f"{name} must be a positive number of pixels, not {value}")
        for name, least in (("min_inliers", 8), ("min_model_size", 2), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        """Names and values, as saved with results."""
        return asdict(self)


@dataclass(frozen=True)
class Thresholds:
    """Largest errors in pixels, see `MappingSettings`."""

    verification: float
    reprojection: float


def thresholds(settings: MappingSettings, uncertainty: Collection[float]) -> Thresholds:
    """As set, or by the typical uncertainty (pixels) of each photo's keypoints."""
    sigma = float(np.median(list(uncertainty))) if uncertainty else 0.0
    return Thresholds(
        settings.verification_error or max(LEAST_VERIFICATION_ERROR, VERIFICATION_SIGMAS * sigma),
        settings.reprojection_error or max(LEAST_REPROJECTION_ERROR, REPROJECTION_SIGMAS * sigma),
    )
