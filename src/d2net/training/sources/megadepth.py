"""MegaDepth: preparing it, in place of the 2019 release's scripts, and reading the result.

Li and Snavely, "MegaDepth: Learning Single-View Depth Prediction from Internet Photos", CVPR 2018.
The published photos and depth maps are undistorted, but the published models are not. Cameras and
points are undistorted here as COLMAP did it when the depth maps were made; this needs no COLMAP
program and writes no photo. Each reconstruction becomes one HDF5 file. Training reads only the
observations of the two photos that it needs, because not all of them fit into memory.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from d2net.errors import FormatError, InputError
from d2net.geometry.cameras import intrinsics_from_colmap, pinhole, project, rays
from d2net.io.atomic import output_errors, replacing
from d2net.io.colmap_model import find_model, read_model
from d2net.io.resume import WorkRecord
from d2net.progress import Progress, no_progress
from d2net.training.correspondences import PosedDepth
from d2net.training.sources.colmap import scene_photo
from d2net.training.sources.reading import read_raw_depth, size_of
from d2net.training.sources.scenes import Scene, SceneOptions, ScenePairs, ScenePhoto, find_overlaps

if TYPE_CHECKING:
    import pycolmap

SCENE_LISTS = ("default", "paper")
"""Lists of scenes that come with the package; `all` stands for every scene that is there."""

PHOTOS = Path("phoenix", "S6", "zl548", "MegaDepth_v1")
MODELS = Path("MegaDepth_v1_SfM")

MIN_STORED_OVERLAP = 0.1  # pairs of photos with a smaller overlap in both orders are not stored

_PAIRS_PER_SCENE = 100  # as in the release
_MAX_DEPTH_ERROR = 0.1  # largest median difference of a depth map from the points, as a share
_MIN_POINTS = 10  # with fewer points on known depth the median is not judged
_HEADER = "d2net-scene-3"  # attribute of the file; other versions have another name
_ROOT = "root.json"  # beside the scenes; not a file of a run, because MegaDepth may be moved
_OBSERVATION = np.dtype([("id", "i8"), ("point", "f4", 2), ("depth", "f4")])


def open_megadepth(folder: Path, options: SceneOptions, crop: int) -> ScenePairs:
    """Open the scenes that `prepare_megadepth` wrote."""
    files = sorted(folder.glob("*.h5"))
    if not files or not (folder / _ROOT).is_file():
        raise InputError(
            f"{folder} holds no prepared scenes: run `d2net data prepare megadepth ROOT "
            f"--output {folder}` first"
        )
    stored = [StoredScene(path, options) for path in files]
    usable = [Scene(scene.pairs, scene.photo) for scene in stored if len(scene.pairs)]
    if not usable:
        raise InputError(
            f"none of the {len(stored)} scenes in {folder} has pairs with an overlap of "
            f"{options.min_overlap} or more: lower min_overlap"
        )
    left_out = len(stored) - len(usable)
    remarks = (f"{left_out} scenes have no pairs with enough overlap",) if left_out else ()
    return ScenePairs("megadepth", usable, options, crop, remarks, _PAIRS_PER_SCENE)


class StoredScene:
    """A prepared scene. Its file is opened for each photo, so any process may use the object."""

    def __init__(self, path: Path, options: SceneOptions) -> None:
        self._path, self._max_edge = path, options.max_edge
        with _open(path) as (file, _):
            self._root = Path(WorkRecord(path.parent / _ROOT).values.get("root", ""))
            self._photos: list[dict[str, Any]] = json.loads(file["photos"][()])
            self._ends = np.cumsum([0, *(photo["points"] for photo in self._photos)])
            self.pairs = file["pairs"][:][file["shares"][:] >= options.min_overlap]

    def photo(self, number: int) -> ScenePhoto:
        """A photo with its observations."""
        about = self._photos[number]
        with _open(self._path) as (file, _):
            seen = file["observations"][slice(*self._ends[number : number + 2])]
        camera = pinhole(about["intrinsics"])
        camera.width, camera.height = about["size"]
        return ScenePhoto(
            path=self._root / about["photo"],
            camera=camera,
            cam_from_world=np.array(about["cam_from_world"]),
            ids=seen["id"],
            points=seen["point"].astype(np.float64),
            depths=seen["depth"].astype(np.float64),
            depth_map=self._root / about["depth_map"],
        ).reduced(self._max_edge)


@contextmanager
def _open(path: Path) -> Iterator[tuple[h5py.File, dict[str, Any]]]:
    try:
        with h5py.File(path, "r") as file:
            yield file, json.loads(file.attrs[_HEADER])
    except (OSError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FormatError(
            f"{path} is not a prepared scene, or damaged ({reason}): delete it and prepare it again"
        ) from error


def is_stored_scene(path: Path) -> bool:
    """Whether a file is a prepared scene."""
    with suppress(FormatError), _open(path):
        return True
    return False


@dataclass(frozen=True)
class PreparedScene:
    """Numbers of usable photos, of ordered pairs and, by reason, of other photos; or the error."""

    name: str
    photos: int = 0
    pairs: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    error: str = ""


def prepare_megadepth(
    root: Path, output: Path, scenes: str = "default", progress: Progress = no_progress
) -> list[PreparedScene]:
    """Check MegaDepth and store the part that training needs. An interrupted run resumes.

    `root` holds `phoenix` and `MegaDepth_v1_SfM`. `output` gets a file per reconstruction; existing
    files are kept, and the place of `root` is recorded again in case that it was moved. `scenes`
    are `default`, `paper` or `all`.
    """
    dense = sorted(path.parent for path in (root / PHOTOS).glob("*/dense*/depths"))
    available = {}
    for folder in dense:
        scene, number = folder.parent.name, folder.name.removeprefix("dense")
        model = root / MODELS / scene / "sparse" / "manhattan" / number
        if find_model(model):
            available[scene, number] = folder, model
    if not available:
        raise InputError(
            f"{root} does not hold MegaDepth: {MODELS if dense else PHOTOS} is missing or empty; "
            f"expected {PHOTOS}/SCENE/dense0/depths and {MODELS}/SCENE/sparse/manhattan/0"
        )
    wanted = scene_list(scenes)
    chosen = {
        f"{scene}/{number}": folders
        for (scene, number), folders in available.items()
        if wanted is None or scene in wanted or f"{scene}/{number}" in wanted
    }
    if not chosen:
        raise InputError(f"none of the scenes of the list {scenes!r} is in {root}")
    with output_errors(output / "scene"):
        output.mkdir(parents=True, exist_ok=True)
    record, here = WorkRecord(output / _ROOT), str(root.resolve())
    before = str(record.values.get("root", ""))
    if before != here:
        if before and Path(before, PHOTOS).is_dir():
            raise InputError(f"{output} holds scenes of {before}: choose another output")
        record.values["root"] = here
        record.save()
    results = []
    progress("preparing", 0, len(chosen))
    for name, (folder, model) in chosen.items():
        path = output / f"{name.replace('/', '-')}.h5"
        try:
            with _open(path) as (_, header):
                result = PreparedScene(**header["prepared"])
        except (FormatError, TypeError):  # absent, of another version, or damaged
            try:
                result = _prepare(name, root, folder, model, path)
            except FormatError as error:
                result = PreparedScene(name, error=str(error))
        results.append(result)
        progress(f"preparing: {name}", len(results), len(chosen))
    return results


def _prepare(name: str, root: Path, dense: Path, model: Path, path: Path) -> PreparedScene:
    found = _read(dense, model)
    photos = [photo for photo in found if isinstance(photo, ScenePhoto)]
    left_out = Counter(sorted(problem for problem in found if isinstance(problem, str)))
    pairs, shares = find_overlaps(photos, MIN_STORED_OVERLAP)
    result = PreparedScene(name, len(photos), len(pairs), dict(left_out))
    about = [
        {
            "photo": photo.path.relative_to(root).as_posix(),
            "depth_map": (photo.depth_map or photo.path).relative_to(root).as_posix(),
            "size": photo.size,
            "intrinsics": intrinsics_from_colmap(photo.camera.calibration_matrix()).tolist(),
            "cam_from_world": photo.cam_from_world.tolist(),
            "points": len(photo.ids),
        }
        for photo in photos
    ]
    seen = np.empty(sum(len(photo.ids) for photo in photos), _OBSERVATION)
    for key, attribute in (("id", "ids"), ("point", "points"), ("depth", "depths")):
        if photos:
            seen[key] = np.concatenate([getattr(photo, attribute) for photo in photos])
    header = {"prepared": asdict(result)}
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs[_HEADER] = json.dumps(header)
        file["photos"] = json.dumps(about)
        file["observations"], file["pairs"], file["shares"] = seen, pairs, shares
    return result


def scene_list(name: str) -> list[str] | None:
    """The scenes of a list, as SCENE or SCENE/NUMBER; None for `all`."""
    if name == "all":
        return None
    if name not in SCENE_LISTS:
        raise InputError(
            f"there is no list of scenes {name!r}: give {', '.join(SCENE_LISTS)} or all"
        )
    file = resources.files(__package__) / "scene_lists" / f"{name}.txt"
    return [line for line in file.read_text(encoding="utf-8").split("\n") if line[:1].isdigit()]


def _read(dense: Path, model_folder: Path) -> list[ScenePhoto | str]:
    """The photos with a valid depth map, and the problem of every other photo."""
    import pycolmap

    images, depths = dense / "imgs", dense / "depths"
    model = read_model(model_folder)
    options = pycolmap.UndistortCameraOptions()
    # COLMAP reduced the photos to this size when it undistorted them.
    edges = (max(size_of(path, upright=False)) for path in images.iterdir())
    options.max_image_size = max(edges, default=0)

    def read(image: pycolmap.Image) -> ScenePhoto | str:
        path, depth_map = images / image.name, (depths / image.name).with_suffix(".h5")
        if not image.has_pose or not image.num_points3D:
            return "no points"
        if not depth_map.is_file():
            return "no depth map"
        if not path.is_file():
            return "no photo"
        photo = scene_photo(model, image, path, depth_map)
        directions = np.hstack([rays(photo.camera, photo.points), np.ones((len(photo.points), 1))])
        camera = pycolmap.undistort_camera(options, photo.camera)
        photo = replace(photo, camera=camera, points=project(camera, directions))
        if photo.size != size_of(path, upright=False):
            return "a photo of another size"
        return _depth_problem(photo, depth_map) or photo

    return [read(image) for image in sorted(model.images.values(), key=lambda image: image.name)]


def _depth_problem(photo: ScenePhoto, depth_map: Path) -> str | None:
    """What is wrong with a photo's depth map; None if nothing is."""
    try:
        depth = read_raw_depth(depth_map)
    except FormatError:
        return "a broken depth map"
    if (depth < 0).any():
        return "ordinal depth"
    if not (depth > 0).any():
        return "an empty depth map"
    if depth.shape[::-1] != photo.size:
        return "a depth map of another size"
    posed = PosedDepth(photo.camera, photo.cam_from_world, depth.astype(np.float32), photo.size)
    errors = np.abs(posed.depth_at(photo.points) - photo.depths) / photo.depths
    known = errors[np.isfinite(errors)]
    contradicts = len(known) >= _MIN_POINTS and np.median(known) > _MAX_DEPTH_ERROR
    return "depth that contradicts the points" if contradicts else None
