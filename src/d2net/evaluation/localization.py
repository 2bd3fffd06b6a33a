"""Photos placed in a map, as the visual localization benchmarks ask for.

Each query is matched with the map's photos that a list names for it (retrieval is not what is
measured), its matches become pairs of a pixel and a place in the world, and its pose is what most
of them agree with (LO-RANSAC). Counted are the queries within distances and angles of their true
poses (Sattler et al., "Benchmarking 6DOF Outdoor Visual Localization in Changing Conditions",
CVPR 2018). A query without a pose counts as wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.inloc import scan_places
from d2net.evaluation.localization_data import Limit, LocalizationData, Query, find_dataset
from d2net.evaluation.localization_map import build_map
from d2net.evaluation.photos import Photos
from d2net.evaluation.results import Drawing, Figures, PairResult, Result, averaged
from d2net.features import Matches
from d2net.formats.pairs import Pair
from d2net.formats.poses import read_poses, write_poses
from d2net.geometry.absolute import AbsolutePose, AbsolutePoseOptions, absolute_pose
from d2net.geometry.alignment import rotation_angle
from d2net.geometry.cameras import project
from d2net.mapping.links import Links, link
from d2net.matching.pairs import from_covisibility

if TYPE_CHECKING:
    import pycolmap

Array = NDArray[np.float64]
Places = Callable[[str], Array]

MAX_ERROR = 4.0
"""Largest reprojection error in pixels of a triangulated point (COLMAP's and hloc's)."""

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
        folder: Aachen Day-Night (v1.0, v1.1) or InLoc, see `localization_data.find_dataset`.
        pairs: lists of pairs, likewise.
        queries: lists of queries, likewise.
        model: of the map, likewise.
        truth: true poses of the queries, in the form of a submission; without it nothing is judged.
        submission: file to write the poses to, as the benchmark's site wants them. Queries
            without a pose are left out, which counts as wrong there.
        num_covisible: each photo of the map is matched with so many that see most of the same
            points of the model (Aachen).
        threshold: largest reprojection error of an inlier in pixels; None for the layout's usual
            one (12 for Aachen, 48 for InLoc's photos of 4032 px).
        seed: of RANSAC's samples.
        max_keypoints: the best by score; None for all.
        device: where descriptors are compared.
        report: called after each step (a pair matched, the map built, a query placed) with its
            name and how many steps are left.

    Returns:
        Per query: `localized`, 100 if it has a pose; `inliers`; `2D-3D matches`; `features`;
        `position deviation` in metres, as the inliers tell it; with truth `position error` in
        metres, `rotation error` in degrees, and 100 or 0 for each of the benchmark's limits, as
        "0.25 m, 2°". Per group (day, night; floors) and overall: means, so that the limits are
        percentages, and `median position error` and `median rotation error` of those that have a
        pose.

    Raises:
        InputError: arguments that make no sense.
        FormatError: files that are broken or do not belong together.
    """
    data = find_dataset(folder, pairs=pairs, queries=queries, model=model)
    true = None if truth is None else _true_poses(truth, data.queries)
    options = AbsolutePoseOptions(threshold=threshold or data.threshold, seed=seed)
    photos = Photos(source, data.photos, max_keypoints, device)
    of_map = _map_pairs(data, num_covisible)
    of_queries = [(query.name, name) for query in data.queries for name in query.candidates]
    todo = photos.unmatched([*of_map, *of_queries])
    advance = _countdown(len(todo) + (data.model is not None) + len(data.queries), report)
    photos.match(todo, advance)
    places = _places(data, photos, of_map)
    if data.model is not None:
        advance("map")
    results, poses = [], {}
    with photos.matches() as matches:
        for query in data.queries:
            placed = _place(query, photos, matches, places, options)
            if placed.pose is not None:
                poses[query.name] = placed.pose.cam_from_world
            known = None if true is None else true[query.name]
            best, drawing = _drawing(placed, known, photos, options.threshold)
            names = [
                (data.photos / name).relative_to(folder).as_posix() for name in (query.name, best)
            ]
            figures = _figures(placed, data.limits, known)
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
            "max_error": MAX_ERROR,
            "threshold": options.threshold,
            "seed": seed,
            "max_keypoints": max_keypoints,
        },
        pairs=results,
        groups=_groups(results),
        headline=[*limits, *medians, "localized", "inliers", "2D-3D matches", "features"],
        curve={},
        ranking="inliers",
    )


def _true_poses(path: Path, queries: Sequence[Query]) -> dict[str, pycolmap.Rigid3d]:
    poses = read_poses(path)
    missing = [query.name for query in queries if Path(query.name).name not in poses]
    if missing:
        raise FormatError(
            f"{path} lacks the pose of {missing[0]} ({len(missing)} of {len(queries)} queries); "
            "give a list of those queries whose poses it has"
        )
    return {query.name: poses[Path(query.name).name] for query in queries}


def _map_pairs(data: LocalizationData, num_covisible: int) -> list[Pair]:
    """Pairs of the map's photos; none for scans."""
    if data.model is None:
        return []
    pairs = from_covisibility(data.model, num_covisible)
    if not pairs:
        raise InputError(
            "the model has no points that two photos see, by which photos of the map are paired"
        )
    return pairs


def _countdown(steps: int, report: Callable[[str, int], None] | None) -> Callable[[str], None]:
    left = iter(range(steps - 1, -1, -1))

    def advance(name: str) -> None:
        if report is not None:
            report(name, next(left))

    return advance


def _places(data: LocalizationData, photos: Photos, pairs: Sequence[Pair]) -> Places:
    """Where the keypoints of the map's photos are."""
    if data.model is not None:
        return build_map(data.model, photos, pairs, MAX_ERROR)

    @cache
    def places(name: str) -> Array:
        return scan_places(data.photos, name, photos.features(name))

    return places


@dataclass(frozen=True)
class _Placed:
    """A query and its pose, if it has one.

    Attributes:
        query: what was placed.
        camera: its camera.
        num_features: how many keypoints it has.
        pixels: N x 2, its keypoints that are matched with a place.
        links: N, where they are in the world; photos are counted as candidates.
        pose: what was found.
    """

    query: Query
    camera: pycolmap.Camera
    num_features: int
    pixels: Array
    links: Links
    pose: AbsolutePose | None

    @property
    def inliers(self) -> NDArray[np.bool_]:
        """N marks of what agrees with the pose."""
        return np.zeros(len(self.links), np.bool_) if self.pose is None else self.pose.inliers


def _place(
    query: Query,
    photos: Photos,
    matches: Callable[[str, str], Matches],
    places: Places,
    options: AbsolutePoseOptions,
) -> _Placed:
    features = photos.features(query.name)
    camera = query.camera(features.image_size)
    links = link((matches(query.name, name), places(name)) for name in query.candidates)
    x = features.keypoints.double().numpy()[links.rows]
    pose = absolute_pose(x, links.points, camera, options)
    return _Placed(query, camera, len(features), x, links, pose)


def _figures(placed: _Placed, limits: Sequence[Limit], true: pycolmap.Rigid3d | None) -> Figures:
    pose = placed.pose
    figures: Figures = {
        "localized": 0.0 if pose is None else 100.0,
        "inliers": float(np.count_nonzero(placed.inliers)),
        "2D-3D matches": float(len(placed.links)),
        "features": float(placed.num_features),
    }
    position, rotation = np.inf, np.inf
    if pose is not None:
        figures["position deviation"] = pose.position_deviation
        if true is not None:
            position = float(np.linalg.norm(pose.centre - true.inverse().translation))
            found = pose.cam_from_world.rotation.matrix()
            rotation = rotation_angle(found, true.rotation.matrix())
            figures["position error"], figures["rotation error"] = position, rotation
    if true is not None:
        for limit in limits:
            within = position <= limit.position and rotation <= limit.rotation
            figures[limit.name] = 100.0 if within else 0.0
    return figures


def _drawing(
    placed: _Placed, true: pycolmap.Rigid3d | None, photos: Photos, threshold: float
) -> tuple[str, Drawing]:
    """The candidate that most inliers are of, and the matches with it.

    Right are those that agree with the true pose or, where it is not known, with the found one.
    """
    inliers = np.bincount(
        placed.links.photos[placed.inliers], minlength=len(placed.query.candidates)
    )
    best = int(inliers.argmax())
    name = placed.query.candidates[best]
    right = placed.inliers
    if true is not None:
        errors = project(placed.camera, true, placed.links.points) - placed.pixels
        right = np.linalg.norm(errors, axis=1) <= threshold  # False for NaN
    shown = placed.links.photos == best
    partners = photos.features(name).keypoints.numpy()[placed.links.partners[shown]]
    return name, Drawing(placed.pixels[shown].astype(np.float32), partners, right[shown])


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
