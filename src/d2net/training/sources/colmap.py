"""COLMAP reconstructions: photos, model, and depth maps where there are any."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import InputError
from d2net.geometry.cameras import check_photo_size, from_colmap
from d2net.io.colmap_model import find_model, read_model
from d2net.io.image_lists import photos_folder
from d2net.training.sources.reading import find_depth_map, stored_size
from d2net.training.sources.scenes import (
    PosedPhoto,
    Scene,
    SceneOptions,
    ScenePairs,
    find_overlaps,
)

if TYPE_CHECKING:
    import pycolmap

_MIN_CORRESPONDENCES_DENSE = 128  # of 1024 cells, as in the release
_MIN_CORRESPONDENCES_SPARSE = 16


@dataclass(frozen=True)
class ColmapOptions(SceneOptions):
    """Options of a COLMAP reconstruction."""

    min_overlap: float = 0.3
    """Below the release's 0.5, because tracks end where keypoints of the reconstruction were not
    matched, even though the photos still overlap."""

    model: str = ""
    """Folder of the model. Empty: `model`, `sparse/0`, `sparse` or the folder itself."""

    images: str = ""
    """Folder of the photos. Empty: `images`, or the folder itself."""

    depth: bool = True
    """Whether to use depth maps. False: use the tracks in any case."""

    min_correspondences: int = 0
    """0 stands for 128 with depth maps and 16 without."""


def open_colmap(folder: Path, options: ColmapOptions, crop: int) -> ScenePairs:
    """Open a reconstruction: text or binary, any camera model, with or without depth maps.

    `find_depth_map` says where depth maps are looked for. If some photos have one, the others are
    left out.

    Raises:
        InputError: no such folder or model, none of its photos, no pairs within the limits, or
            photos of another size than their cameras.
        FormatError: the model is broken.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    path = Path(options.model) if options.model else find_model(folder) or folder
    model = read_model(path)
    photos, remarks = _read_photos(folder, model, options)
    if not photos:
        reason = "; ".join(remarks) or "it has no photo with a pose"
        raise InputError(
            f"the model {path} gives no photo to train on: {reason}; give the folder of its photos "
            "as images, and a model with points"
        )
    with_depth = [photo for photo in photos if photo.depth_map is not None]
    if with_depth and len(with_depth) < len(photos):
        missing = len(photos) - len(with_depth)
        remarks.append(f"{missing} of the {len(photos)} photos have no depth map and are left out")
        photos = with_depth
    pairs, shares = find_overlaps(photos)
    if not len(pairs):
        raise InputError(f"no two photos of {folder} see the same point, so there are no pairs")
    if shares.max() < options.min_overlap:
        raise InputError(
            f"no two photos of {folder} have an overlap of {options.min_overlap}; the largest is "
            f"{shares.max():.2f}: lower min_overlap"
        )
    if not options.min_correspondences:
        minimum = _MIN_CORRESPONDENCES_DENSE if with_depth else _MIN_CORRESPONDENCES_SPARSE
        options = replace(options, min_correspondences=minimum)
    scene = Scene(pairs[shares >= options.min_overlap], photos.__getitem__)
    return ScenePairs(options.name or folder.resolve().name, [scene], options, crop, remarks)


def _read_photos(
    folder: Path, model: pycolmap.Reconstruction, options: ColmapOptions
) -> tuple[list[PosedPhoto], list[str]]:
    """The usable photos of a model, and remarks on the others."""
    images = Path(options.images) if options.images else photos_folder(folder)
    photos, missing, without_points = [], [], 0
    for image in sorted(model.images.values(), key=lambda image: image.name):
        path = images / image.name
        if not image.has_pose:
            continue
        if not path.is_file():
            missing.append(image.name)
        elif not image.num_points3D:
            without_points += 1
        else:
            depth_map = find_depth_map(folder, image.name) if options.depth else None
            photo = posed_photo(model, image, path, depth_map)
            photo = replace(photo, upright=_is_upright(path, photo.camera))
            photos.append(photo.reduced(options.max_edge))
    remarks = []
    if missing:
        remarks.append(
            f"{len(missing)} of the {model.num_images()} photos are not in {images} (for example "
            f"{missing[0]}) and are left out"
        )
    if without_points:
        remarks.append(
            f"{without_points} of the {model.num_images()} photos see no point and are left out"
        )
    return photos, remarks


def posed_photo(
    model: pycolmap.Reconstruction, image: pycolmap.Image, path: Path, depth_map: Path | None
) -> PosedPhoto:
    """A photo of a model, in the pixels of its camera. The photo itself is not read."""
    camera = model.cameras[image.camera_id]
    observations = image.get_observation_points2D()
    ids, rows = np.unique([point.point3D_id for point in observations], return_index=True)
    in_photo = np.array([observations[row].xy for row in rows], np.float64).reshape(-1, 2)
    in_world = np.array([model.points3D[i].xyz for i in ids], np.float64).reshape(-1, 3)
    pose = np.asarray(image.cam_from_world().matrix(), np.float64)
    return PosedPhoto(
        path=path,
        upright=False,
        size=(camera.width, camera.height),
        camera=camera,
        cam_from_world=pose,
        ids=ids.astype(np.int64),
        points=from_colmap(in_photo),
        depths=in_world @ pose[2, :3] + pose[2, 3],
        depth_map=depth_map,
    )


def _is_upright(path: Path, camera: pycolmap.Camera) -> bool:
    """Whether a camera is that of the photo turned upright; COLMAP itself does not turn photos.

    Raises:
        InputError: the camera has another size than the photo, turned or not.
    """
    size, stored = (camera.width, camera.height), stored_size(path, upright=False)
    if stored != size and stored_size(path, upright=True) == size:
        return True
    check_photo_size(f"the photo {path}", stored, camera)
    return False
