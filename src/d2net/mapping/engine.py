"""COLMAP's engine: verification of matches and mapping, from a database to models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.geometry.cameras import quiet_colmap
from d2net.mapping.settings import MappingSettings, Thresholds

if TYPE_CHECKING:
    import pycolmap


_ATTEMPTS, _ENOUGH = 3, 0.9
"""With guessed focal lengths it is chance whether the incremental mapper finds its way from the
first pair: it begins again, with another seed, while it registers less than this share of photos
(but not where it finds no first pair at all)."""


def verify_pairs(database: Path, limits: Thresholds, settings: MappingSettings) -> None:
    """Estimate the two-view geometry of all pairs with matches, and store it."""
    import pycolmap

    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = settings.min_inliers
    options.ransac.max_error = limits.verification
    options.ransac.random_seed = settings.seed
    with quiet_colmap():
        pycolmap.geometric_verification(database, two_view_geometry_options=options)


def verified_pairs(database: Path) -> Iterator[tuple[str, str, pycolmap.TwoViewGeometry]]:
    """The pairs that some matches of agree with a camera motion; none if there is no database."""
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


def run_mapper(
    database: Path,
    photos: Path,
    output: Path,
    limits: Thresholds,
    settings: MappingSettings,
    *,
    known: Path | None = None,
    fixed_cameras: bool = False,
    registered: Callable[[], None] | None = None,
) -> list[pycolmap.Reconstruction]:
    """Map from a database of verified matches.

    Args:
        database: with two-view geometries.
        photos: the photos' folder.
        output: a folder for the mapper's own use.
        limits: largest errors.
        settings: of the mapping.
        known: folder of a model to which the other photos are added; its photos have the same
            numbers in the database.
        fixed_cameras: intrinsics stay as they are; so they do where the settings give them.
        registered: called after each photo (incremental only), and again where it begins again.

    Returns:
        The models found, that with most photos first.
    """
    import pycolmap

    refine = not fixed_cameras and settings.camera_params is None
    with pycolmap.Database.open(database) as opened:
        enough = _ENOUGH * opened.num_images()

    def attempt(number: int) -> list[pycolmap.Reconstruction]:
        own = output / str(number)
        own.mkdir()
        seeded = replace(settings, seed=settings.seed + number)
        with quiet_colmap():
            if settings.mapper == "global" and known is None:
                found = pycolmap.global_mapping(
                    database, photos, own, _global_options(limits, seeded, refine)
                )
            else:
                found = pycolmap.incremental_mapping(
                    database,
                    photos,
                    own,
                    _incremental_options(limits, seeded, refine),
                    input_path=known or "",
                    next_image_callback=registered or _nothing,
                )
        return sorted(found.values(), key=_extent, reverse=True)

    best = attempt(0)
    if settings.mapper == "global" or known is not None:
        return best
    for number in range(1, _ATTEMPTS):
        if not best or best[0].num_reg_images() >= enough:
            break
        best = max(best, attempt(number), key=lambda models: _extent(*models[:1]))
    return best


def _extent(model: pycolmap.Reconstruction | None = None) -> tuple[int, int]:
    """By which maps are compared; none is the least."""
    return (model.num_reg_images(), model.num_points3D()) if model else (0, 0)


def _incremental_options(
    limits: Thresholds, settings: MappingSettings, refine: bool
) -> pycolmap.IncrementalPipelineOptions:
    import pycolmap

    options = pycolmap.IncrementalPipelineOptions()
    options.min_num_matches = settings.min_inliers
    options.min_model_size = settings.min_model_size
    options.extract_colors = False  # COLMAP samples photos that EXIF data turn at wrong places
    options.ba_refine_focal_length = options.ba_refine_extra_params = refine
    options.mapper.abs_pose_refine_focal_length = refine
    options.mapper.abs_pose_refine_extra_params = refine
    error = limits.reprojection
    options.mapper.filter_max_reproj_error = error
    # What only begins is not refined yet: never less than COLMAP's own, 4 and 12 px.
    options.mapper.init_max_error = max(options.mapper.init_max_error, error)
    options.mapper.abs_pose_max_error = max(options.mapper.abs_pose_max_error, 3 * error)
    options.triangulation.merge_max_reproj_error = error
    options.triangulation.complete_max_reproj_error = error
    for part in (options, options.mapper, options.triangulation):
        part.random_seed = settings.seed
    options.num_threads = 1  # several give points in another order each time
    return options


def _global_options(
    limits: Thresholds, settings: MappingSettings, refine: bool
) -> pycolmap.GlobalPipelineOptions:
    import pycolmap

    options = pycolmap.GlobalPipelineOptions()
    options.min_num_matches = settings.min_inliers
    options.min_model_size = settings.min_model_size
    options.mapper.bundle_adjustment.refine_focal_length = refine
    options.mapper.bundle_adjustment.refine_extra_params = refine
    options.mapper.retriangulation.merge_max_reproj_error = limits.reprojection
    options.mapper.retriangulation.complete_max_reproj_error = limits.reprojection
    for part in (
        options,
        options.mapper,
        options.mapper.rotation_averaging,
        options.mapper.global_positioning,
        options.mapper.retriangulation,
    ):
        part.random_seed = settings.seed
    options.num_threads = options.mapper.num_threads = 1
    return options


def _nothing() -> None:
    """Called where nobody wants to know."""
