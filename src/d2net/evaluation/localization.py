"""Photos placed in a map, as the visual localization benchmarks ask for.

Each query is matched with the map's photos that a list names for it (retrieval is not what is
measured), its matches become pairs of a pixel and a place in the world, and its pose is what most
of them agree with (LO-RANSAC). Counted are the queries within distances and angles of their true
poses (Sattler et al., "Benchmarking 6DOF Outdoor Visual Localization in Changing Conditions",
CVPR 2018). A query without a pose counts as wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.held_out import held_out, queries_by_looks
from d2net.evaluation.localization_data import LocalizationData, Query, find_dataset
from d2net.evaluation.localization_map import QueryMap, largest_error, map_pairs, open_map
from d2net.evaluation.photos import Photos, countdown
from d2net.evaluation.results import Drawing, Figures, PairResult, Result, averaged
from d2net.features import Features, Matches
from d2net.geometry.absolute import AbsolutePoseOptions
from d2net.geometry.alignment import rotation_angle
from d2net.geometry.cameras import project
from d2net.io.colmap_model import find_model
from d2net.io.poses import read_poses, write_poses
from d2net.mapping.localize import pose_threshold
from d2net.mapping.query_pose import QueryPose, estimate_query_pose

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]

_MEDIANS = ("position error", "rotation error")
_OF_ONE_QUERY = (*_MEDIANS, "position deviation")


def evaluate_localization(
    source: CachedFeatures,
    folder: Path,
    *,
    pairs: Sequence[Path] = (),
    queries: Sequence[Path] = (),
    model: Path | None = None,
    truth: Path | None = None,
    night: Path | None = None,
    submission: Path | None = None,
    num_covisible: int = 20,
    threshold: float | None = None,
    seed: int = 0,
    max_keypoints: int | None = None,
    device: str = "cpu",
    report: Callable[[str, int], None] | None = None,
) -> Result:
    """Place the queries of a benchmark by a source's features.

    Args:
        source: features.
        folder: Aachen Day-Night (v1.0, v1.1), InLoc or a scene, see
            `localization_data.find_dataset`.
        pairs: lists of pairs, likewise.
        queries: lists of queries, likewise.
        model: of the map, likewise.
        truth: true poses of the queries, in the form of a submission; without it nothing is judged
            but a scene, whose model tells them.
        night: folder for the queries of a scene as they would look at night (see `night`), to be
            placed, too; None for the day alone.
        submission: file to write the poses to, as the benchmark's site wants them. Queries
            without a pose are left out, which counts as wrong there.
        num_covisible: each photo of the map is matched with so many that see most of the same
            points of the model (Aachen).
        threshold: largest reprojection error of an inlier in pixels; None for the layout's usual
            one (12 for Aachen, 48 for InLoc's photos of 4032 px, that of `d2net localize` for a
            scene).
        seed: of RANSAC's samples.
        max_keypoints: the best by score; None for all.
        device: where descriptors are compared.
        report: called after each step (a pair matched, the map built, a query placed) with its
            name and how many steps are left.

    Returns:
        Per query: `localized`, 100 if it has a pose; `inliers`; `2D-3D matches`; `features`;
        `position deviation` in metres (of a scene in percent of its cameras' spread), as the
        inliers tell it; with truth `position error` likewise, `rotation error` in degrees, and 100
        or 0 for each of the limits, as "0.25 m, 2°". Per group (day, night; floors) and overall:
        means, so that the limits are percentages, and `median position error` and `median
        rotation error` of those that have a pose.

    Raises:
        InputError: arguments that make no sense.
        FormatError: files that are broken or do not belong together.
    """
    data = _dataset(folder, pairs, queries, model, night, seed)
    true = data.truth if truth is None else _true_poses(truth, data.queries)
    options, threshold = AbsolutePoseOptions(seed=seed), threshold or data.threshold
    photos = Photos(source, data.photos, max_keypoints, device, data.elsewhere)
    if data.layout == "scene":
        data = replace(data, queries=queries_by_looks(data, photos))
    of_map = map_pairs(data, photos, num_covisible)
    of_queries = [(query.name, name) for query in data.queries for name in query.candidates]
    unmatched = photos.unmatched([*of_map, *of_queries])
    advance = countdown(len(unmatched) + (data.model is not None) + len(data.queries), report)
    photos.match(unmatched, advance)
    max_error = largest_error(data, photos)
    map_ = open_map(data, photos, of_map, max_error)
    if data.model is not None:
        advance("map")
    results, poses = [], {}
    with photos.matches() as matches:
        for query in data.queries:
            placed = _place(query, photos, matches, map_, options, threshold)
            if placed.found.pose is not None:
                poses[query.name] = placed.found.pose.cam_from_world
            known = None if true is None else true[query.name]
            best, drawing = _drawing(placed, known, photos)
            names = [
                Path(os.path.relpath(photos.path(name), folder)).as_posix()
                for name in (query.name, best)
            ]
            figures = _figures(placed, data, known)
            results.append(PairResult(query.group, (names[0], names[1]), figures, drawing))
            advance(query.name)
    if submission is not None:
        write_poses(submission, poses)
    limits = [] if true is None else [limit.name for limit in data.limits]
    medians = [] if true is None else [f"median {name}" for name in _MEDIANS]
    return Result(
        protocol="localization",
        method=source.name,
        folder=str(folder),
        provenance=source.source.provenance(),
        settings={
            "layout": data.layout,
            "pairs": [str(path) for path in pairs],
            "queries": [str(path) for path in queries],
            "model": None if model is None else str(model),
            "truth": None if truth is None else str(truth),
            "num_covisible": num_covisible,
            "max_error": max_error,
            "threshold": threshold,
            "night": night is not None,
            "seed": seed,
            "max_keypoints": max_keypoints,
        },
        pairs=results,
        groups=_groups(results),
        headline=[*limits, *medians, "localized", "inliers", "2D-3D matches", "features"],
        curve={},
        ranking="inliers",
    )


def _dataset(
    folder: Path,
    pairs: Sequence[Path],
    queries: Sequence[Path],
    model: Path | None,
    night: Path | None,
    seed: int,
) -> LocalizationData:
    """A scene, where the folder holds a model and no lists are given; otherwise a benchmark's."""
    own = find_model(folder) if not pairs and not queries and model is None else None
    if own is not None:
        return held_out(folder, own, night, seed)
    if night is not None:
        raise InputError(
            "queries are made to look as at night for a scene only: a folder with photos and a "
            "COLMAP model, without lists"
        )
    return find_dataset(folder, pairs=pairs, queries=queries, model=model)


def _true_poses(path: Path, queries: Sequence[Query]) -> dict[str, pycolmap.Rigid3d]:
    poses = read_poses(path)
    missing = [query.name for query in queries if Path(query.name).name not in poses]
    if missing:
        raise FormatError(
            f"{path} lacks the pose of {missing[0]} ({len(missing)} of {len(queries)} queries); "
            "give a list of those queries whose poses it has"
        )
    return {query.name: poses[Path(query.name).name] for query in queries}


@dataclass(frozen=True)
class _Placed:
    """A query and what was found.

    Attributes:
        query: what was placed.
        camera: its camera.
        threshold: largest reprojection error of an inlier in pixels.
        features: of the query.
        found: its place in the map.
    """

    query: Query
    camera: pycolmap.Camera
    threshold: float
    features: Features
    found: QueryPose

    @property
    def pixels(self) -> Array:
        """N x 2, pixels of the correspondences."""
        return np.asarray(self.features.keypoints.double().numpy()[self.found.correspondences.rows])


def _place(
    query: Query,
    photos: Photos,
    matches: Callable[[str, str], Matches],
    map_: QueryMap,
    options: AbsolutePoseOptions,
    threshold: float | None,
) -> _Placed:
    features = photos.features(query.name)
    camera = query.camera(features.image_size)
    options = replace(options, threshold=threshold or pose_threshold(features))
    found = estimate_query_pose(
        features,
        camera,
        options,
        map_.groups(query.candidates),
        lambda name: matches(query.name, name),
        map_.places,
    )
    return _Placed(query, camera, options.threshold, features, found)


def _figures(placed: _Placed, data: LocalizationData, true: pycolmap.Rigid3d | None) -> Figures:
    pose = placed.found.pose
    figures: Figures = {
        "localized": 0.0 if pose is None else 100.0,
        "inliers": float(np.count_nonzero(placed.found.inliers)),
        "2D-3D matches": float(len(placed.found.correspondences)),
        "features": float(len(placed.features)),
    }
    position, rotation = np.inf, np.inf
    if pose is not None:
        figures["position deviation"] = pose.position_deviation / data.unit
        if true is not None:
            position = float(np.linalg.norm(pose.centre - true.inverse().translation)) / data.unit
            found = pose.cam_from_world.rotation.matrix()
            rotation = rotation_angle(found, true.rotation.matrix())
            figures["position error"], figures["rotation error"] = position, rotation
    if true is not None:
        for limit in data.limits:
            within = position <= limit.position and rotation <= limit.rotation
            figures[limit.name] = 100.0 if within else 0.0
    return figures


def _drawing(placed: _Placed, true: pycolmap.Rigid3d | None, photos: Photos) -> tuple[str, Drawing]:
    """The photo of the map that most inliers are of, and the matches with it.

    Right are those that agree with the true pose or, where it is not known, with the found one.
    """
    found, links, pixels = placed.found, placed.found.correspondences, placed.pixels
    name = found.best_photo or found.photos[0]
    right = found.inliers
    if true is not None:
        errors = project(placed.camera, np.asarray(true * links.points)) - pixels
        right = np.linalg.norm(errors, axis=1) <= placed.threshold  # False for NaN
    shown = links.photos == found.photos.index(name)
    partners = photos.features(name).keypoints.numpy()[links.map_rows[shown]]
    return name, Drawing(pixels[shown].astype(np.float32), partners, right[shown])


def _groups(results: Sequence[PairResult]) -> dict[str, Figures]:
    """Means of what all queries have, and medians of the errors of those that have a pose."""
    common = [
        replace(result, figures={n: v for n, v in result.figures.items() if n not in _OF_ONE_QUERY})
        for result in results
    ]
    groups = averaged(common)
    for group, figures in groups.items():
        for name in _MEDIANS:
            values = [
                result.figures[name]
                for result in results
                if group in ("overall", result.group) and name in result.figures
            ]
            if values:
                figures[f"median {name}"] = float(np.median(values))
    return groups
