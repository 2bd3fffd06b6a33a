"""Visual localization: poses of photos in a map.

Each query is matched with given photos of the map. Its matches become 2D-3D correspondences, and
LO-RANSAC estimates its pose from them. The figures are the percentages of queries within limits of
distance and angle of their true poses (Sattler et al., "Benchmarking 6DOF Outdoor Visual
Localization in Changing Conditions", CVPR 2018). A query without a pose counts as wrong.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError
from d2net.evaluation.cache import CachedPhotos, CachedSource
from d2net.evaluation.localization_dataset import (
    LocalizationDataset,
    LocalizationSettings,
    Query,
    find_dataset,
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
from d2net.geometry.absolute_pose import AbsolutePoseOptions
from d2net.geometry.alignment import rotation_angle
from d2net.geometry.cameras import check_photo_size, project
from d2net.io.exif import check_photo_sizes
from d2net.io.poses import read_poses, write_poses
from d2net.mapping.localize import NUM_RETRIEVED, pose_threshold
from d2net.mapping.query_pose import (
    QueryPose,
    covisible_groups,
    estimate_query_pose,
    keypoint_points,
    observed_points,
)
from d2net.mapping.settings import MappingSettings
from d2net.mapping.triangulate import triangulate
from d2net.matching.pair_selection import PairChoice, choose_pairs
from d2net.matching.retrieval import GlobalDescriptors
from d2net.progress import Progress, no_progress

if TYPE_CHECKING:
    import pycolmap

MAX_ERROR = 4.0  # largest reprojection error of a triangulated point in pixels (as in COLMAP)

PROTOCOL = Protocol(
    "localization",
    "Localization in a map",
    "Each query photo is matched with photos of a map whose points are known, and its pose is "
    "estimated from the matches. A figure named by a distance and an angle is the percentage of "
    "queries within both limits of the true pose. A query without a pose counts as wrong.",
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


def evaluate_localization(
    source: CachedSource,
    folder: Path,
    settings: LocalizationSettings | None = None,
    *,
    submission: Path | None = None,
    progress: Progress = no_progress,
) -> Result:
    """Localize the queries of a dataset with a source's features.

    `submission` is a file to write the poses to, in the format of the benchmark's website. Queries
    without a pose are left out, which counts as wrong there.

    Returns:
        Per query: `localized`, 100 if it has a pose; `inliers`; `2D-3D matches`; `features`; with
        true poses `position error` in metres (in a scene: percent of its cameras' spread),
        `rotation error` in degrees, and 100 or 0 for each of the limits, such as "0.25 m, 2°". Per
        group (day, night) and overall: the means (that of a limit is the percentage of queries
        within it), and `median position error` and `median rotation error` of those with a pose.
    """
    settings = settings or LocalizationSettings()
    if settings.threshold is not None:
        AbsolutePoseOptions(threshold=settings.threshold)  # checks it
    dataset = find_dataset(folder, settings)
    true_poses = dataset.true_poses
    if settings.truth is not None:
        true_poses = _read_true_poses(settings.truth, dataset.queries)
    files = dataset.files()
    known = [*dataset.queries, *dataset.model.images.values()]
    check_photo_sizes((files[photo.name], photo.camera) for photo in known)
    results, poses = [], {}
    with CachedPhotos(source, folder, files, progress) as photos:
        queries, with_points = _build_map(dataset, photos, progress)
        points_of, observed = keypoint_points(with_points), observed_points(with_points)
        for done, query in enumerate(queries):
            progress("localizing", done, len(queries))
            true_pose = None if true_poses is None else true_poses[query.name]
            features = photos.features(query.name)
            check_photo_size(query.name, features.image_size, query.camera)
            threshold = settings.threshold or dataset.threshold or pose_threshold(features)
            estimate = estimate_query_pose(
                features,
                query.camera,
                AbsolutePoseOptions(threshold=threshold),
                covisible_groups(query.candidates, observed),
                partial(photos.matches, query.name),
                points_of,
            )
            if estimate.pose is not None:
                poses[query.name] = estimate.pose.cam_from_world
            # The picture shows the photo of the map that shares most inliers.
            best_photo = estimate.best_photo or estimate.photos[0]
            drawing = _drawing(query, features, estimate, photos, best_photo, threshold, true_pose)
            names = tuple(
                Path(os.path.relpath(files[name], folder)).as_posix()
                for name in (query.name, best_photo)
            )
            figures = _figures(estimate, dataset, true_pose)
            figures["features"] = float(len(features))
            results.append(PairResult(query.group, names, figures, drawing))
        progress("localizing", len(queries), len(queries))
    if submission is not None:
        write_poses(submission, poses, photos=(query.name for query in queries))

    limits, error_metrics, median_metrics = [], [], []
    if true_poses is not None:
        text = "queries within both limits of the true pose"
        limits = [Metric(limit.name, text, "%") for limit in dataset.limits]
        for name, unit in (("position error", dataset.unit), ("rotation error", "°")):
            error_metrics.append(Metric(name, unit=unit, higher_is_better=False))
            text = "of the queries that have a pose"
            median_metrics.append(Metric(f"median {name}", text, unit, higher_is_better=False))
    counts = [_LOCALIZED, _INLIERS, _CORRESPONDENCES, FEATURES]
    return Result(
        PROTOCOL,
        *source.described(folder),
        asdict(settings),
        results,
        _groups(results),
        [*limits, *median_metrics, *counts],
        pair_metrics=[_INLIERS, *limits, *error_metrics, *counts[2:]],
        dataset=dataset.name,
    )


def _read_true_poses(path: Path, queries: Sequence[Query]) -> Mapping[str, pycolmap.Rigid3d]:
    poses = read_poses(path)
    names = {q.name: q.name if q.name in poses else Path(q.name).name for q in queries}
    counts = Counter(names.values())
    missing = [query for query, name in names.items() if name not in poses or counts[name] > 1]
    if missing:
        raise FormatError(
            f"{path} lacks the pose of {missing[0]} ({len(missing)} of {len(queries)} queries); "
            "list only queries that it has, by their paths where file names repeat"
        )
    return {query: poses[name] for query, name in names.items()}


def _build_map(
    dataset: LocalizationDataset, photos: CachedPhotos, progress: Progress
) -> tuple[list[Query], pycolmap.Reconstruction]:
    """The queries with their candidates, and the map, triangulated after matching all pairs."""
    queries, pairs, max_error = dataset.queries, dataset.map_pairs, MAX_ERROR
    if pairs is None:
        names = sorted(image.name for image in dataset.model.images.values())
        features = LazyFeatures(photos.features, names)
        retrieval = GlobalDescriptors.build(features)
        pairs = choose_pairs(PairChoice(), names, descriptors=retrieval)
        queries = []
        for query in dataset.queries:
            similar = retrieval.query(photos.features(query.name), NUM_RETRIEVED)
            # A query without features is similar to no photo, and any will do.
            candidates = tuple(name for name, _ in similar) or tuple(names[:1])
            queries.append(query._replace(candidates=candidates))
        sigmas = [float(f.uncertainty.median()) for f in features.values() if len(f)]
        max_error = MappingSettings().thresholds(sigmas).reprojection
    query_pairs = [(query.name, name) for query in queries for name in query.candidates]
    photos.match([*pairs, *query_pairs], progress)
    progress("mapping", 0, None)
    keypoints = {}
    for image in dataset.model.images.values():
        found = photos.features(image.name)
        check_photo_size(image.name, found.image_size, image.camera)
        keypoints[image.name] = found.keypoints.numpy()
    matches = ((a, b, photos.matches(a, b).indices.numpy()) for a, b in pairs)
    return queries, triangulate(dataset.model, keypoints, matches, max_error=max_error)


def _figures(
    estimate: QueryPose, dataset: LocalizationDataset, true_pose: pycolmap.Rigid3d | None
) -> Figures:
    pose = estimate.pose
    figures: Figures = {
        "localized": 0.0 if pose is None else 100.0,
        "inliers": float(np.count_nonzero(estimate.inliers)),
        "2D-3D matches": float(len(estimate.correspondences)),
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
    query: Query,
    features: Features,
    estimate: QueryPose,
    photos: CachedPhotos,
    photo: str,
    threshold: float,
    true_pose: pycolmap.Rigid3d | None,
) -> Drawing:
    """The matches with a photo of the map.

    Correct ones agree with the true pose or, where it is not known, with the estimated one.
    """
    found, correct = estimate.correspondences, estimate.inliers
    pixels = features.keypoints.double().numpy()[found.rows]
    if true_pose is not None:
        errors = project(query.camera, np.asarray(true_pose * found.points)) - pixels
        correct = np.linalg.norm(errors, axis=1) <= threshold  # False for NaN
    shown = found.photos == estimate.photos.index(photo)
    partners = photos.features(photo).keypoints.double().numpy()[found.map_rows[shown]]
    return Drawing(pixels[shown], partners, correct[shown])


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
