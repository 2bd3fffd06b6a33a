"""Visual localization: poses of photos in a map.

Each query is matched with given photos of the map. Its matches become 2D-3D correspondences, and
LO-RANSAC estimates its pose from them. The figures are the percentages of queries within limits of
distance and angle of their true poses (Sattler et al., "Benchmarking 6DOF Outdoor Visual
Localization in Changing Conditions", CVPR 2018). A query without a pose counts as wrong.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.evaluation.aachen import QUERY_LISTS, read_aachen
from d2net.evaluation.cache import CachedFeatures, CachedPhotos
from d2net.evaluation.held_out import read_held_out
from d2net.evaluation.inloc import read_inloc, scanned_map, telephone
from d2net.evaluation.localization_dataset import (
    LocalizationDataset,
    Query,
    QueryMap,
    triangulated_map,
)
from d2net.evaluation.results import (
    FEATURES,
    OVERALL,
    Drawing,
    Figures,
    Metric,
    PairResult,
    Protocol,
    Result,
    averaged,
)
from d2net.features import Features, LazyFeatures
from d2net.geometry.absolute import AbsolutePoseOptions
from d2net.geometry.alignment import rotation_angle
from d2net.geometry.cameras import check_photo_size, project
from d2net.io.colmap_model import find_model
from d2net.io.poses import read_poses, write_poses
from d2net.mapping.localize import NUM_RETRIEVED, pose_threshold
from d2net.mapping.query_pose import QueryPose, estimate_query_pose
from d2net.mapping.settings import MappingSettings
from d2net.matching.pair_selection import PairChoice, choose_pairs
from d2net.matching.retrieval import GlobalDescriptors
from d2net.progress import Progress, no_progress

if TYPE_CHECKING:
    import pycolmap

MAX_ERROR = 4.0
"""Largest reprojection error of a triangulated point in pixels (hloc's and COLMAP's)."""

PROTOCOL = Protocol(
    "localization",
    "Localization in a map",
    "Each query photo is matched with photos of a map whose points are known, and its pose is "
    "estimated from the matches. A figure named by a distance and an angle is the percentage of "
    "queries whose pose is within both of the true one. A query without a pose counts as wrong.",
    item=("query", "queries"),
    correct="agreeing with the true pose or, where it is not known, with the estimated one",
)
_LOCALIZED = Metric("localized", "queries that have a pose", "%")
_INLIERS = Metric("inliers", "mean number of correspondences that agree with the pose")
_CORRESPONDENCES = Metric(
    "2D-3D matches",
    "mean number of a query's matches with points of the map",
    higher_is_better=None,
)


@dataclass(frozen=True)
class LocalizationSettings:
    """Where the parts of a dataset are, and how queries are localized.

    Attributes:
        pairs: lists of a query and a photo of the map; found in the dataset's folder if empty.
        queries: lists of queries with intrinsics (Aachen), found likewise.
        model: folder of a COLMAP model of the map (Aachen), found likewise.
        truth: true poses of the queries as `name qw qx qy qz tx ty tz`. Without it nothing is
            judged, except in a scene, whose model has the true poses.
        night: folder for the queries of a scene as they would look at night (see `night`), which
            are localized too; None for the day alone.
        threshold: largest reprojection error of an inlier in pixels; None for the dataset's usual
            one.
    """

    pairs: tuple[Path, ...] = ()
    queries: tuple[Path, ...] = ()
    model: Path | None = None
    truth: Path | None = None
    night: Path | None = None
    threshold: float | None = None


def find_dataset(folder: Path, settings: LocalizationSettings) -> LocalizationDataset:
    """Read the dataset in a folder: Aachen Day-Night, InLoc, or a scene.

    Aachen: photos, `3D-models` and `queries/*_time_queries_with_intrinsics.txt`. InLoc:
    `database/cutouts`, `database/alignments` and `query`. Both: lists of pairs
    `pairs-query-*.txt`. A scene: photos and a COLMAP model of their cameras, without lists.

    Raises:
        InputError: no such folder, none of these layouts, or settings that do not fit the layout.
        FormatError: files are broken, or do not belong together.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    scene_model = find_model(folder)
    if scene_model is not None and not (settings.pairs or settings.queries or settings.model):
        return read_held_out(folder, scene_model, settings.night)
    if settings.night is not None:
        raise InputError(
            "only the queries of a scene can be turned into night photos: a folder with photos and "
            "a COLMAP model, without lists"
        )
    is_inloc = (folder / "database" / "cutouts").is_dir()
    query_lists = settings.queries or sorted((folder / "queries").glob(QUERY_LISTS))
    if not is_inloc and not query_lists:
        raise InputError(
            f"{folder} is neither in Aachen Day-Night's layout (queries/{QUERY_LISTS}, 3D-models, "
            "images_upright) nor in InLoc's (database/cutouts, query), nor a scene with a COLMAP "
            "model of its photos"
        )
    pair_lists = settings.pairs or sorted(folder.glob("pairs-query-*.txt"))
    if not pair_lists:
        raise InputError(
            f"{folder} holds no list of pairs (pairs-query-*.txt, lines of a query and a photo of "
            "the map); give one"
        )
    if is_inloc:
        return read_inloc(folder, pair_lists)
    return read_aachen(folder, query_lists, pair_lists, settings.model)


def evaluate_localization(
    source: CachedFeatures,
    folder: Path,
    settings: LocalizationSettings | None = None,
    *,
    submission: Path | None = None,
    progress: Progress = no_progress,
) -> Result:
    """Localize the queries of a dataset with a source's features.

    Args:
        source: features.
        folder: see `find_dataset`.
        settings: see `LocalizationSettings`.
        submission: file to write the poses to, in the form of the benchmark's site. Queries without
            a pose are left out, which counts as wrong there.
        progress: called after each photo, each pair matched and each query localized.

    Returns:
        Per query: `localized`, 100 if it has a pose; `inliers`; `2D-3D matches`; `features`; with
        true poses `position error` in metres (in a scene: percent of its cameras' spread),
        `rotation error` in degrees, and 100 or 0 for each of the limits, such as "0.25 m, 2°". Per
        group (day, night; floors) and overall: means, so that limits are percentages, and `median
        position error` and `median rotation error` of the queries that have a pose.

    Raises:
        InputError: settings that make no sense, or a photo of another size than its camera.
        FormatError: files are broken, or do not belong together.
    """
    settings = settings or LocalizationSettings()
    dataset = find_dataset(folder, settings)
    true_poses = dataset.true_poses
    if settings.truth is not None:
        true_poses = _read_true_poses(settings.truth, dataset.queries)
    files = dataset.files()
    results, poses = [], {}
    with CachedPhotos(source, folder, files, progress) as photos:
        queries, query_map = _map(dataset, photos, progress)
        for done, query in enumerate(queries):
            progress("localizing", done, len(queries))
            true_pose = None if true_poses is None else true_poses[query.name]
            localized = _localize(query, dataset, photos, query_map, settings.threshold)
            if localized.estimate.pose is not None:
                poses[query.name] = localized.estimate.pose.cam_from_world
            best_photo, drawing = _drawing(localized, true_pose, photos)
            names = tuple(
                Path(os.path.relpath(files[name], folder)).as_posix()
                for name in (query.name, best_photo)
            )
            figures = _figures(localized, dataset, true_pose)
            results.append(PairResult(query.group, names, figures, drawing))
        progress("localizing", len(queries), len(queries))
    if submission is not None:
        write_poses(submission, poses)

    limits, errors, medians = [], [], []
    if true_poses is not None:
        text = "queries within both limits of the true pose"
        limits = [Metric(limit.name, text, "%") for limit in dataset.limits]
        for name, unit in (("position error", dataset.unit), ("rotation error", "°")):
            errors.append(Metric(name, unit=unit, higher_is_better=False))
            text = "of the queries that have a pose"
            medians.append(Metric(f"median {name}", text, unit, higher_is_better=False))
    counts = [_LOCALIZED, _INLIERS, _CORRESPONDENCES, FEATURES]
    return Result(
        PROTOCOL,
        source.name,
        str(folder),
        source.provenance,
        asdict(settings),
        results,
        _groups(results),
        [*limits, *medians, *counts],
        pair_metrics=[_INLIERS, *limits, *errors, *counts[2:]],
        dataset=dataset.name,
    )


def _read_true_poses(path: Path, queries: Sequence[Query]) -> Mapping[str, pycolmap.Rigid3d]:
    poses = read_poses(path)
    missing = [query.name for query in queries if Path(query.name).name not in poses]
    if missing:
        raise FormatError(
            f"{path} lacks the pose of {missing[0]} ({len(missing)} of {len(queries)} queries); "
            "give a list of the queries whose poses it has"
        )
    return {query.name: poses[Path(query.name).name] for query in queries}


def _map(
    dataset: LocalizationDataset, photos: CachedPhotos, progress: Progress
) -> tuple[list[Query], QueryMap]:
    """Match all pairs and build the map; the queries with the photos they are matched with."""
    queries, pairs, max_error = dataset.queries, dataset.map_pairs, MAX_ERROR
    if pairs is None and dataset.model is not None:
        names = sorted(image.name for image in dataset.model.images.values())
        features = LazyFeatures(photos.features, names)
        retrieval = GlobalDescriptors.build(features)
        pairs = choose_pairs(PairChoice(), names, descriptors=retrieval)
        queries = []
        for query in dataset.queries:
            similar = retrieval.query(photos.features(query.name), NUM_RETRIEVED)
            # A query without features is similar to no photo. Any photo will do: it is not found.
            candidates = tuple(name for name, _ in similar) or tuple(names[:1])
            queries.append(query._replace(candidates=candidates))
        sigmas = [float(f.uncertainty.median()) for f in features.values() if len(f)]
        max_error = MappingSettings().thresholds(sigmas).reprojection
    pairs = pairs or []
    query_pairs = [(query.name, name) for query in queries for name in query.candidates]
    photos.match([*pairs, *query_pairs], progress)
    progress("mapping", 0, None)
    if dataset.model is None:
        return queries, scanned_map(dataset.photos, photos)
    return queries, triangulated_map(dataset.model, photos, pairs, max_error)


@dataclass(frozen=True)
class _Localized:
    """A query and its pose in the map; `threshold` is the largest error of an inlier in pixels."""

    camera: pycolmap.Camera
    features: Features
    threshold: float
    estimate: QueryPose


def _localize(
    query: Query,
    dataset: LocalizationDataset,
    photos: CachedPhotos,
    query_map: QueryMap,
    threshold: float | None,
) -> _Localized:
    features = photos.features(query.name)
    camera = query.camera or telephone(features.image_size)
    check_photo_size(query.name, features.image_size, camera)
    threshold = threshold or dataset.threshold or pose_threshold(features)
    estimate = estimate_query_pose(
        features,
        camera,
        AbsolutePoseOptions(threshold=threshold),
        query_map.groups(query.candidates),
        lambda name: photos.matches(query.name, name),
        query_map.points_of,
    )
    return _Localized(camera, features, threshold, estimate)


def _figures(
    localized: _Localized, dataset: LocalizationDataset, true_pose: pycolmap.Rigid3d | None
) -> Figures:
    estimate = localized.estimate
    pose = estimate.pose
    figures: Figures = {
        "localized": 0.0 if pose is None else 100.0,
        "inliers": float(np.count_nonzero(estimate.inliers)),
        "2D-3D matches": float(len(estimate.correspondences)),
        "features": float(len(localized.features)),
    }
    position, rotation = np.inf, np.inf
    if pose is not None and true_pose is not None:
        true_centre = true_pose.inverse().translation
        position = float(np.linalg.norm(pose.centre - true_centre)) / dataset.unit_length
        rotation = rotation_angle(
            pose.cam_from_world.rotation.matrix(), true_pose.rotation.matrix()
        )
        figures["position error"], figures["rotation error"] = position, rotation
    if true_pose is not None:
        for limit in dataset.limits:
            within = position <= limit.position and rotation <= limit.rotation
            figures[limit.name] = 100.0 if within else 0.0
    return figures


def _drawing(
    localized: _Localized, true_pose: pycolmap.Rigid3d | None, photos: CachedPhotos
) -> tuple[str, Drawing]:
    """The photo of the map that shares most inliers, and the matches with it.

    Correct matches agree with the true pose or, where it is not known, with the estimated one.
    """
    estimate = localized.estimate
    correspondences = estimate.correspondences
    pixels = localized.features.keypoints.double().numpy()[correspondences.rows]
    name = estimate.best_photo or estimate.photos[0]
    correct = estimate.inliers
    if true_pose is not None:
        errors = project(localized.camera, np.asarray(true_pose * correspondences.points)) - pixels
        correct = np.linalg.norm(errors, axis=1) <= localized.threshold  # False for NaN
    shown = correspondences.photos == estimate.photos.index(name)
    partners = photos.features(name).keypoints.double().numpy()[correspondences.map_rows[shown]]
    return name, Drawing(pixels[shown], partners, correct[shown])


def _groups(results: Sequence[PairResult]) -> dict[str, Figures]:
    """Means of the figures, but medians of the errors."""
    groups = averaged(results)
    for group, figures in groups.items():
        members = [result.figures for result in results if group in (OVERALL, result.group)]
        for name in ("position error", "rotation error"):
            if figures.pop(name, None) is not None:
                values = [of_query[name] for of_query in members if name in of_query]
                figures[f"median {name}"] = float(np.median(values))
    return groups
