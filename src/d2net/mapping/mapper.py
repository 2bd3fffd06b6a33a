"""COLMAP's verification of matches and its mappers, from a database to models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.features import Features, Matches
from d2net.geometry.cameras import quiet_colmap
from d2net.geometry.robust import Model
from d2net.mapping.settings import MappingSettings, Thresholds
from d2net.matching.verification import verify
from d2net.progress import Progress, no_progress

if TYPE_CHECKING:
    import pycolmap

_MAX_ATTEMPTS, _SUFFICIENT_SHARE = 3, 0.9
"""With guessed focal lengths, the incremental mapper depends on the choice of its first pair. It
starts again with another seed while it registers less than this share of the photos, unless it
finds no first pair at all."""


def verify_pairs(database: Path, limits: Thresholds, settings: MappingSettings) -> None:
    """Estimate the two-view geometry of all matched pairs in the database, and store it."""
    import pycolmap

    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = settings.min_inliers
    options.ransac.max_error = limits.verification
    options.ransac.random_seed = settings.seed
    with quiet_colmap():
        pycolmap.geometric_verification(database, two_view_geometry_options=options)


def verified_pairs(database: Path) -> Iterator[tuple[str, str, pycolmap.TwoViewGeometry]]:
    """Image pairs with at least one verified match; none if there is no database."""
    import pycolmap

    if not database.exists():
        return
    with pycolmap.Database.open(database) as opened:
        names = {image.image_id: image.name for image in opened.read_all_images()}
        pairs, geometries = opened.read_two_view_geometries()
        for pair, geometry in zip(pairs, geometries, strict=True):
            if len(geometry.inlier_matches):
                a, b = pycolmap.pair_id_to_image_pair(pair)
                yield names[a], names[b], geometry


def remove_insignificant_pairs(
    database: Path,
    features: Mapping[str, Features],
    matches_of: Callable[[str, str], Matches],
    *,
    seed: int = 0,
    progress: Progress = no_progress,
) -> int:
    """Remove verified pairs whose matches may agree by accident, so that no map contains them.

    Args:
        database: with two-view geometries.
        features: of its photos.
        matches_of: returns all matches of two photos, outliers too.
        seed: of random samples.
        progress: called after each pair.

    Returns:
        The number of pairs removed: those with a verdict other than "same".
    """
    import pycolmap

    @lru_cache(maxsize=1000)
    def keypoints_of(name: str) -> Features:
        photo = features[name]
        return replace(photo, descriptors=photo.descriptors[:, :0], descriptor_id=None)

    pairs = list(verified_pairs(database))
    flat = flat_configurations()
    removed = 0
    with pycolmap.Database.open(database) as opened:
        numbers = {image.name: image.image_id for image in opened.read_all_images()}
        for done, (first, second, geometry) in enumerate(pairs, 1):
            model: Model = "homography" if geometry.config in flat else "fundamental"
            photos = keypoints_of(first), keypoints_of(second)
            if verify(*photos, matches_of(first, second), model, seed=seed).verdict != "same":
                opened.delete_two_view_geometry(numbers[first], numbers[second])
                removed += 1
            progress("verifying", done, len(pairs))
    return removed


def flat_configurations() -> frozenset[int]:
    """COLMAP's two-view configurations of pairs that agree with a homography."""
    import pycolmap

    known = pycolmap.TwoViewGeometryConfiguration
    return frozenset(map(int, (known.PLANAR, known.PANORAMIC, known.PLANAR_OR_PANORAMIC)))


def run_mapper(
    database: Path,
    output: Path,
    limits: Thresholds,
    settings: MappingSettings,
    *,
    existing: Path | None = None,
    fixed_cameras: bool = False,
    registered: Callable[[], None] | None = None,
) -> list[pycolmap.Reconstruction]:
    """Map from a database of verified matches.

    Args:
        database: with two-view geometries.
        output: an empty folder for COLMAP's files.
        limits: largest errors.
        settings: of the mapping.
        existing: folder of a model to which the other photos are added. Its photos have the same
            ids in the database.
        fixed_cameras: do not refine intrinsics; implied if the settings give them.
        registered: called after each registered photo (incremental mapper only).

    Returns:
        The models, that with the most photos first.
    """
    import pycolmap

    refine = not fixed_cameras and settings.camera_params is None
    if settings.mapper == "global" and existing is None:
        with quiet_colmap():
            found = pycolmap.global_mapping(
                database, output, output, _global_options(limits, settings, refine)
            )
        return sorted(found.values(), key=_size, reverse=True)
    with pycolmap.Database.open(database) as opened:
        sufficient = _SUFFICIENT_SHARE * opened.num_images()
    best: list[pycolmap.Reconstruction] = []
    for attempt in range(1 if existing else _MAX_ATTEMPTS):
        folder = output / str(attempt)
        folder.mkdir()
        seeded = replace(settings, seed=settings.seed + attempt)
        with quiet_colmap():
            found = pycolmap.incremental_mapping(
                database,
                folder,
                folder,
                _incremental_options(limits, seeded, refine),
                input_path=existing or "",
                next_image_callback=registered or (lambda: None),
            )
        models = sorted(found.values(), key=_size, reverse=True)
        best = max(best, models, key=lambda models: _size(*models[:1]))
        if not best or best[0].num_reg_images() >= sufficient:
            break
    return best


def _size(model: pycolmap.Reconstruction | None = None) -> tuple[int, int]:
    """Number of photos and points, by which models are compared."""
    return (model.num_reg_images(), model.num_points3D()) if model else (0, 0)


def _incremental_options(
    limits: Thresholds, settings: MappingSettings, refine: bool
) -> pycolmap.IncrementalPipelineOptions:
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.min_num_matches = settings.min_inliers
    options.min_model_size = settings.min_model_size
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
        part.random_seed = settings.seed
    options.num_threads = 1  # several threads order the points differently each time
    return options


def _global_options(
    limits: Thresholds, settings: MappingSettings, refine: bool
) -> pycolmap.GlobalPipelineOptions:
    import pycolmap

    options = pycolmap.GlobalPipelineOptions()
    options.min_num_matches = settings.min_inliers
    options.min_model_size = settings.min_model_size
    mapper = options.mapper
    mapper.bundle_adjustment.refine_focal_length = refine
    mapper.bundle_adjustment.refine_extra_params = refine
    mapper.retriangulation.merge_max_reproj_error = limits.reprojection
    mapper.retriangulation.complete_max_reproj_error = limits.reprojection
    parts = (mapper.rotation_averaging, mapper.global_positioning, mapper.retriangulation)
    for part in (options, mapper, *parts):
        part.random_seed = settings.seed
    options.num_threads = mapper.num_threads = 1
    return options
