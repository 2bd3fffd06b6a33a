"""COLMAP's verification of matches and its mappers, from a database to models."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Set
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import count
from pathlib import Path

import pycolmap
from scipy.cluster.hierarchy import DisjointSet

from d2net.features import Features, Matches
from d2net.geometry.cameras import quiet_colmap
from d2net.geometry.robust import Model
from d2net.io.h5 import MatchFile
from d2net.io.pair_lists import Pair
from d2net.mapping.settings import MIN_INLIERS, MIN_PHOTOS, MappingSettings, Thresholds
from d2net.matching.verification import verify
from d2net.progress import Progress, no_progress

_MAX_ATTEMPTS, _SUFFICIENT_SHARE, _MAX_REPEATED = 3, 0.9, 30
"""With guessed focal lengths, the incremental mapper depends on the choice of its first pair. It
starts again with another seed while it registers less than `_SUFFICIENT_SHARE` of the photos that
verified pairs connect, unless it finds no first pair at all. With more than `_MAX_REPEATED` such
photos it starts only once, because an attempt takes minutes and some internet photos never fit."""

_MAX_MODELS, _MAX_MODEL_OVERLAP = 10, 3
"""COLMAP's 50 models with 20 shared photos would take most of the time with internet photos."""

_GROWTH_BETWEEN_ADJUSTMENTS = 1.4
"""Global bundle adjustment runs when a model has grown by this factor (COLMAP's 1.1), at most twice
in a row (5). Together with tolerances of 1e-6 (0) this takes a third of the time: 33 s, not 94 s
on 40 internet photos of one statue."""

_MANY_PHOTOS, _GLOBAL_ITERATIONS, _LOCAL_ITERATIONS = 50, 20, 10
"""With more connected photos, bundle adjustment has fewer iterations than COLMAP's (50 and 25), and
leaves out points that add little. docs/experiments.md, Maps, has the gain in time."""


def verified_pairs(database: Path) -> Iterator[tuple[str, str, pycolmap.TwoViewGeometry]]:
    """Image pairs with at least one verified match; none if there is no database."""
    if not database.exists():
        return
    with pycolmap.Database.open(database) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
        pairs, geometries = opened.read_two_view_geometries()
        for pair, geometry in zip(pairs, geometries, strict=True):
            if len(geometry.inlier_matches):
                a, b = pycolmap.pair_id_to_image_pair(pair)
                yield names[a], names[b], geometry


@dataclass
class SignificantPairs:
    """The selected pairs of a matches file that show the same place, see `MatchedPairs`.

    `num_left_out` counts the others. COLMAP's own verification takes longer, and accepts pairs
    whose matches agree by accident.
    """

    matches: MatchFile
    features: Mapping[str, Features]
    pairs: Collection[Pair]
    seed: int = 0
    progress: Progress = no_progress
    num_left_out: int = 0

    def among(self, num_keypoints: Mapping[str, int]) -> Iterator[tuple[str, str, Matches]]:
        """The pairs among photos of these names."""

        @lru_cache(maxsize=1000)
        def keypoints_of(name: str) -> Features:
            photo = self.features[name]
            return replace(photo, descriptors=photo.descriptors[:, :0], descriptor_id=None)

        models: tuple[Model, ...] = ("fundamental", "homography")
        selected = {frozenset(pair) for pair in self.pairs}
        among = self.matches.among(num_keypoints, selected)
        for done, (first, second, found) in enumerate(among, 1):
            photos = keypoints_of(first), keypoints_of(second)
            verified = (verify(*photos, found, model, seed=self.seed) for model in models)
            if any(matches.verdict == "same" for matches in verified):
                yield first, second, found
            else:
                self.num_left_out += 1
            self.progress("verifying", done, len(selected))


def verify_pairs(database: Path, limits: Thresholds, seed: int = 0) -> None:
    """Estimate the two-view geometry of all matched pairs in the database, and store it."""
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = MIN_INLIERS
    options.ransac.max_error = limits.verification
    options.ransac.random_seed = seed
    with quiet_colmap():
        pycolmap.geometric_verification(database, two_view_geometry_options=options)


def flat_configurations() -> frozenset[int]:
    """COLMAP's two-view configurations of pairs that agree with a homography."""
    known = pycolmap.TwoViewGeometryConfiguration
    return frozenset(map(int, (known.PLANAR, known.PANORAMIC, known.PLANAR_OR_PANORAMIC)))


def run_mapper(
    database: Path,
    output: Path,
    settings: MappingSettings,
    names: Collection[str],
    *,
    limits: Thresholds,
    existing: Path | None = None,
    fixed_cameras: Set[int] = frozenset(),
    progress: Progress = no_progress,
) -> list[pycolmap.Reconstruction]:
    """Map photos from a database of verified matches; the largest model comes first.

    COLMAP's files go into the new folder `output`. With the folder `existing` of a model, the other
    photos are added to it, and no other model is made; its photos are among the names and have the
    database's ids. The incremental mapper does not refine `fixed_cameras` (by their ids), and
    reports the number of photos in the growing model.
    """
    output.mkdir()
    refine = settings.camera_params is None
    if settings.mapper == "global" and existing is None:
        options = pycolmap.GlobalPipelineOptions()
        options.image_names = sorted(names)
        options.min_num_matches, options.min_model_size = MIN_INLIERS, MIN_PHOTOS
        steps = options.mapper
        steps.bundle_adjustment.refine_focal_length = refine
        steps.bundle_adjustment.refine_extra_params = refine
        steps.retriangulation.merge_max_reproj_error = limits.reprojection
        steps.retriangulation.complete_max_reproj_error = limits.reprojection
        parts = (steps.rotation_averaging, steps.global_positioning, steps.retriangulation)
        for part in (options, steps, *parts):
            part.random_seed = settings.seed
        options.num_threads = steps.num_threads = 1
        with quiet_colmap():
            found = pycolmap.global_mapping(database, output, output, options)
        return sorted(found.values(), key=_size, reverse=True)
    groups = DisjointSet(names)  # of photos that verified pairs connect
    for first, second, _ in verified_pairs(database):
        if first in groups and second in groups:
            groups.merge(first, second)
    connected = max(map(len, groups.subsets()), default=0)
    attempts = 1 if existing or connected > _MAX_REPEATED else _MAX_ATTEMPTS
    numbers = count(1)  # of photos in the growing model

    def begin() -> None:
        nonlocal numbers
        numbers = count(3)

    best: list[pycolmap.Reconstruction] = []
    for attempt in range(attempts):
        folder = output / str(attempt)
        folder.mkdir()
        seed = settings.seed + attempt
        incremental = _incremental_options(limits, seed, refine, existing, connected)
        incremental.image_names = sorted(names)
        incremental.constant_cameras = set(fixed_cameras)
        with quiet_colmap():
            found = pycolmap.incremental_mapping(
                database,
                folder,
                folder,
                incremental,
                input_path=existing or "",
                initial_image_pair_callback=begin,
                next_image_callback=lambda: progress("mapping", next(numbers), None),
            )
        models: list[pycolmap.Reconstruction] = []
        for model in sorted(found.values(), key=_size, reverse=True):
            # COLMAP also starts models from photos of a larger model; those are wrong.
            if not any(posed_photos(model) <= posed_photos(larger) for larger in models):
                models.append(model)
        best = max(best, models, key=lambda models: _size(*models[:1]))
        if not best or best[0].num_reg_images() >= _SUFFICIENT_SHARE * connected:
            break
    return best


def _size(model: pycolmap.Reconstruction | None = None) -> tuple[int, int]:
    """Number of photos and points, by which models are compared."""
    return (model.num_reg_images(), model.num_points3D()) if model else (0, 0)


def posed_photos(model: pycolmap.Reconstruction) -> set[str]:
    """The photos of a model that have a pose."""
    return {image.name for image in model.images.values() if image.has_pose}


def _incremental_options(
    limits: Thresholds, seed: int, refine: bool, existing: Path | None, photos: int
) -> pycolmap.IncrementalPipelineOptions:
    options = pycolmap.IncrementalPipelineOptions()
    options.min_num_matches, options.min_model_size = MIN_INLIERS, MIN_PHOTOS
    options.max_num_models, options.max_model_overlap = _MAX_MODELS, _MAX_MODEL_OVERLAP
    options.fix_existing_frames = existing is not None
    options.multiple_models = existing is None
    options.structure_less_registration_fallback = False  # minutes for photos that do not fit
    options.ba_global_frames_ratio = options.ba_global_points_ratio = _GROWTH_BETWEEN_ADJUSTMENTS
    options.ba_global_max_refinements = 2
    if photos > _MANY_PHOTOS:
        options.mapper.ba_global_ignore_redundant_points3D = True
        options.ba_global_max_num_iterations = _GLOBAL_ITERATIONS
        options.ba_local_max_num_iterations = _LOCAL_ITERATIONS
    options.ba_global_function_tolerance = options.ba_local_function_tolerance = 1e-6
    options.extract_colors = False  # COLMAP ignores the EXIF orientation
    options.ba_refine_focal_length = options.ba_refine_extra_params = refine
    options.mapper.abs_pose_refine_focal_length = refine
    options.mapper.abs_pose_refine_extra_params = refine
    error = limits.reprojection
    options.mapper.filter_max_reproj_error = error
    # Poses and points are not refined yet here: at least COLMAP's own thresholds, 4 and 12 px.
    options.mapper.init_max_error = max(options.mapper.init_max_error, error)
    options.mapper.abs_pose_max_error = max(options.mapper.abs_pose_max_error, 3 * error)
    options.triangulation.merge_max_reproj_error = error
    options.triangulation.complete_max_reproj_error = error
    for part in (options, options.mapper, options.triangulation):
        part.random_seed = seed
    options.num_threads = 1  # several threads order the points differently each time
    return options
