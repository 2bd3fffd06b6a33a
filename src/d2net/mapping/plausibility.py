"""How far a map can be trusted: photos that do not belong in it, and its verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import pycolmap
from numpy.typing import NDArray

from d2net.geometry.cameras import possible_focal_length, project, quiet_colmap, rays
from d2net.mapping.mapper import flat_configurations, verified_pairs
from d2net.mapping.settings import MIN_PHOTOS
from d2net.wording import count

MapVerdict: TypeAlias = Literal["good", "doubtful"]

_MIN_PHOTO_POINTS = 10  # a photo with fewer points could be anywhere
_MAX_DEVIATION, _MAX_SMALLEST_DEVIATION = 0.2, 0.1  # degrees; docs/experiments.md, Maps
_MAX_DEVIATION_PHOTOS = 200  # the covariance takes 2.5 s of CPU, and cubic time
_MAX_FLAT_SHARE = 0.5  # of the pairs
_MAX_CONTRADICTING_SHARE = 0.1  # of the verified matches; docs/experiments.md, Maps
_MIN_COMMON_SHARE = 0.05  # of a pair's verified matches with points; else it contradicts the map


@dataclass(frozen=True)
class MapTrust:
    """The verdict on one map of these photos (sorted), and the reasons if it is doubtful.

    The cameras of the `uncertain` photos are barely constrained.
    """

    photos: tuple[str, ...]
    verdict: MapVerdict
    reasons: tuple[str, ...] = ()
    uncertain: tuple[str, ...] = ()


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
    models: Sequence[pycolmap.Reconstruction], *, refine: bool, kept: Set[str] = frozenset()
) -> tuple[list[pycolmap.Reconstruction], dict[str, str]]:
    """Remove photos with impossible cameras, or with next to no points, and adjust the others.

    The photos `kept` stay where they are, and so do the others in their models. Returns the models
    that still have enough photos, and the reasons of the removed photos by name.
    """
    removed = {}
    for model in models:
        is_free = kept.isdisjoint(image.name for image in model.images.values())
        while model.num_reg_images() >= MIN_PHOTOS:
            faulty = []
            for image in (model.images[number] for number in model.reg_image_ids()):
                reason = camera_fault(model.cameras[image.camera_id])
                if reason is None and image.num_points3D < _MIN_PHOTO_POINTS:
                    reason = f"only {count(image.num_points3D, 'point')} in the map"
                if reason is not None and image.name not in kept:
                    removed[image.name] = reason
                    faulty.append(image.frame_id)
            if not faulty:
                break
            for frame in faulty:
                model.deregister_frame(frame)
            model.tear_down()  # COLMAP computes no covariance beside photos without a pose
            if is_free and model.num_reg_images() >= MIN_PHOTOS:
                with quiet_colmap():  # pycolmap.bundle_adjustment logs all the same
                    _bundle_adjuster(model, refine=refine).solve()
    return [model for model in models if model.num_reg_images() >= MIN_PHOTOS], removed


def judge_map(model: pycolmap.Reconstruction, database: Path) -> MapTrust:
    """Judge a map by its points and by the verified pairs of its photos.

    The database may be missing, if poses were known.
    """
    images = {i.name: i for i in (model.images[number] for number in model.reg_image_ids())}
    pairs = [p for p in verified_pairs(database) if p[0] in images and p[1] in images]
    reasons = []
    flat = sum(geometry.config in flat_configurations() for _, _, geometry in pairs)
    cameras = "--camera-params"
    if model.num_cameras() > 1:
        cameras += ", or --camera-mode single if one camera took all photos"
    guessed = False
    if pairs:
        with pycolmap.Database.open(database) as opened:
            known = {c.camera_id: c.has_prior_focal_length for c in opened.read_all_cameras()}
            stored = opened.read_all_images()
        guessed = not all(known[image.camera_id] for image in stored if image.name in images)
    deviations = _rotation_deviations(model, refine=guessed)
    if np.median(deviations[np.triu_indices_from(deviations, 1)]) > _MAX_DEVIATION:
        reasons.append(
            "the matches barely constrain the cameras; take photos in between and step "
            "sideways" + (f", or give {cameras}" if guessed else "")
        )
    if guessed and flat > _MAX_FLAT_SHARE * len(pairs):
        reasons.append(
            "the scene is flat and focal lengths are guessed, so depth is arbitrary; "
            f"take photos from more sides, or give {cameras}"
        )
    observed = {
        name: np.array([point.point3D_id for point in image.points2D], np.uint64)
        for name, image in images.items()
    }
    contradicting = []  # numbers of matches
    for first, second, geometry in pairs:
        rows, others = geometry.inlier_matches.T
        points = observed[first][rows]
        common = (points == observed[second][others]) & (points != pycolmap.INVALID_POINT3D_ID)
        if common.mean() < _MIN_COMMON_SHARE:
            contradicting.append(len(common))
    num_matches = sum(len(geometry.inlier_matches) for _, _, geometry in pairs)
    if sum(contradicting) > _MAX_CONTRADICTING_SHARE * num_matches:
        reasons.append(
            f"{len(contradicting)} of {len(pairs)} pairs contradict the map, which has points for "
            "few of their matches; parts of the scene may look alike"
            + (f", or focal lengths are wrong: give {cameras}" if guessed else "")
        )
    smallest = zip(images, deviations.min(axis=0), strict=True)
    uncertain = tuple(sorted(name for name, d in smallest if d > _MAX_SMALLEST_DEVIATION))
    verdict: MapVerdict = "doubtful" if reasons else "good"
    return MapTrust(tuple(sorted(images)), verdict, tuple(reasons), uncertain)


def _bundle_adjuster(
    model: pycolmap.Reconstruction, *, refine: bool
) -> pycolmap.CeresBundleAdjuster:
    """Adjusts all photos and points of a model, and its intrinsics with `refine`."""
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_focal_length = options.refine_extra_params = refine
    options.print_summary = False
    config = pycolmap.BundleAdjustmentConfig()
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.THREE_POINTS)
    for number in model.reg_image_ids():
        config.add_image(number)
    return pycolmap.create_default_ceres_bundle_adjuster(options, config, model)


def _rotation_deviations(model: pycolmap.Reconstruction, *, refine: bool) -> NDArray[np.float64]:
    """Standard deviations of the rotation between any two photos in degrees; infinite if unknown.

    They follow from the reprojection errors. With `refine`, the intrinsics are uncertain, too.
    """
    poses = [(number, model.images[number].cam_from_world()) for number in model.reg_image_ids()]
    if len(poses) > _MAX_DEVIATION_PHOTOS:
        return np.zeros((len(poses), len(poses)))
    deviations = np.full((len(poses), len(poses)), math.inf)
    options = pycolmap.BACovarianceOptions()
    options.params = pycolmap.BACovarianceOptionsParams.POSES
    with quiet_colmap():
        adjuster = _bundle_adjuster(model, refine=refine)
        found = pycolmap.estimate_ba_covariance(options, model, adjuster)
    if found is not None:
        model.update_point_3d_errors()
        error = np.degrees(np.median([point.error for point in model.points3D.values()]))
        for (row, a), (column, b) in combinations(enumerate(poses), 2):
            both = found.get_cam2_cov_from_cam1(*a, *b)
            if both is not None:  # a photo without points has none
                turn = np.sqrt(np.trace(both[:3, :3])) * error
                deviations[row, column] = deviations[column, row] = turn
    # COLMAP gives only NaN for some wrong maps.
    return np.where(np.isnan(deviations), math.inf, deviations)
