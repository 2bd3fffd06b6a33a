"""Structure from motion with any features.

The figures are the columns of the Local Feature Evaluation Benchmark (Schönberger et al.,
"Comparative Evaluation of Hand-Crafted and Learned Local Features", CVPR 2017). The benchmark has
no ground truth, and a wrong reconstruction can have good figures. Where the true cameras are known,
the errors of the cameras are reported too.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedFeatures, CachedMatches, CachedModel, cached_model
from d2net.evaluation.results import (
    OVERALL,
    Figures,
    Metric,
    PairResult,
    Protocol,
    Result,
    mean_figures,
)
from d2net.features import LazyFeatures, Matches
from d2net.geometry.alignment import camera_errors
from d2net.geometry.cameras import check_photo_size
from d2net.io.colmap_database import write_database
from d2net.io.colmap_model import find_model, read_model
from d2net.io.image_lists import FoundImage, find_images, photos_folder
from d2net.io.pairs import Pair
from d2net.mapping.adjust import adjust, adjusted_uncertainty
from d2net.mapping.cameras import assign_cameras
from d2net.mapping.mapper import run_mapper, verify_pairs
from d2net.mapping.settings import MappingSettings
from d2net.matching.pair_selection import PairChoice, choose_pairs
from d2net.progress import Progress, no_progress

if TYPE_CHECKING:
    import pycolmap

WELL_PLACED = (1.0, 1.0)
"""Largest errors of a well placed photo: percent of the cameras' spread, and degrees."""

PROTOCOL = Protocol(
    "reconstruction",
    "Reconstruction",
    "The photos are matched and reconstructed by structure from motion with fixed seeds. The "
    "columns are those of the Local Feature Evaluation Benchmark and, where the cameras are known, "
    "their errors after alignment by a similarity.",
    item=("photo", "photos"),
    group="scene",
)
SCENE_METRICS = (
    Metric("images registered"),
    Metric("registered share"),
    Metric("sparse points"),
    Metric("observations per image"),
    Metric("track length"),
    Metric("reprojection error", unit="px", higher_is_better=False),
)
CAMERA_METRICS = (
    Metric("true images", "photos whose true cameras are known", higher_is_better=None),
    Metric(
        "position error",
        "median, in percent of the spread of the true cameras",
        unit="%",
        higher_is_better=False,
    ),
    Metric("rotation error", "median", unit="°", higher_is_better=False),
    Metric("placed well", "share of all photos within 1 % and 1°"),
)


@dataclass(frozen=True)
class Scene:
    """Photos of one place, and a model of their true cameras where these are known."""

    name: str
    folder: Path
    photos: tuple[FoundImage, ...]
    true_model: pycolmap.Reconstruction | None


def find_scenes(folder: Path, model: Path | None = None) -> list[Scene]:
    """The scenes in a folder: itself, or each of its subfolders.

    A scene is a folder with photos in `images`, or anywhere in it. A COLMAP model of the true
    cameras may be in `model`, `sparse/0`, `sparse` or the folder itself.

    Args:
        folder: see above.
        model: of the true cameras, if it is elsewhere. Then the folder is one scene.

    Raises:
        InputError: no such folder, or no scene of at least two photos in it.
        FormatError: a model is broken.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    own_model = model or find_model(folder)
    if own_model is not None or photos_folder(folder) != folder or _has_photos(folder):
        scenes = [_read_scene(folder, own_model)]
    else:
        subfolders = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        scenes = [_read_scene(path, find_model(path)) for path in subfolders]
    scenes = [scene for scene in scenes if len(scene.photos) > 1]
    if not scenes:
        raise InputError(
            f"{folder} holds no scene: at least two photos are expected in it, in its folder "
            "images, or in each of its subfolders"
        )
    return scenes


def _has_photos(folder: Path) -> bool:
    return any("/" not in photo.name for photo in find_images([folder]))


def _read_scene(folder: Path, model: Path | None) -> Scene:
    photos = photos_folder(folder)
    true_model = None if model is None else read_model(model)
    return Scene(folder.resolve().name, photos, tuple(find_images([photos])), true_model)


def evaluate_reconstruction(
    source: CachedFeatures,
    folder: Path,
    *,
    model: Path | None = None,
    pairs: PairChoice | None = None,
    settings: MappingSettings | None = None,
    known_cameras: bool = False,
    progress: Progress = no_progress,
) -> Result:
    """Reconstruct scenes from a source's features.

    Args:
        source: features.
        folder: one scene or several, see `find_scenes`.
        model: true cameras, see `find_scenes`.
        pairs: which photos are matched. If None, all pairs; in scenes of more than 50 photos, those
            that retrieval by the source's own features finds.
        settings: of the mapping.
        known_cameras: take intrinsics from the true cameras and keep them fixed.
        progress: called after each pair matched and each scene mapped.

    Returns:
        Per photo: `registered` (1 or 0), the number of `points` it sees, and with true cameras
        `position error` in percent of their spread (root mean square distance from their centroid)
        and `rotation error` in degrees, after alignment by a similarity. Per scene: `images
        registered`, `registered share`, `sparse points`, `observations per image`, `track length`,
        `reprojection error` in pixels, and `mapping seconds` for verification and mapping; with
        true cameras also `true images`, how many there are, the medians of both errors over the
        registered photos, and `placed well`, the share of all photos within 1 % and 1 degree.
        Overall: means over the scenes. A scene that cannot be mapped has zeros and no errors.

    Raises:
        InputError: no scene, settings that make no sense, no true cameras to take intrinsics from,
            or a photo of another size than its camera.
        FormatError: a model is broken, or does not belong to the photos.
    """
    settings, pairs = settings or MappingSettings(), pairs or PairChoice()
    results: list[PairResult] = []
    groups: dict[str, Figures] = {}
    scenes = find_scenes(folder, model)
    for scene in scenes:
        photos = CachedMatches(source, scene.folder)
        if scene.true_model is not None:
            _check_true_model(scene, scene.true_model, photos)
        matched = _match(scene, photos, pairs, progress)
        progress(f"mapping {scene.name}", 0, None)
        mapped = _map(scene, photos, matched, settings, known_cameras)
        figures, of_photos = _judge(scene, mapped.model, settings.seed)
        groups[scene.name] = {**figures, "mapping seconds": mapped.seconds}
        results += [
            PairResult(
                scene.name,
                (photo.path.relative_to(folder).as_posix(),),
                of_photos[photo.name],
            )
            for photo in scene.photos
        ]
    groups[OVERALL] = mean_figures(list(groups.values()))
    with_truth = any(scene.true_model is not None for scene in scenes)
    return Result(
        PROTOCOL,
        source.name,
        str(folder),
        source.provenance,
        {
            "model": model,
            "pairs": vars(pairs),
            "known_cameras": known_cameras,
            "max_keypoints": source.max_keypoints,
            **settings.to_dict(),
        },
        results,
        groups,
        [*SCENE_METRICS, *(CAMERA_METRICS if with_truth else ())],
    )


def _check_true_model(scene: Scene, model: pycolmap.Reconstruction, photos: CachedMatches) -> None:
    """The model must be of these photos, in their size."""
    names = {photo.name for photo in scene.photos}
    for image in model.images.values():
        if image.name not in names:
            raise FormatError(
                f"the true cameras of {scene.name} name the photo {image.name}, which is not in "
                f"{scene.folder}"
            )
        size = photos.features(image.name).image_size
        check_photo_size(image.name, size, model.cameras[image.camera_id])


def _match(
    scene: Scene, photos: CachedMatches, choice: PairChoice, progress: Progress
) -> list[Pair]:
    """Choose pairs, and match those that no earlier run has matched."""
    features = LazyFeatures(photos.features, [photo.name for photo in scene.photos])
    usable = [name for name in features if len(features[name])]
    if len(usable) < 2:
        return []
    pairs = choose_pairs(choice, usable, photos=scene.photos, features=features)
    photos.match(pairs, partial(progress, f"matching {scene.name}"))
    return pairs


def _map(
    scene: Scene,
    photos: CachedMatches,
    pairs: Sequence[Pair],
    settings: MappingSettings,
    known_cameras: bool,
) -> CachedModel:
    """The model with the most photos."""
    features = LazyFeatures(photos.features, sorted({name for pair in pairs for name in pair}))
    sizes, uncertainty = {}, []
    for name in features:
        sizes[name] = features[name].image_size
        uncertainty.append(float(features[name].uncertainty.median()))
    limits = settings.thresholds(uncertainty)
    if known_cameras:
        cameras = _true_cameras(scene, sizes)
    else:
        cameras = assign_cameras(
            ((p.name, p.path, sizes[p.name]) for p in scene.photos if p.name in sizes), settings
        )

    def compute() -> pycolmap.Reconstruction | None:
        if not sizes:
            return None
        with TemporaryDirectory() as work:
            database, matches, final = Path(work, "database.db"), _Matches(photos, pairs), limits
            write_database(database, features, matches, cameras=cameras)
            verify_pairs(database, limits, settings)
            if settings.refine:
                adjusted = adjust(database, features, photos.path)
                sigmas = [adjusted_uncertainty(features[n], adjusted[n]) for n in features]
                final = settings.thresholds(sigmas)
                write_database(database, adjusted, matches, cameras=cameras, overwrite=True)
                verify_pairs(database, final, settings)
            models = run_mapper(database, Path(work), final, settings, fixed_cameras=known_cameras)
        return models[0] if models else None

    inputs = {
        "photos": {name: photos.key(name) for name in sizes},
        "pairs": pairs,
        "limits": [limits.verification, limits.reprojection],
        "cameras": {name: [c.model_name, *map(float, c.params)] for name, c in cameras.items()},
        "known_cameras": known_cameras,
        **settings.to_dict(),
    }
    return cached_model(photos.cache_path("sfm", inputs), compute)


def _true_cameras(scene: Scene, names: Collection[str]) -> dict[str, pycolmap.Camera]:
    """The true cameras of photos; photos with the same intrinsics share one."""
    model = scene.true_model
    if model is None:
        raise InputError(f"the cameras of {scene.name} are not known: it has no COLMAP model")
    camera_ids = {image.name: image.camera_id for image in model.images.values()}
    cameras: dict[str, pycolmap.Camera] = {}
    distinct: dict[tuple[object, ...], pycolmap.Camera] = {}
    for name in names:
        if name not in camera_ids:
            raise FormatError(f"the model of {scene.name} does not hold the photo {name}")
        camera = model.cameras[camera_ids[name]]
        key = (camera.model_name, camera.width, camera.height, *camera.params)
        cameras[name] = distinct.setdefault(key, camera)
    return cameras


def _judge(
    scene: Scene, model: pycolmap.Reconstruction | None, seed: int
) -> tuple[Figures, dict[str, Figures]]:
    """Figures of the scene, and of each photo."""
    images: dict[str, pycolmap.Image] = {}
    values = [0.0] * len(SCENE_METRICS)
    if model is not None:
        images = {model.images[i].name: model.images[i] for i in model.reg_image_ids()}
        values = [
            len(images),
            len(images) / len(scene.photos),
            model.num_points3D(),
            model.compute_mean_observations_per_reg_image(),
            model.compute_mean_track_length(),
            model.compute_mean_reprojection_error(),
        ]
    figures = {m.name: float(v) for m, v in zip(SCENE_METRICS, values, strict=True)}
    of_photos: dict[str, Figures] = {}
    for photo in scene.photos:
        num_points = images[photo.name].num_points3D if photo.name in images else 0
        registered = float(photo.name in images)
        of_photos[photo.name] = {"registered": registered, "points": float(num_points)}
    if scene.true_model is None:
        return figures, of_photos

    poses = {name: image.cam_from_world() for name, image in images.items()}
    true_poses = {
        image.name: image.cam_from_world()
        for image in scene.true_model.images.values()
        if image.has_pose
    }
    figures |= {"true images": float(len(true_poses)), "placed well": 0.0}
    errors = camera_errors(poses, true_poses, seed)
    if errors is not None:
        position = {name: 100 * value / errors.spread for name, value in errors.position.items()}
        rotation = errors.rotation
        num_well = 0
        for name, error in position.items():
            of_photos[name] |= {"position error": error, "rotation error": rotation[name]}
            num_well += error <= WELL_PLACED[0] and rotation[name] <= WELL_PLACED[1]
        figures |= {
            "position error": float(np.median([*position.values()])),
            "rotation error": float(np.median([*rotation.values()])),
            "placed well": num_well / len(true_poses),
        }
    return figures, of_photos


@dataclass(frozen=True)
class _Matches:
    """Matches of some pairs, as `write_database` reads them."""

    photos: CachedMatches
    pairs: Sequence[Pair]

    def among(self, num_keypoints: Mapping[str, int]) -> Iterator[tuple[str, str, Matches]]:
        """See `io.colmap.MatchedPairs`."""
        with self.photos.open() as matches:
            for first, second in self.pairs:
                yield first, second, matches(first, second)
