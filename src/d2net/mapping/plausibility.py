"""How far a map can be trusted: photos that do not belong in it, and its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pycolmap

from d2net.geometry.cameras import from_colmap, possible_focal_length, project, quiet_colmap, rays
from d2net.mapping.mapper import flat_configurations, verified_pairs
from d2net.mapping.settings import MIN_PHOTOS
from d2net.mapping.triangulate import epipolar_distances
from d2net.wording import count

MapVerdict: TypeAlias = Literal["good", "doubtful"]

_MIN_PHOTO_POINTS = 10  # a photo with fewer points could be anywhere
_FEW_POINTS = 50  # COLMAP's poses need 30 inliers
_MIN_ANGLE = 5.0  # degrees; docs/experiments.md, Maps
_ANGLE_SAMPLES = 1000  # points whose angle is computed
_MAX_FLAT_SHARE, _MAX_CONTRADICTING_SHARE = 0.5, 0.1
_MIN_AGREEING_MATCHES = 0.5  # of a pair's verified matches; otherwise it contradicts the map


@dataclass(frozen=True)
class MapTrust:
    """The verdict on one map of these photos (sorted), and the reasons if it is doubtful."""

    photos: tuple[str, ...]
    verdict: MapVerdict
    reasons: tuple[str, ...] = ()


def camera_fault(camera: pycolmap.Camera) -> str | None:
    """Why no real camera has these parameters; None if they are possible."""
    if not possible_focal_length(camera):
        return f"impossible focal length of {camera.mean_focal_length():.3g} px"
    size = np.array([camera.width, camera.height])
    corners = size * (0.5 + 0.9 * np.array([[-0.5, -0.5], [0.5, -0.5], [-0.5, 0.5], [0.5, 0.5]]))
    directions = np.insert(rays(camera, corners), 2, 1, axis=1)
    if not np.allclose(project(camera, directions), corners, atol=1):
        return "impossible distortion, which folds the photo"
    return None


def remove_impossible_photos(
    models: Sequence[pycolmap.Reconstruction], *, refine: bool
) -> tuple[list[pycolmap.Reconstruction], dict[str, str]]:
    """Remove photos with impossible cameras, or with next to no points, and adjust the others.

    Returns the models that still have enough photos, and the reasons of the removed photos by name.
    """
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = options.refine_extra_params = refine
    options.print_summary = False
    removed = {}
    for model in models:
        while model.num_reg_images() >= MIN_PHOTOS:
            faulty = []
            for image in (model.images[number] for number in model.reg_image_ids()):
                reason = camera_fault(model.cameras[image.camera_id])
                if reason is None and image.num_points3D < _MIN_PHOTO_POINTS:
                    reason = f"only {count(image.num_points3D, 'point')} in the map"
                if reason is not None:
                    removed[image.name] = reason
                    faulty.append(image.frame_id)
            if not faulty:
                break
            for frame in faulty:
                model.deregister_frame(frame)
            if model.num_reg_images() >= MIN_PHOTOS:
                config = pycolmap.BundleAdjustmentConfig()
                config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
                for number in model.reg_image_ids():
                    config.add_image(number)
                with quiet_colmap():  # pycolmap.bundle_adjustment logs all the same
                    pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    return [model for model in models if model.num_reg_images() >= MIN_PHOTOS], removed


def judge_map(model: pycolmap.Reconstruction, database: Path, max_error: float) -> MapTrust:
    """Judge a map by its points and by the verified pairs of its photos.

    The database may be missing, if poses were known. Matches agree with the map's poses up to a
    distance of `max_error` pixels.
    """
    images = {i.name: i for i in (model.images[number] for number in model.reg_image_ids())}
    pairs = [p for p in verified_pairs(database) if p[0] in images and p[1] in images]
    reasons = []
    points = float(np.median([image.num_points3D for image in images.values()]))
    if points < _FEW_POINTS:
        reasons.append(f"only {points:.0f} points per photo")
    angle = _median_angle(model)
    if angle < _MIN_ANGLE:
        reasons.append(
            f"cameras see the points from nearly one direction ({angle:.1f} degrees apart), so "
            "depth is uncertain; step aside between photos"
        )
    flat = sum(geometry.config in flat_configurations() for _, _, geometry in pairs)
    guessed = False
    if pairs:
        with pycolmap.Database.open(database) as opened:
            known = {c.camera_id: c.has_prior_focal_length for c in opened.read_all_cameras()}
            stored = opened.read_all_images()
        guessed = not all(known[image.camera_id] for image in stored if image.name in images)
    if guessed and flat > _MAX_FLAT_SHARE * len(pairs):
        reasons.append(
            "the scene is flat and focal lengths are guessed, so depth is arbitrary; "
            "give --camera-params, or take photos from more sides"
        )
    contradicting = 0
    for first, second, geometry in pairs:
        photos = images[first], images[second]
        matched = (
            from_colmap(np.array([image.points2D[row].xy for row in rows]))
            for image, rows in zip(photos, geometry.inlier_matches.T, strict=True)
        )
        agreeing = epipolar_distances(model, *photos, *matched) <= max_error
        contradicting += agreeing.mean() < _MIN_AGREEING_MATCHES
    if contradicting > _MAX_CONTRADICTING_SHARE * len(pairs):
        reasons.append(
            f"{contradicting} of {len(pairs)} pairs contradict the map; parts of the scene may "
            "look alike"
        )
    return MapTrust(tuple(sorted(images)), "doubtful" if reasons else "good", tuple(reasons))


def _median_angle(model: pycolmap.Reconstruction) -> float:
    """Median over points of the largest angle between two rays to them, in degrees."""
    centres = {number: model.images[number].projection_center() for number in model.reg_image_ids()}
    points = list(model.points3D.values())
    angles = [0.0]
    for point in points[:: len(points) // _ANGLE_SAMPLES + 1]:
        directions = np.array([centres[seen.image_id] for seen in point.track.elements]) - point.xyz
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        angles.append(
            float(np.degrees(np.arccos(np.clip((directions @ directions.T).min(), -1, 1))))
        )
    return float(np.median(angles))
