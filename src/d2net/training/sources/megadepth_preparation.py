"""Prepares MegaDepth for training, in place of the three scripts of the 2019 release.

Li and Snavely, "MegaDepth: Learning Single-View Depth Prediction from Internet Photos", CVPR 2018.

Photos and depth maps are checked, cameras undistorted, overlaps measured, and a file is written per
reconstruction (`megadepth.py`). The published photos and depth maps are undistorted, but the
published models are not. Two layouts are read:

- Published: cameras and points are undistorted here as COLMAP did it when the depth maps were made.
  The published photos are used as they are; no COLMAP is run and no photo is written.
- Prepared for the release: its script has undistorted the photos of the models again; these photos
  and their models are read.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from importlib import resources
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.geometry.cameras import from_colmap, intrinsics_from_colmap, pinhole, project, rays
from d2net.io.atomic import output_errors
from d2net.io.colmap_model import read_model
from d2net.io.pickles import read_npz
from d2net.progress import Progress, no_progress
from d2net.training.correspondences import PosedDepth
from d2net.training.crops import Array
from d2net.training.sources.colmap import posed_photo
from d2net.training.sources.megadepth import MIN_STORED_OVERLAP, read_notes, write_scene
from d2net.training.sources.reading import read_raw_depth, stored_size
from d2net.training.sources.scenes import PosedPhoto, find_overlaps

if TYPE_CHECKING:
    import pycolmap

SCENE_LISTS = ("default", "paper", "paper-validation")
"""Lists of scenes that come with the package; `all` stands for every scene that is there."""

PHOTOS = Path("phoenix", "S6", "zl548", "MegaDepth_v1")
MODELS = Path("MegaDepth_v1_SfM")
UNDISTORTED = Path("Undistorted_SfM")

_MAX_DEPTH_ERROR = 0.1
"""Maximum median difference between a sound depth map and the points that its photo sees, as a
share of the depth."""

_MIN_POINTS = 10
"""With fewer points on known depth the median is not judged."""

_SCENE_INFO_KEYS = (
    "image_paths",
    "depth_paths",
    "intrinsics",
    "poses",
    "points3D_id_to_2D",
    "points3D_id_to_ndepth",
)


@dataclass(frozen=True)
class PreparedScene:
    """Result of preparing one reconstruction.

    Attributes:
        name: SCENE/NUMBER.
        photos: number of usable photos.
        pairs: number of ordered pairs that were stored.
        left_out: number of photos that were left out, by reason.
        error: why the reconstruction could not be read, or "".
    """

    name: str
    photos: int = 0
    pairs: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    error: str = ""


def prepare_megadepth(
    root: Path,
    output: Path,
    scenes: str = "default",
    scene_info: Path | None = None,
    jobs: int = 1,
    progress: Progress = no_progress,
) -> list[PreparedScene]:
    """Check MegaDepth and store what training needs of it. An interrupted run resumes.

    Args:
        root: the folder of `phoenix` and `MegaDepth_v1_SfM`, or of `phoenix` and
            `Undistorted_SfM`.
        output: folder for a file per reconstruction, created if needed. Existing files are kept.
        scenes: `default`, `paper`, `paper-validation`, `all`, or a file with a scene per line.
        scene_info: folder of the 2019 release's SCENE.npz files, to be read instead of models.
        jobs: number of processes.
        progress: called after each reconstruction.

    Returns:
        The results in order.

    Raises:
        InputError: no MegaDepth at `root`, none of the scenes there, or no such list.
        OutputError: the output cannot be written.
    """
    if jobs < 1:
        raise InputError(f"jobs must be at least 1, not {jobs}")
    available = (
        find_reconstructions(root)
        if scene_info is None
        else [Reconstruction(path.stem, "0") for path in sorted(scene_info.glob("*.npz"))]
    )
    wanted = scene_list(scenes)
    chosen = [r for r in available if wanted is None or r.scene in wanted or r.name in wanted]
    if not chosen:
        raise InputError(f"none of the scenes of the list {scenes!r} is in {scene_info or root}")
    with output_errors(output / "scene"):
        output.mkdir(parents=True, exist_ok=True)
    prepare = partial(_prepare, root, output, scene_info)
    results = []
    progress("preparing", 0, len(chosen))
    pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) if jobs > 1 else None
    with pool or nullcontext():
        for result in pool.map(prepare, chosen) if pool else map(prepare, chosen):
            results.append(result)
            progress(f"preparing: {result.name}", len(results), len(chosen))
    return results


def _prepare(
    root: Path, output: Path, scene_info: Path | None, reconstruction: Reconstruction
) -> PreparedScene:
    path = output / f"{reconstruction.scene}-{reconstruction.number}.h5"
    if path.exists():
        try:
            return PreparedScene(**read_notes(path)["prepared"])
        except (FormatError, KeyError, TypeError):
            path.unlink()  # of another version, or damaged
    try:
        if scene_info is None:
            found = read_reconstruction(root, reconstruction)
        else:
            found = read_scene_info(scene_info / f"{reconstruction.scene}.npz", root)
    except FormatError as error:
        return PreparedScene(reconstruction.name, error=str(error))
    photos = [photo for photo in found if isinstance(photo, PosedPhoto)]
    left_out = Counter(problem for problem in found if isinstance(problem, str))
    overlaps = find_overlaps(photos, MIN_STORED_OVERLAP)
    counts = dict(sorted(left_out.items()))
    result = PreparedScene(reconstruction.name, len(photos), len(overlaps.pairs), counts)
    write_scene(path, root, photos, overlaps, {"prepared": asdict(result)})
    return result


def scene_list(name: str) -> list[str] | None:
    """The scenes of a list, as SCENE or SCENE/NUMBER; None for all.

    Args:
        name: `default`, `paper`, `paper-validation`, `all`, or a file.

    Raises:
        InputError: neither a list nor a file.
    """
    if name == "all":
        return None
    if name in SCENE_LISTS:
        file = resources.files(__package__) / "scene_lists" / f"{name}.txt"
        lines = file.read_text(encoding="utf-8").splitlines()
    else:
        try:
            lines = Path(name).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                f"there is no list of scenes {name!r}: give {', '.join(SCENE_LISTS)}, all, or a "
                "text file with a scene per line"
            ) from error
    return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


@dataclass(frozen=True)
class Reconstruction:
    """One reconstruction of a scene: `dense0` with `manhattan/0`, for example."""

    scene: str
    number: str

    @property
    def name(self) -> str:
        """SCENE/NUMBER, as scene lists write it."""
        return f"{self.scene}/{self.number}"

    def undistorted_model(self, root: Path) -> Path | None:
        """The model that the release's script has undistorted; it does so for number 0 alone."""
        scene = root / UNDISTORTED / self.scene
        folders = (scene / "sparse", scene / "sparse-txt")
        return _first_model(*folders) if self.number == "0" else None

    def published_model(self, root: Path) -> Path | None:
        """The published model."""
        return _first_model(root / MODELS / self.scene / "sparse" / "manhattan" / self.number)


def _first_model(*folders: Path) -> Path | None:
    names = ("images.bin", "images.txt")
    return next((f for f in folders if any((f / name).is_file() for name in names)), None)


def find_reconstructions(root: Path) -> list[Reconstruction]:
    """The reconstructions that have depth maps and a model.

    Raises:
        InputError: there are none: another layout, or parts of the download are missing.
    """
    with_depth = [
        Reconstruction(dense.parent.name, dense.name.removeprefix("dense"))
        for dense in sorted((root / PHOTOS).glob("*/dense*"))
        if (dense / "depths").is_dir()
    ]
    complete = [r for r in with_depth if r.undistorted_model(root) or r.published_model(root)]
    if not complete:
        missing = MODELS if with_depth else PHOTOS
        raise InputError(
            f"{root} does not hold MegaDepth: {missing} is missing or empty; expected "
            f"{PHOTOS}/SCENE/dense0/depths and {MODELS}/SCENE/sparse/manhattan/0 (or "
            f"{UNDISTORTED}/SCENE)"
        )
    return complete


def read_reconstruction(root: Path, reconstruction: Reconstruction) -> list[PosedPhoto | str]:
    """The photos that have sound depth maps; for each of the others its problem.

    Raises:
        FormatError: the model is broken.
    """
    dense = root / PHOTOS / reconstruction.scene / f"dense{reconstruction.number}"
    undistorted = reconstruction.undistorted_model(root)
    max_edge = None
    if undistorted is not None:
        images = root / UNDISTORTED / reconstruction.scene / "images"
        model = read_model(undistorted)
    else:
        images = dense / "imgs"
        model = read_model(reconstruction.published_model(root) or root)
        # COLMAP reduced the photos to this size when it undistorted them.
        edges = (max(stored_size(path, upright=False)) for path in images.iterdir())
        max_edge = max(edges, default=0)

    def read(image: pycolmap.Image) -> PosedPhoto | str:
        path, depth_map = images / image.name, (dense / "depths" / image.name).with_suffix(".h5")
        if not image.has_pose or not image.num_points3D:
            return "no points"
        if not depth_map.is_file():
            return "no depth map"
        if not path.is_file():
            return "no photo"
        photo = posed_photo(model, image, path, depth_map)
        if max_edge is not None:
            photo = _undistorted(photo, max_edge)
        is_pinhole = photo.camera.model.name == "PINHOLE"
        if photo.size != stored_size(path, upright=False) or not is_pinhole:
            return "photo of another size"
        return depth_problem(photo) or photo

    return [read(image) for image in sorted(model.images.values(), key=lambda image: image.name)]


def depth_problem(photo: PosedPhoto) -> str | None:
    """The problem of a photo's depth map, None if there is none.

    Maps of MegaDepth that hold an order instead of depths have negative values. (The release leaves
    out small files instead.)
    """
    if photo.depth_map is None:
        return "no depth map"
    try:
        depth = read_raw_depth(photo.depth_map)
    except FormatError:
        return "depth map broken"
    if (depth < 0).any():
        return "an order instead of depths"
    if not (depth > 0).any():
        return "depth map empty"
    if depth.shape[::-1] != photo.size:
        return "depth map of another size"
    posed = PosedDepth(photo.camera, photo.cam_from_world, depth.astype(np.float32), photo.size)
    errors = np.abs(posed.depth_at(photo.points) - photo.depths) / photo.depths
    known = errors[np.isfinite(errors)]
    if len(known) >= _MIN_POINTS and np.median(known) > _MAX_DEPTH_ERROR:
        return "depth contradicts the points"
    return None


def _undistorted(photo: PosedPhoto, max_edge: int) -> PosedPhoto:
    """A photo as COLMAP's image_undistorter changes it."""
    import pycolmap

    options = pycolmap.UndistortCameraOptions()
    options.max_image_size = max_edge
    camera = pycolmap.undistort_camera(options, photo.camera)
    directions = np.hstack([rays(photo.camera, photo.points), np.ones((len(photo.points), 1))])
    size = camera.width, camera.height
    return replace(photo, camera=camera, size=size, points=project(camera, directions))


def read_scene_info(path: Path, root: Path) -> list[PosedPhoto | str]:
    """The photos of a scene_info file of the 2019 release; for each unusable one its problem.

    The file holds pickles; nothing in them is executed.

    Args:
        path: SCENE.npz, as the release's preprocess_scene.py writes it.
        root: the folder that its paths are relative to.

    Raises:
        InputError: there is no such file.
        FormatError: it is damaged, wants something executed, or is no scene_info file.
    """
    entries = read_npz(path)
    try:
        rows = zip(*(entries[key] for key in _SCENE_INFO_KEYS), strict=True)
        listed = [_photo_from_row(root, *row) for row in rows if row[0] is not None]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(
            f"{path} is not a scene_info file of the D2-Net release ({error})"
        ) from error
    return [
        (depth_problem(photo) or photo) if photo.path.is_file() else "no photo" for photo in listed
    ]


def _photo_from_row(
    root: Path,
    image: str,
    depth: str,
    intrinsics: Array,
    pose: Array,
    points: dict[int, list[float]],
    pixel_sizes: dict[int, float],
) -> PosedPhoto:
    """A row of a scene_info file, whose intrinsics and points are in COLMAP's pixels."""
    camera = pinhole(intrinsics_from_colmap(np.asarray(intrinsics, np.float64)))
    path = root / str(image)
    size = stored_size(path, upright=False) if path.is_file() else (0, 0)
    camera.width, camera.height = size
    ids = np.array(sorted(points), np.int64)
    observations = np.array([points[i] for i in ids.tolist()], np.float64).reshape(-1, 2)
    sizes = np.array([pixel_sizes[i] for i in ids.tolist()], np.float64)
    return PosedPhoto(
        path=path,
        upright=False,
        size=size,
        camera=camera,
        cam_from_world=np.asarray(pose, np.float64).reshape(4, 4)[:3],
        ids=ids,
        points=from_colmap(observations),
        depths=sizes * camera.mean_focal_length(),
        depth_map=root / str(depth),
    )
