"""How far a map can be trusted: photos that do not belong in it, and its verdict."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from d2net.geometry.cameras import from_colmap, project
from d2net.mapping.mapper import flat_configurations, verified_pairs
from d2net.mapping.triangulate import epipolar_distances
from d2net.text import count

if TYPE_CHECKING:
    import pycolmap

MapVerdict: TypeAlias = Literal["good", "doubtful"]

MIN_FIELD_OF_VIEW, MAX_FIELD_OF_VIEW = 5.0, 170.0  # degrees; other focal lengths are wrong
_MIN_SHARE_IN_VIEW = 0.9  # of the corner's distance, which the lens model must reach
_MIN_PHOTO_POINTS = 10  # a photo with fewer points could be anywhere
_FEW_POINTS = 50  # COLMAP's poses need 30 inliers
_MAX_FLAT_SHARE, _MAX_CONTRADICTING_SHARE = 0.5, 0.2
_MIN_AGREEING_MATCHES = 0.5  # of a pair's verified matches; otherwise it contradicts the map


@dataclass(frozen=True)
class MapTrust:
    """The verdict on one map.

    Attributes:
        photos: names of its photos, sorted.
        verdict: "good" or "doubtful".
        reasons: why it is doubtful; empty if it is good.
    """

    photos: tuple[str, ...]
    verdict: MapVerdict
    reasons: tuple[str, ...] = ()


def camera_fault(camera: pycolmap.Camera) -> str | None:
    """Why no real camera has these parameters; None if they are possible."""
    focal_length = camera.mean_focal_length()
    if not 0 < focal_length < math.inf:
        return f"impossible focal length of {focal_length:.3g} px"
    field_of_view = 2 * math.degrees(math.atan(max(camera.width, camera.height) / 2 / focal_length))
    if not MIN_FIELD_OF_VIEW <= field_of_view <= MAX_FIELD_OF_VIEW:
        return f"impossible field of view of {field_of_view:.2g} degrees"
    # Along a diagonal, pixels must move outwards with the ray until they leave the photo.
    corner = math.hypot(camera.width, camera.height) / 2
    radii = np.linspace(0, 4 * corner / focal_length, 400)[:, None]
    diagonal = np.array([camera.width, camera.height]) / 2 / corner
    pixels = project(camera, np.hstack([radii * diagonal, np.ones_like(radii)]))
    distances = np.linalg.norm(pixels - pixels[0], axis=1)
    outwards = np.diff(distances) > 0
    turning = len(outwards) if outwards.all() else int(outwards.argmin())
    if distances[turning] < _MIN_SHARE_IN_VIEW * corner:
        return "impossible distortion, which folds the photo"
    return None


def remove_impossible_photos(
    models: Sequence[pycolmap.Reconstruction], min_model_size: int
) -> tuple[list[pycolmap.Reconstruction], dict[str, str]]:
    """Remove photos with impossible cameras, or with next to no points, from models.

    Args:
        models: changed in place.
        min_model_size: models with fewer photos are left out.

    Returns:
        The models that remain, and the reasons of the removed photos by name.
    """
    removed = {}
    for model in models:
        for image in [model.images[number] for number in model.reg_image_ids()]:
            reason = camera_fault(model.cameras[image.camera_id])
            if reason is None and image.num_points3D < _MIN_PHOTO_POINTS:
                reason = f"only {count(image.num_points3D, 'point')} in the map"
            if reason is not None:
                removed[image.name] = reason
                model.deregister_frame(image.frame_id)
    kept = [model for model in models if model.num_reg_images() >= min_model_size]
    return kept, removed


def judge_map(model: pycolmap.Reconstruction, database: Path, max_error: float) -> MapTrust:
    """Judge a map by its points and by the verified pairs of its photos.

    Args:
        model: of COLMAP.
        database: with the pairs; it may be missing, if poses were known.
        max_error: distance in pixels up to which a match agrees with the map's poses.
    """
    images = {i.name: i for i in (model.images[number] for number in model.reg_image_ids())}
    pairs = [p for p in verified_pairs(database) if p[0] in images and p[1] in images]
    reasons = []
    points = float(np.median([image.num_points3D for image in images.values()]))
    if points < _FEW_POINTS:
        reasons.append(f"only {points:.0f} points per photo")
    flat = sum(geometry.config in flat_configurations() for _, _, geometry in pairs)
    if flat > _MAX_FLAT_SHARE * len(pairs) and _has_guessed_cameras(database, images):
        reasons.append(
            "the scene is flat and focal lengths are guessed, so depth is arbitrary; "
            "give --camera-params, or take photos from more sides"
        )
    contradicting = 0
    for first, second, geometry in pairs:
        rows = geometry.inlier_matches.astype(np.int64)
        photos = images[first], images[second]
        matched = (_keypoints(image, rows[:, side]) for side, image in enumerate(photos))
        agreeing = epipolar_distances(model, *photos, *matched) <= max_error
        contradicting += agreeing.mean() < _MIN_AGREEING_MATCHES
    if contradicting > _MAX_CONTRADICTING_SHARE * len(pairs):
        reasons.append(
            f"{contradicting} of {len(pairs)} pairs contradict the map; parts of the scene may "
            "look alike"
        )
    return MapTrust(tuple(sorted(images)), "doubtful" if reasons else "good", tuple(reasons))


def _keypoints(image: pycolmap.Image, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    return from_colmap(np.array([point.xy for point in image.points2D])[rows])


def _has_guessed_cameras(database: Path, names: Container[str]) -> bool:
    import pycolmap

    with pycolmap.Database.open(database) as opened:
        prior = {c.camera_id: c.has_prior_focal_length for c in opened.read_all_cameras()}
        images = opened.read_all_images()
    return not all(prior[image.camera_id] for image in images if image.name in names)
