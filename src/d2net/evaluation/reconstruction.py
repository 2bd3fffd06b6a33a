"""Scenes reconstructed by structure from motion, with any features.

The columns of the Local Feature Evaluation Benchmark (Schönberger et al., "Comparative Evaluation
of Hand-Crafted and Learned Local Features", CVPR 2017): images registered, sparse points,
observations per image, track length, reprojection error. It has no ground truth, and a wrong
reconstruction can have good figures: where the true cameras are known, their errors stand beside.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.kept_models import Made, made_once
from d2net.evaluation.photos import Photos, countdown
from d2net.evaluation.results import Figures, PairResult, Result
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

if TYPE_CHECKING:
    import pycolmap

SCENE_FIGURES = (
    "images registered",
    "registered share",
    "sparse points",
    "observations per image",
    "track length",
    "reprojection error",
)
_ERRORS = ("position error", "rotation error", "placed well")
CLOSE = (1.0, 1.0)
"""A photo is placed well within so many percent of the cameras' spread and so many degrees."""


@dataclass(frozen=True)
class Scene:
    """Photos of one place, and their true cameras where they are known."""

    name: str
    folder: Path
    photos: tuple[FoundImage, ...]
    truth: pycolmap.Reconstruction | None


def find_scenes(folder: Path, model: Path | None = None) -> list[Scene]:
    """The scenes in a folder: itself, or each of its folders.

    A scene is a folder with photos in `images`, or anywhere in it, and perhaps a COLMAP model of
    its true cameras in `model`, `sparse/0`, `sparse` or itself.

    Args:
        folder: see above.
        model: of the true cameras, if it is elsewhere; then the folder is one scene.

    Raises:
        InputError: no such folder, or no scene of at least two photos in it.
        FormatError: a model is broken.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    own = model or find_model(folder)
    if own is not None or photos_folder(folder) != folder or _holds_photos(folder):
        scenes = [_scene(folder, own)]
    else:
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        scenes = [_scene(path, find_model(path)) for path in inner]
    scenes = [scene for scene in scenes if len(scene.photos) > 1]
    if not scenes:
        raise InputError(
            f"{folder} holds no scene: at least two photos in it, in its folder images, or in each "
            "of its folders are expected"
        )
    return scenes


def _holds_photos(folder: Path) -> bool:
    names = {path.name for path in folder.iterdir() if path.is_file()}
    return any(photo.name in names for photo in find_images([folder]))


def _scene(folder: Path, model: Path | None) -> Scene:
    photos = photos_folder(folder)
    truth = None if model is None else read_model(model)
    return Scene(folder.resolve().name, photos, tuple(find_images([photos])), truth)


def evaluate_reconstruction(
    source: CachedFeatures,
    folder: Path,
    *,
    model: Path | None = None,
    pairs: PairChoice | None = None,
    settings: MappingSettings | None = None,
    known_cameras: bool = False,
    max_keypoints: int | None = None,
    device: str = "cpu",
    report: Callable[[str, int], None] | None = None,
) -> Result:
    """Reconstruct scenes from a source's features.

    Args:
        source: features.
        folder: one scene or several, see `find_scenes`.
        model: true cameras, likewise.
        pairs: which photos are matched; all if None, of more than 50 photos those that look most
            alike by the source's own features.
        settings: of the mapping.
        known_cameras: take intrinsics from the true cameras and keep them as they are.
        max_keypoints: the best by score; None for all.
        device: where descriptors are compared.
        report: called after each pair matched and each scene, with how many are left.

    Returns:
        Per photo: `registered` (1 or 0), `points` it sees, and with truth `position error` in
        percent of the true cameras' spread (root mean square distance from their centroid) and
        `rotation error` in degrees, after alignment by a similarity. Per scene: `photos
        registered`, `registered share`, `sparse points`, `observations per image`, `track length`,
        `reprojection error` (px), and `mapping seconds` for verification and mapping when that was
        done; with truth how many `true images` it has, the medians of both errors over the
        registered photos and `placed well`, the share of all photos within 1 % and 1 degree.
        Overall: the means of the scenes' figures. A scene without a model has zeros, and no errors.

    Raises:
        InputError: no scene, settings that make no sense, no truth for the known cameras, or a
            photo of another size than its camera.
        FormatError: truth that is broken, or does not belong to the photos.
    """
    settings, choice = settings or MappingSettings(), pairs or PairChoice()
    scenes = find_scenes(folder, model)
    results: list[PairResult] = []
    groups: dict[str, Figures] = {}
    for left, scene in zip(range(len(scenes) - 1, -1, -1), scenes, strict=True):
        photos = Photos(source, scene.folder, max_keypoints, device)
        _check_truth(scene, photos)
        chosen = _match(scene, photos, choice, report)
        made = _reconstruct(scene, photos, chosen, settings, known_cameras)
        figures, of_photos = _judge(scene, made.model, settings.seed)
        groups[scene.name] = {**figures, "mapping seconds": made.seconds}
        names = {photo.name: photo.path.relative_to(folder).as_posix() for photo in scene.photos}
        results += [
            PairResult(scene.name, (names[name],), values) for name, values in of_photos.items()
        ]
        if report is not None:
            report(scene.name, left)
    with_truth = any(scene.truth is not None for scene in scenes)
    groups["overall"] = _means(list(groups.values()))
    return Result(
        protocol="reconstruction",
        method=source.name,
        folder=str(folder),
        provenance=source.source.provenance(),
        settings={
            "model": None if model is None else str(model),
            "pairs": {name: str(value) for name, value in vars(choice).items()},
            "known_cameras": known_cameras,
            "max_keypoints": max_keypoints,
            **settings.to_dict(),
        },
        pairs=results,
        groups=groups,
        headline=[
            *SCENE_FIGURES,
            *(("true images", *_ERRORS) if with_truth else ()),
        ],
        curve={},
    )


def _check_truth(scene: Scene, photos: Photos) -> None:
    """The truth is of these photos, and of this size."""
    if scene.truth is None:
        return
    names = {photo.name for photo in scene.photos}
    for image in scene.truth.images.values():
        if image.name not in names:
            raise FormatError(
                f"the true cameras of {scene.name} name the photo {image.name}, which is not in "
                f"{scene.folder}"
            )
        camera = scene.truth.cameras[image.camera_id]
        check_photo_size(image.name, photos.features(image.name).image_size, camera)


def _match(
    scene: Scene,
    photos: Photos,
    choice: PairChoice,
    report: Callable[[str, int], None] | None,
) -> list[Pair]:
    features = LazyFeatures(photos.features, [photo.name for photo in scene.photos])
    usable = [name for name in features if len(features[name])]
    if len(usable) < 2:
        return []
    chosen = choose_pairs(choice, usable, photos=scene.photos, features=features)
    unmatched = photos.unmatched(chosen)
    photos.match(unmatched, countdown(len(unmatched) + 1, report))  # the map is a step, too
    return chosen


def _reconstruct(
    scene: Scene,
    photos: Photos,
    pairs: Sequence[Pair],
    settings: MappingSettings,
    known_cameras: bool,
) -> Made:
    """The model with most photos."""
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

    def make() -> pycolmap.Reconstruction | None:
        if not sizes:
            return None
        with TemporaryDirectory() as work:
            database, matched, final = Path(work, "database.db"), _Matched(photos, pairs), limits
            write_database(database, features, matched, cameras=cameras)
            verify_pairs(database, limits, settings)
            if settings.refine:
                after = adjust(database, features, photos.path)
                now = [adjusted_uncertainty(features[name], after[name]) for name in features]
                final = settings.thresholds(now)
                write_database(database, after, matched, cameras=cameras, overwrite=True)
                verify_pairs(database, final, settings)
            models = run_mapper(database, Path(work), final, settings, fixed_cameras=known_cameras)
        return models[0] if models else None

    depends = {
        "photos": {name: photos.key(name) for name in sizes},
        "pairs": pairs,
        "limits": [limits.verification, limits.reprojection],
        "cameras": {name: [c.model_name, *map(float, c.params)] for name, c in cameras.items()},
        "known_cameras": known_cameras,
        **settings.to_dict(),
    }
    return made_once(photos.kept("sfm", depends), make)


def _true_cameras(scene: Scene, names: Collection[str]) -> dict[str, pycolmap.Camera]:
    """The photos' true cameras; photos with the same intrinsics share one."""
    if scene.truth is None:
        raise InputError(f"the cameras of {scene.name} are not known: it has no COLMAP model")
    by_name = {image.name: image.camera_id for image in scene.truth.images.values()}
    found: dict[str, pycolmap.Camera] = {}
    shared: dict[tuple[object, ...], pycolmap.Camera] = {}
    for name in names:
        if name not in by_name:
            raise FormatError(f"the model of {scene.name} does not hold the photo {name}")
        camera = scene.truth.cameras[by_name[name]]
        key = (camera.model_name, camera.width, camera.height, *camera.params)
        found[name] = shared.setdefault(key, camera)
    return found


def _judge(
    scene: Scene, model: pycolmap.Reconstruction | None, seed: int
) -> tuple[Figures, dict[str, Figures]]:
    """Figures of the scene, and of each photo."""
    registered = (
        {}
        if model is None
        else {model.images[i].name: model.images[i] for i in model.reg_image_ids()}
    )
    of_photos: dict[str, Figures] = {
        photo.name: {
            "registered": float(photo.name in registered),
            "points": float(registered[photo.name].num_points3D)
            if photo.name in registered
            else 0.0,
        }
        for photo in scene.photos
    }
    values = [0.0] * len(SCENE_FIGURES)
    if model is not None:
        values = [
            float(len(registered)),
            len(registered) / len(scene.photos),
            float(model.num_points3D()),
            float(model.compute_mean_observations_per_reg_image()),
            float(model.compute_mean_track_length()),
            float(model.compute_mean_reprojection_error()),
        ]
    figures = dict(zip(SCENE_FIGURES, values, strict=True))
    if scene.truth is not None:
        figures |= _errors(scene, registered, of_photos, seed)
    return figures, of_photos


def _errors(
    scene: Scene,
    registered: Mapping[str, pycolmap.Image],
    of_photos: dict[str, Figures],
    seed: int,
) -> Figures:
    """Medians of the cameras' errors; also entered in the photos' figures."""
    if scene.truth is None:
        return {}
    true = {i.name: i.cam_from_world() for i in scene.truth.images.values() if i.has_pose}
    counted = {"true images": float(len(true))}
    mine = {name: image.cam_from_world() for name, image in registered.items()}
    errors = camera_errors(mine, true, seed)
    if errors is None:
        return counted | {"placed well": 0.0}
    percent = {name: 100 * value / errors.spread for name, value in errors.position.items()}
    for name, value in percent.items():
        of_photos[name] |= {"position error": value, "rotation error": errors.rotation[name]}
    well = sum(percent[name] <= CLOSE[0] and errors.rotation[name] <= CLOSE[1] for name in percent)
    return counted | {
        "position error": float(np.median(list(percent.values()))),
        "rotation error": float(np.median(list(errors.rotation.values()))),
        "placed well": well / len(true),
    }


def _means(scenes: Sequence[Figures]) -> Figures:
    """Of each figure over the scenes that have it."""
    names = dict.fromkeys(name for figures in scenes for name in figures)
    return {name: float(np.mean([f[name] for f in scenes if name in f])) for name in names}


@dataclass(frozen=True)
class _Matched:
    """Matches of some pairs, as the database wants them."""

    photos: Photos
    pairs: Sequence[Pair]

    def among(self, num_keypoints: Mapping[str, int]) -> Iterator[tuple[str, str, Matches]]:
        """See `MatchedPairs`."""
        with self.photos.matches() as matches:
            for first, second in self.pairs:
                yield first, second, matches(first, second)
