"""Structure from motion with any features.

The figures are the columns of the Local Feature Evaluation Benchmark (Schönberger et al.,
"Comparative Evaluation of Hand-Crafted and Learned Local Features", CVPR 2017). The benchmark has
no ground truth, and a wrong reconstruction can have good figures. Where the true cameras are known,
the errors of the cameras are reported too.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from d2net.errors import FormatError, InputError, MappingError
from d2net.evaluation.cache import CachedPhotos, CachedSource
from d2net.evaluation.results import (
    OVERALL,
    Figures,
    Metric,
    PairResult,
    Protocol,
    Result,
    mean_figures,
)
from d2net.geometry.alignment import camera_errors
from d2net.geometry.cameras import check_photo_size
from d2net.io.atomic import locked
from d2net.io.colmap_model import find_model, read_model
from d2net.io.exif import check_photo_sizes
from d2net.io.image_lists import FoundImage, find_images, photos_folder
from d2net.io.resume import fingerprint
from d2net.mapping.map_folder import MapFolder
from d2net.mapping.plausibility import judge_map
from d2net.mapping.settings import MappingSettings
from d2net.mapping.stages import Stages
from d2net.matching.pair_selection import PairChoice
from d2net.progress import Progress, no_progress

if TYPE_CHECKING:
    import pycolmap

WELL_PLACED = (1.0, 1.0)  # largest errors: percent of the cameras' spread, and degrees

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
    Metric("called good", "share of the maps with this verdict"),
)
CAMERA_METRICS = (
    Metric("true images", "photos whose true cameras are known", higher_is_better=None),
    Metric("position error", "median, of the spread of the true cameras", "%", False),
    Metric("rotation error", "median", "°", False),
    Metric("placed well", "share of all photos within 1 % and 1°"),
)


class Scene(NamedTuple):
    """Photos of one place, and a model of their true cameras where these are known."""

    name: str
    folder: Path
    photos: tuple[FoundImage, ...]
    true_model: pycolmap.Reconstruction | None


def find_scenes(folder: Path, model: Path | None = None) -> list[Scene]:
    """The scenes in a folder: itself, or each of its subfolders.

    A scene is a folder with photos in `images`, or anywhere in it. A COLMAP model of the true
    cameras may be in `model`, `sparse/0`, `sparse` or the folder itself. If `model` names another
    place, the folder is one scene.
    """
    paths = [folder]
    if not (model or find_model(folder) or (folder / "images").is_dir()) and not any(
        "/" not in photo.name for photo in find_images([folder])
    ):
        paths = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    scenes = []
    for path in paths:
        photos, true_model = photos_folder(path), model or find_model(path)
        found = tuple(find_images([photos]))
        if len(found) > 1:
            names = {photo.name for photo in found}
            cameras = None if true_model is None else read_model(true_model, names)
            scenes.append(Scene(path.resolve().name, photos, found, cameras))
    if not scenes:
        raise InputError(
            f"{folder} holds no scene: at least two photos are expected in it, in its folder "
            "images, or in each of its subfolders"
        )
    return scenes


def evaluate_reconstruction(
    source: CachedSource,
    folder: Path,
    *,
    model: Path | None = None,
    settings: MappingSettings | None = None,
    progress: Progress = no_progress,
) -> Result:
    """Reconstruct scenes from a source's features, as `d2net reconstruct` does.

    See `find_scenes` for `folder` and `model`.

    Returns:
        Per photo: `registered` (1 or 0), the number of `points` it sees, and with true cameras
        `position error` in percent of their spread (root mean square distance from their centroid)
        and `rotation error` in degrees, after alignment by a similarity. Per scene: the figures of
        `SCENE_METRICS`, `mapping seconds` for verification and mapping, and with true cameras the
        figures of `CAMERA_METRICS`. Overall: means over the scenes; zeros without a map.
    """
    settings = replace(settings or MappingSettings(), matcher=source.matcher)
    results: list[PairResult] = []
    groups: dict[str, Figures] = {}
    scenes = find_scenes(folder, model)
    for scene in scenes:
        prefix = f"{scene.folder.relative_to(folder).as_posix()}/" if len(scenes) > 1 else ""
        found, called_good, seconds = _reconstruct(scene, source, settings, progress, prefix)
        figures, of_photos = _judge(scene, found, called_good, settings.seed)
        groups[scene.name] = {**figures, "mapping seconds": seconds}
        for photo in scene.photos:
            path = photo.path.relative_to(folder).as_posix()
            results.append(PairResult(scene.name, (path,), of_photos[photo.name]))
    groups[OVERALL] = mean_figures(list(groups.values()))
    with_truth = any(scene.true_model is not None for scene in scenes)
    return Result(
        PROTOCOL,
        *source.described(folder),
        {"model": model, **settings.to_dict()},
        results,
        groups,
        [*SCENE_METRICS, *(CAMERA_METRICS if with_truth else ())],
    )


def _reconstruct(
    scene: Scene, source: CachedSource, settings: MappingSettings, progress: Progress, prefix: str
) -> tuple[pycolmap.Reconstruction | None, bool, float]:
    """The model with the most photos, its verdict, and the seconds of verification and mapping."""
    files = {photo.name: photo.path for photo in scene.photos}
    images = scene.true_model.images.values() if scene.true_model else ()
    for image in images:
        if image.name not in files:
            raise FormatError(
                f"the true cameras of {scene.name} name {image.name}, which {scene.folder} lacks"
            )
    check_photo_sizes((files[image.name], image.camera) for image in images)
    with CachedPhotos(source, scene.folder, files, progress, prefix) as photos:
        for image in images:
            check_photo_size(image.name, photos.features(image.name).image_size, image.camera)
    path = photos.path / f"map-{fingerprint(settings.to_dict())}"
    path.mkdir(exist_ok=True)
    with locked(path / "map"):
        folder = MapFolder(path)
        # Maps with other settings share these files.
        folder.features, folder.matches = photos.path / "features.h5", photos.path / "matches.h5"
        folder.add_photo_folder(scene.folder)
        stages = Stages(folder, settings, progress)
        stages.survey(files)
        models: list[pycolmap.Reconstruction] = []
        with suppress(MappingError):  # some photos give no map
            stages.match(stages.select_pairs(PairChoice(), scene.photos))
            stages.verify()
            stages.map()
            models = [model for model, _ in folder.read_models()]
        seconds = sum(folder.seconds.get(stage, 0.0) for stage in ("verification", "mapping"))
    if not models:
        return None, False, seconds
    return models[0], judge_map(models[0], folder.database).verdict == "good", seconds


def _judge(
    scene: Scene, model: pycolmap.Reconstruction | None, called_good: bool, seed: int
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
            called_good,
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
    true_images = [image for image in scene.true_model.images.values() if image.has_pose]
    true_poses = {image.name: image.cam_from_world() for image in true_images}
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
