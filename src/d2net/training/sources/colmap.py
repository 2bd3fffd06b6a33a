"""COLMAP reconstructions: photos, model, and depth maps if there are any."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from d2net.errors import D2NetError, InputError
from d2net.geometry.cameras import check_photo_size
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS
from d2net.io.colmap_model import find_model, read_model
from d2net.io.h5 import FeatureFile
from d2net.io.image_lists import find_photo, photos_folder
from d2net.training.sources.reading import find_depth_map, size_of
from d2net.training.sources.scenes import Scene, SceneOptions, ScenePairs, ScenePhoto, find_overlaps

if TYPE_CHECKING:
    import pycolmap

_MIN_CORRESPONDENCES = {True: 128, False: 16}  # with depth (of 1024 cells) and without


@dataclass(frozen=True)
class ColmapOptions(SceneOptions):
    """Options of a COLMAP reconstruction."""

    min_overlap: float = 0.3
    """Below the release's 0.5, because tracks end where keypoints of the reconstruction were not
    matched, even though the photos still overlap."""

    model: str = ""
    """Folder of the model in the source. Empty: `model`, `sparse/0`, `sparse` or the source."""

    images: str = ""
    """Folder of the photos in the source. Empty: `images`, or the source itself."""

    depth: bool = True
    """Whether to use depth maps. False: use the tracks in any case."""

    min_correspondences: int = 0
    """0 stands for 128 with depth maps and 16 without."""


def open_colmap(folder: Path, options: ColmapOptions, crop: int) -> ScenePairs:
    """Open a reconstruction: text or binary, any camera model, with or without depth maps.

    `find_depth_map` says where depth maps are looked for. If some have one, others are left out.
    """
    if not folder.is_dir():
        raise InputError(f"there is no folder {folder}")
    path = find_model(folder / options.model) or folder / options.model
    model = read_model(path)
    map_folder = path.resolve().parent.parent
    are_upright = False  # COLMAP rotates no photo
    with suppress(D2NetError), FeatureFile(map_folder / "features.h5") as features:
        are_upright = (map_folder / "map.json").is_file() and features.upright
    images = folder / options.images if options.images else photos_folder(folder)
    photos: list[ScenePhoto] = []
    missing: list[str] = []
    without_points = 0
    for image in sorted(model.images.values(), key=lambda image: image.name):
        file = find_photo([images], image.name) or images / image.name
        if image.has_pose and not file.is_file():
            missing.append(image.name)
        elif image.has_pose:
            depth_map = find_depth_map(folder, image.name) if options.depth else None
            photo = scene_photo(model, image, file, depth_map)
            if not len(photo.ids):
                without_points += 1
                continue
            sizes = [size_of(file, upright=upright) for upright in (False, True)]
            upright = are_upright if sizes[are_upright] == photo.size else not are_upright
            check_photo_size(f"the photo {file}", sizes[upright], photo.camera)
            photos.append(replace(photo, upright=upright).reduced(options.max_edge))
    remarks = []
    total = model.num_images()
    if missing:
        remarks.append(
            f"{len(missing)} of the {total} photos are not in {images} (for example {missing[0]}) "
            "and are left out"
        )
    if without_points:
        remarks.append(f"{without_points} of the {total} photos see no point and are left out")
    if not photos:
        reason = "; ".join(remarks) or "it has no photo with a pose"
        raise InputError(
            f"the model {path} gives no photo to train on: {reason}; give a model with "
            "points, and the folder of its photos with --set images=DIR or in a recipe; for a map "
            "by d2net, train on the folder that `d2net export scene` writes"
        )
    with_depth = [photo for photo in photos if photo.depth_map is not None]
    if with_depth and len(with_depth) < len(photos):
        left_out = f"{len(photos) - len(with_depth)} of the {len(photos)} photos"
        remarks.append(f"{left_out} have no depth map and are left out")
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
        options = replace(options, min_correspondences=_MIN_CORRESPONDENCES[bool(with_depth)])
    scene = Scene(pairs[shares >= options.min_overlap], photos.__getitem__)
    return ScenePairs(folder.resolve().name, [scene], options, crop, tuple(remarks))


def scene_photo(
    model: pycolmap.Reconstruction, image: pycolmap.Image, path: Path, depth_map: Path | None
) -> ScenePhoto:
    """A photo of a model, in the pixels of its camera. The photo itself is not read."""
    camera = model.cameras[image.camera_id]
    if not camera.width * camera.height:
        raise InputError(f"the camera of the photo {path} has no size: give it the photo's")
    points = model.points3D
    observations = [p for p in image.get_observation_points2D() if p.point3D_id in points]
    ids, rows = np.unique([point.point3D_id for point in observations], return_index=True)
    in_photo = np.array([observations[row].xy for row in rows], np.float64).reshape(-1, 2)
    in_world = np.array([points[i].xyz for i in ids], np.float64).reshape(-1, 3)
    pose = np.asarray(image.cam_from_world().matrix(), np.float64)
    return ScenePhoto(
        path=path,
        camera=camera,
        cam_from_world=pose,
        ids=ids.astype(np.int64),
        points=COLMAP_FROM_PIXELS.inverse()(in_photo),
        depths=in_world @ pose[2, :3] + pose[2, 3],
        depth_map=depth_map,
    )
