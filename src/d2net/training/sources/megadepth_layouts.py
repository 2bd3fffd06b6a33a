"""MegaDepth as it is published, and as users of the 2019 release have prepared it.

Li and Snavely, "MegaDepth: Learning Single-View Depth Prediction from Internet Photos", CVPR 2018.
The published photos and depth maps are undistorted, the published models are not. Where the photos
of the models have been undistorted again, as the release's script does, these and their model are
read. Otherwise cameras and points are undistorted here, as COLMAP did it when the depth maps were
made, and the published photos are used as they are: no COLMAP is run and no photo is written.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import FormatError, InputError
from d2net.geometry.cameras import from_colmap, intrinsics_from_colmap, pinhole, project, rays
from d2net.io.colmap_model import read_model
from d2net.io.pickles import read_npz
from d2net.training.correspondences import DepthView
from d2net.training.sources.colmap import observed
from d2net.training.sources.depth_maps import read_samples
from d2net.training.sources.reading import stored_size
from d2net.training.sources.scenes import PosedPhoto
from d2net.training.views import Array

if TYPE_CHECKING:
    import pycolmap

PHOTOS = Path("phoenix", "S6", "zl548", "MegaDepth_v1")
MODELS = Path("MegaDepth_v1_SfM")
UNDISTORTED = Path("Undistorted_SfM")

_LARGEST_DEPTH_ERROR = 0.1
"""Median share by which a sound depth map may differ from the points that its photo sees."""

_FEWEST_POINTS = 10
"""Points on known depth below which the median says nothing."""


@dataclass(frozen=True)
class Part:
    """One reconstruction of a scene: `dense0` with `manhattan/0`, for example."""

    scene: str
    number: str

    @property
    def name(self) -> str:
        """As scene lists write it."""
        return f"{self.scene}/{self.number}"


def find_parts(root: Path) -> list[Part]:
    """The reconstructions that have photos, depth maps and a model.

    Raises:
        InputError: there are none: another layout, or parts of the download are missing.
    """
    parts = [
        Part(dense.parent.name, dense.name.removeprefix("dense"))
        for dense in sorted((root / PHOTOS).glob("*/dense*"))
        if (dense / "depths").is_dir()
    ]
    found = [part for part in parts if _undistorted_model(root, part) or _model(root, part)]
    if not found:
        lacking = MODELS if parts else PHOTOS
        raise InputError(
            f"{root} does not hold MegaDepth: {lacking} is missing or empty; expected "
            f"{PHOTOS}/SCENE/dense0/depths and {MODELS}/SCENE/sparse/manhattan/0 (or "
            f"{UNDISTORTED}/SCENE)"
        )
    return found


def read_part(root: Path, part: Part) -> tuple[list[PosedPhoto], dict[str, int]]:
    """The photos of a reconstruction that have sound depth, and why others were left out.

    Raises:
        FormatError: its model is broken.
    """
    dense = root / PHOTOS / part.scene / f"dense{part.number}"
    undistorted = _undistorted_model(root, part)
    reasons: Counter[str] = Counter()
    photos = []
    if undistorted is not None:
        folder = root / UNDISTORTED / part.scene / "images"
        model, largest = read_model(undistorted), None
    else:
        folder = dense / "imgs"
        model, largest = read_model(_model(root, part) or root), _largest_edge(folder)
    for image in sorted(model.images.values(), key=lambda image: image.name):
        depth = (dense / "depths" / image.name).with_suffix(".h5")
        path = folder / image.name
        if not image.has_pose or not image.num_points3D:
            reasons["no points"] += 1
        elif not depth.is_file():
            reasons["no depth map"] += 1
        elif not path.is_file():
            reasons["no photo"] += 1
        else:
            photo = _photo(model, image, path, depth, largest)
            reason = "photo of another size" if photo is None else flaw(photo)
            if photo is None or reason is not None:
                reasons[str(reason)] += 1
            else:
                photos.append(photo)
    return photos, dict(reasons)


def flaw(photo: PosedPhoto) -> str | None:
    """What is wrong with a photo's depth map, None if nothing is.

    MegaDepth's maps of an order instead of depths hold negative values; the release leaves out
    small files for the same reason.
    """
    if photo.depth_map is None:
        return "no depth map"
    try:
        samples = read_samples(photo.depth_map)
    except FormatError:
        return "depth map broken"
    if (samples < 0).any():
        return "an order instead of depths"
    if not (samples > 0).any():
        return "depth map empty"
    if samples.shape[::-1] != photo.size:
        return "depth map of another size"
    depth = samples.astype(np.float32)
    view = DepthView(photo.camera, photo.cam_from_world, depth, photo.size)
    errors = np.abs(view.depth_at(photo.points) - photo.depths) / photo.depths
    known = errors[np.isfinite(errors)]
    if len(known) >= _FEWEST_POINTS and np.median(known) > _LARGEST_DEPTH_ERROR:
        return "depth contradicts the points"
    return None


def _undistorted_model(root: Path, part: Part) -> Path | None:
    """The release's undistorted model, which it makes of part 0 alone."""
    scene = root / UNDISTORTED / part.scene
    return _first_model(scene / "sparse", scene / "sparse-txt") if part.number == "0" else None


def _model(root: Path, part: Part) -> Path | None:
    return _first_model(root / MODELS / part.scene / "sparse" / "manhattan" / part.number)


def _first_model(*folders: Path) -> Path | None:
    names = ("images.bin", "images.txt")
    return next((f for f in folders if any((f / name).is_file() for name in names)), None)


def _largest_edge(folder: Path) -> int:
    """The size to which COLMAP reduced the photos of a part when it undistorted them."""
    sizes = [max(stored_size(path, upright=False)) for path in sorted(folder.iterdir())]
    return max(sizes, default=0)


def _photo(
    model: pycolmap.Reconstruction,
    image: pycolmap.Image,
    path: Path,
    depth: Path,
    largest: int | None,
) -> PosedPhoto | None:
    """A photo with a pinhole camera; None if the photo has another size than its camera.

    Args:
        model: whose photos are undistorted, or were not when it was made.
        image: the photo in it.
        path: the undistorted photo.
        depth: its depth map.
        largest: None if the model is of undistorted photos; else to what size COLMAP reduced them.
    """
    photo = observed(model, image, path, depth)
    if largest is not None:
        photo = _undistorted(photo, largest)
    sound = photo.size == stored_size(path, upright=False) and photo.camera.model.name == "PINHOLE"
    return photo if sound else None


def _undistorted(photo: PosedPhoto, largest: int) -> PosedPhoto:
    """What a photo's undistorted version shows, as COLMAP's image_undistorter makes it."""
    import pycolmap

    options = pycolmap.UndistortCameraOptions()
    options.max_image_size = largest
    camera = pycolmap.undistort_camera(options, photo.camera)
    flat = np.hstack([rays(photo.camera, photo.points), np.ones((len(photo.points), 1))])
    size = camera.width, camera.height
    return replace(photo, camera=camera, size=size, points=project(camera, flat))


def read_scene_info(path: Path, root: Path) -> tuple[list[PosedPhoto], dict[str, int]]:
    """The photos of a scene_info file of the 2019 release, and why others were left out.

    Nothing in the file is executed, though it holds pickles.

    Args:
        path: SCENE.npz, as the release's preprocess_scene.py writes it.
        root: the folder to which its paths are relative.

    Raises:
        InputError: there is no such file.
        FormatError: it is damaged, wants something executed, or holds other things.
    """
    entries = read_npz(path)
    try:
        rows = zip(*(entries[name] for name in _SCENE_INFO), strict=True)
        photos = [_listed_photo(root, *row) for row in rows if row[0] is not None]
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise FormatError(
            f"{path} is not a scene_info file of the D2-Net release ({error})"
        ) from error
    reasons: Counter[str] = Counter()
    sound = []
    for photo in photos:
        reason = flaw(photo) if photo.path.is_file() else "no photo"
        if reason is None:
            sound.append(photo)
        else:
            reasons[reason] += 1
    return sound, dict(reasons)


_SCENE_INFO = (
    "image_paths",
    "depth_paths",
    "intrinsics",
    "poses",
    "points3D_id_to_2D",
    "points3D_id_to_ndepth",
)


def _listed_photo(
    root: Path,
    image: str,
    depth: str,
    intrinsics: Array,
    pose: Array,
    points: dict[int, list[float]],
    pixel_sizes: dict[int, float],
) -> PosedPhoto:
    """A row of a scene_info file: K and points as COLMAP counts pixels, depth / focal length."""
    camera = pinhole(intrinsics_from_colmap(np.asarray(intrinsics, np.float64)))
    path = root / str(image)
    size = stored_size(path, upright=False) if path.is_file() else (0, 0)
    camera.width, camera.height = size
    ids = np.array(sorted(points), np.int64)
    seen = np.array([points[i] for i in ids.tolist()], np.float64).reshape(-1, 2)
    sizes = np.array([pixel_sizes[i] for i in ids.tolist()], np.float64)
    return PosedPhoto(
        path=path,
        upright=False,
        size=size,
        camera=camera,
        cam_from_world=np.asarray(pose, np.float64).reshape(4, 4)[:3],
        ids=ids,
        points=from_colmap(seen),
        depths=sizes * camera.mean_focal_length(),
        depth_map=root / str(depth),
    )
