"""Datasets of visual localization: Aachen Day-Night, and scenes with a COLMAP model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.evaluation.simulated_night import write_at_night
from d2net.geometry.alignment import spread_of
from d2net.io.colmap_model import find_model, is_model, read_model
from d2net.io.drawn_pictures import check_replaceable
from d2net.io.image_lists import find_images, photos_folder
from d2net.io.intrinsics import read_intrinsics
from d2net.io.pair_lists import Pair, read_pairs
from d2net.matching.pair_selection import from_covisibility

if TYPE_CHECKING:
    import pycolmap


class Limit(NamedTuple):
    """A pose within these errors counts as right: in the dataset's unit of length, and degrees."""

    name: str
    position: float
    rotation: float


AACHEN_LIMITS = (
    Limit("0.25 m, 2°", 0.25, 2),
    Limit("0.5 m, 5°", 0.5, 5),
    Limit("5 m, 10°", 5, 10),
    # limits of the D2-Net paper
    Limit("0.5 m, 2°", 0.5, 2),
    Limit("1 m, 5°", 1, 5),
    Limit("10 m, 25°", 10, 25),
)
AACHEN_VERSIONS = {4328: "aachen-v1.0", 6697: "aachen-v1.1"}
"""Names of the dataset, told apart by the number of photos of the map."""
AACHEN_THRESHOLD = 12.0  # largest reprojection error of an inlier in pixels (hloc's and COLMAP's)
NUM_COVISIBLE = 20
"""Each photo of the map is matched with this many others that share the most points with it."""
QUERY_LISTS = "*_time_queries_with_intrinsics.txt"

SCENE_LIMITS = (Limit("1 %, 1°", 1, 1), Limit("2 %, 2°", 2, 2), Limit("5 %, 5°", 5, 5))
QUERY_EVERY = 3  # of every three photos of a scene, by their names, the second is a query


class Query(NamedTuple):
    """A photo to be localized.

    Attributes:
        name: its path relative to the folder of photos.
        group: "day" or "night".
        camera: COLMAP's.
        candidates: names of the photos of the map that it is matched with.
    """

    name: str
    group: str
    camera: pycolmap.Camera
    candidates: tuple[str, ...] = ()


@dataclass(frozen=True)
class LocalizationDataset:
    """Queries, and the photos, cameras and pairs from which a map is built.

    Attributes:
        name: name of the benchmark; "" for other photos.
        photos: the folder that names of photos are relative to.
        queries: the queries in the order of their lists.
        limits: the benchmark reports the percentage of queries within each of them.
        threshold: usual largest reprojection error of an inlier in pixels; None to choose it by
            the uncertainty of a query's keypoints, as `d2net localize` does.
        model: poses and cameras of the map's photos.
        map_pairs: pairs of the map's photos. None: these and the candidates of queries are chosen
            by the evaluated features, as `d2net reconstruct` and `d2net localize` do.
        true_poses: `cam_from_world` of the queries, where the dataset has them.
        unit: unit of positions in figures and limits.
        unit_length: length of that unit, in units of the map.
        elsewhere: files of photos that are not in the folder, by name.
    """

    name: str
    photos: Path
    queries: list[Query]
    limits: Sequence[Limit]
    threshold: float | None
    model: pycolmap.Reconstruction
    map_pairs: list[Pair] | None
    true_poses: Mapping[str, pycolmap.Rigid3d] | None = None
    unit: str = "m"
    unit_length: float = 1.0
    elsewhere: Mapping[str, Path] = field(default_factory=dict)

    def files(self) -> dict[str, Path]:
        """The files of all photos by name."""
        names = {image.name for image in self.model.images.values()}
        for query in self.queries:
            names.update((query.name, *query.candidates))
        files = {name: self.elsewhere.get(name, self.photos / name) for name in sorted(names)}
        missing = [name for name, path in files.items() if not path.is_file()]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise FormatError(f"{self.photos} lacks the photo {missing[0]}{more}")
        return files


@dataclass(frozen=True)
class LocalizationSettings:
    """Where the parts of a dataset are, and how queries are localized.

    Attributes:
        pairs: lists of a query and a photo of the map; found in the dataset's folder if empty.
        queries: lists of queries with intrinsics, found likewise.
        model: folder of a COLMAP model of the map, found likewise.
        truth: true poses of the queries as `name qw qx qy qz tx ty tz`. Without it nothing is
            judged, except in a scene, whose model has the true poses.
        night: folder for simulated night photos of a scene's queries, which become queries, too.
        threshold: largest reprojection error of an inlier in pixels; None: the dataset's.
    """

    pairs: tuple[Path, ...] = ()
    queries: tuple[Path, ...] = ()
    model: Path | None = None
    truth: Path | None = None
    night: Path | None = None
    threshold: float | None = None


def find_dataset(folder: Path, settings: LocalizationSettings) -> LocalizationDataset:
    """Read the dataset in a folder: Aachen Day-Night, or a scene.

    Aachen: photos, `3D-models`, `queries/*_time_queries_with_intrinsics.txt` and lists of pairs
    `pairs-query-*.txt`. A scene: photos and a COLMAP model of their cameras, without lists.
    """
    scene_model = find_model(folder)
    if scene_model is not None and not (settings.pairs or settings.queries or settings.model):
        return read_held_out(folder, scene_model, settings.night)
    if settings.night is not None:
        raise InputError(
            "only the queries of a scene can be turned into night photos: a folder with photos and "
            "a COLMAP model, without lists"
        )
    query_lists = settings.queries or sorted((folder / "queries").glob(QUERY_LISTS))
    if not query_lists:
        raise InputError(
            f"{folder} is neither in Aachen Day-Night's layout (queries/{QUERY_LISTS}, 3D-models, "
            "images_upright) nor a scene with a COLMAP model of its photos"
        )
    pair_lists = settings.pairs or sorted(folder.glob("pairs-query-*.txt"))
    if not pair_lists:
        raise InputError(
            f"{folder} needs pairs-query-*.txt: a list of pairs, each a query and a map photo"
        )
    return read_aachen(folder, query_lists, pair_lists, settings.model)


def read_aachen(
    folder: Path, query_lists: Sequence[Path], pair_lists: Sequence[Path], model_path: Path | None
) -> LocalizationDataset:
    """Read the dataset, or other photos in its layout.

    Query lists have intrinsics, and their name before `_time_queries` is the group. Pair lists name
    a query and a photo of the map. `model_path` is a COLMAP model with points; None for the one in
    `3D-models` or in one of its folders.
    """
    photo_folders = [folder / "images/images_upright", folder / "images_upright", folder / "images"]
    photos = next((path for path in photo_folders if path.is_dir()), None)
    if photos is None:
        raise FormatError(f"{folder} has no photos: a folder images_upright is expected")
    if model_path is None:
        models = [path for path in sorted((folder / "3D-models").glob("**")) if is_model(path)]
        if len(models) != 1:
            raise FormatError(
                f"{folder / '3D-models'} holds {len(models) or 'no'} COLMAP models, but one is "
                "expected; give the model"
            )
        model_path = models[0]
    model = read_model(model_path)
    in_model = {image.name for image in model.images.values() if image.has_pose}
    candidates: dict[str, dict[str, None]] = {}
    for pairs_path in pair_lists:
        for query_name, photo in read_pairs(pairs_path):
            candidates.setdefault(query_name, {})[photo] = None
    queries = [
        Query(
            name,
            query_list.stem.partition("_time_queries")[0],
            camera,
            tuple(candidates.get(name, ())),
        )
        for query_list in query_lists
        for name, camera in read_intrinsics(query_list).items()
    ]
    for query in queries:
        if not query.candidates:
            raise FormatError(
                f"the lists of pairs name no photo of the map for the query {query.name}"
            )
        unknown = [name for name in query.candidates if name not in in_model]
        if unknown:
            raise FormatError(
                f"the query {query.name} is paired with {unknown[0]}, but the model {model_path} "
                "has no pose of that photo"
            )
    pairs = from_covisibility(model, NUM_COVISIBLE)
    if not pairs:
        raise InputError(
            f"no two photos of the model {model_path} see the same point, so there are no pairs"
        )
    return LocalizationDataset(
        AACHEN_VERSIONS.get(len(model.images), ""),
        photos,
        queries,
        AACHEN_LIMITS,
        AACHEN_THRESHOLD,
        model,
        pairs,
    )


def read_held_out(folder: Path, model_path: Path, night: Path | None) -> LocalizationDataset:
    """Read a scene: photos in `images` or in the folder itself, and a COLMAP model.

    The model's points, if it has any, are not used. See `LocalizationSettings` for `night`.
    """
    import pycolmap

    photos = photos_folder(folder)
    model = read_model(model_path, {photo.name for photo in find_images([photos])})
    images = {image.name: image for image in model.images.values() if image.has_pose}
    names = sorted(images)
    if len(names) < QUERY_EVERY:
        raise FormatError(
            f"{model_path} has {len(names)} photos with poses; a map and a query need {QUERY_EVERY}"
        )
    queries, true_poses, elsewhere = [], {}, {}
    for name in names[1::QUERY_EVERY]:
        queries.append(Query(name, "day", model.cameras[images[name].camera_id]))
        true_poses[name] = images[name].cam_from_world()
    if night is not None:
        if night.is_file() or night.resolve().is_relative_to(photos.resolve()):
            raise InputError(
                f"the night photos need a folder of their own, but {night} is a file or among the "
                f"photos in {photos}; choose another folder"
            )
        for query in queries:
            check_replaceable(night / f"{query.name}.png")
        for query in list(queries):
            dark = query._replace(name=f"night/{query.name}", group="night")
            elsewhere[dark.name] = night / f"{query.name}.png"
            write_at_night(photos / query.name, elsewhere[dark.name])
            queries.append(dark)
            true_poses[dark.name] = true_poses[query.name]
    without_points = pycolmap.Reconstruction()
    for image_id, image in sorted(model.images.items()):
        if image.name in images and image.name not in true_poses:
            if image.camera_id not in without_points.cameras:
                without_points.add_camera_with_trivial_rig(model.cameras[image.camera_id])
            copy = pycolmap.Image(name=image.name, camera_id=image.camera_id, image_id=image_id)
            without_points.add_image_with_trivial_frame(copy, image.cam_from_world())
    centres = np.array([image.cam_from_world().inverse().translation for image in images.values()])
    return LocalizationDataset(
        name="",
        photos=photos,
        queries=queries,
        limits=SCENE_LIMITS,
        threshold=None,
        model=without_points,
        map_pairs=None,
        true_poses=true_poses,
        unit="% of the spread of the cameras",
        unit_length=spread_of(centres) / 100,
        elsewhere=elsewhere,
    )
