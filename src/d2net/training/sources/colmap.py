"""COLMAP reconstructions: photos, model, and dense depth where there is any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError, InputError
from d2net.geometry.cameras import from_colmap
from d2net.geometry.coordinates import Size
from d2net.io.colmap_model import find_model, read_model
from d2net.io.image_lists import photos_folder
from d2net.training.sources.depth_maps import find_depth_map
from d2net.training.sources.reading import stored_size
from d2net.training.sources.scenes import (
    DENSE_MINIMUM,
    SPARSE_MINIMUM,
    PosedPairs,
    PosedPhoto,
    SceneOptions,
    no_pairs,
    overlaps,
)

if TYPE_CHECKING:
    import pycolmap


@dataclass(frozen=True)
class ColmapOptions(SceneOptions):
    """Options of a COLMAP reconstruction.

    Attributes:
        min_overlap: below the release's 0.5, for tracks end where the keypoints of the
            reconstruction were not matched, not where the photos stop to overlap.
        model: folder of the model; by default `model`, `sparse/0`, `sparse` or the folder itself.
        images: folder of the photos; by default `images`, or the folder itself.
        depth: whether to use depth maps; False takes the tracks of points in any case.
        min_correspondences: 0 stands for 128 with depth, and 16 without.
    """

    min_overlap: float = 0.3
    model: str = ""
    images: str = ""
    depth: bool = True
    min_correspondences: int = 0


@dataclass(frozen=True, eq=False)
class LoadedScene:
    """A scene all of which is in memory."""

    photos: Sequence[PosedPhoto]
    pairs: NDArray[np.int64]

    def photo(self, number: int) -> PosedPhoto:
        """A photo by its number."""
        return self.photos[number]


def open_colmap(folder: Path, options: ColmapOptions, crop: int) -> PosedPairs:
    """Open a reconstruction: text or binary, any camera model, with or without dense depth.

    Depth maps are COLMAP's (`stereo/depth_maps`), or png and h5 files named like the photos in
    `depth` or `depths`. Photos without depth are left out if others have it.

    Raises:
        InputError: no such folder or model, no photos of it, or no pairs within the limits.
        FormatError: the model is broken, or photos have another size than their cameras.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    path = Path(options.model) if options.model else find_model(folder) or folder
    model = read_model(path)
    photos, remarks = _photos(folder, model, options)
    if not photos:
        reason = "; ".join(remarks) or "it has no photo with a pose"
        raise InputError(
            f"the model {path} gives no photo to train on: {reason}; give the folder of its photos "
            "as images, and a model with points"
        )
    with_depth = [photo for photo in photos if photo.depth_map is not None]
    if with_depth and len(with_depth) < len(photos):
        remarks.append(f"{len(photos) - len(with_depth)} photos have no depth map and are left out")
        photos = with_depth
    found = overlaps(photos)
    pairs = found.chosen(options)
    if not len(pairs):
        raise no_pairs(folder, found, options)
    if not options.min_correspondences:
        least = DENSE_MINIMUM if with_depth else SPARSE_MINIMUM
        options = replace(options, min_correspondences=least)
    scene = LoadedScene(photos, pairs)
    return PosedPairs(options.name or folder.resolve().name, [scene], options, crop, remarks)


def _images_folder(folder: Path, options: ColmapOptions) -> Path:
    if options.images:
        return Path(options.images)
    return photos_folder(folder)


def _photos(
    folder: Path, model: pycolmap.Reconstruction, options: ColmapOptions
) -> tuple[list[PosedPhoto], list[str]]:
    images = _images_folder(folder, options)
    photos, missing, blind = [], [], 0
    for image in sorted(model.images.values(), key=lambda image: image.name):
        if not image.has_pose:
            continue
        if not (images / image.name).is_file():
            missing.append(image.name)
        elif not image.num_points3D:
            blind += 1
        else:
            depth = find_depth_map(folder, image.name) if options.depth else None
            photos.append(posed_photo(model, image, images / image.name, depth, options.max_edge))
    remarks = []
    if missing:
        remarks.append(
            f"{len(missing)} photos of the model are not in {images}, as {missing[0]}, and are "
            "left out"
        )
    if blind:
        remarks.append(f"{blind} photos see no point and are left out")
    return photos, remarks


def posed_photo(
    model: pycolmap.Reconstruction,
    image: pycolmap.Image,
    path: Path,
    depth_map: Path | None,
    max_edge: int | None,
) -> PosedPhoto:
    """A photo of a model as it will be read, its longer edge at most `max_edge` pixels.

    Raises:
        FormatError: the photo has another size than its camera.
        ImageError: it is no photo.
    """
    camera = model.cameras[image.camera_id]
    size = camera.width, camera.height
    photo = observed(model, image, path, depth_map)
    return replace(photo, upright=_is_upright(path, size)).reduced(max_edge)


def observed(
    model: pycolmap.Reconstruction, image: pycolmap.Image, path: Path, depth_map: Path | None
) -> PosedPhoto:
    """What a model says about a photo, in the pixels of its camera; the photo is not looked at."""
    camera = model.cameras[image.camera_id]
    seen = image.get_observation_points2D()
    ids, rows = np.unique([point.point3D_id for point in seen], return_index=True)
    in_model = np.array([seen[row].xy for row in rows], np.float64).reshape(-1, 2)
    world = np.array([model.points3D[i].xyz for i in ids], np.float64).reshape(-1, 3)
    pose = np.asarray(image.cam_from_world().matrix(), np.float64)
    return PosedPhoto(
        path=path,
        upright=False,
        size=(camera.width, camera.height),
        camera=camera,
        cam_from_world=pose,
        ids=ids.astype(np.int64),
        points=from_colmap(in_model),
        depths=world @ pose[2, :3] + pose[2, 3],
        depth_map=depth_map,
    )


def _is_upright(path: Path, size: Size) -> bool:
    """Whether the camera is that of the photo turned upright; COLMAP itself does not turn it."""
    stored = stored_size(path, upright=False)
    if stored == size:
        return False
    if stored_size(path, upright=True) == size:
        return True
    raise FormatError(
        f"the photo {path} has {stored[0]} x {stored[1]} pixels, but its camera in the model "
        f"{size[0]} x {size[1]}: use the photos that the model was made of"
    )
