"""MegaDepth in miniature: its layout exactly, its content a plane."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from .plane import UNREDUCED, Plane, write_depth_h5

JPEGS = ("10_a_o.jpg", "11_b_o.jpg", "12_c_o.jpg", "13_d_o.jpg")


def flat_size() -> tuple[int, int]:
    options = pycolmap.UndistortCameraOptions()
    options.max_image_size = 200
    flat = pycolmap.undistort_camera(options, Plane(size=UNREDUCED).camera)
    return flat.width, flat.height


def flat_plane() -> Plane:
    """What the published photos show."""
    return Plane(size=flat_size(), undistorted=True)


def write_raw(root: Path, *scenes: str) -> Path:
    """The published form: undistorted photos and depth, distorted models."""
    flat, raw = flat_plane(), Plane(size=UNREDUCED)
    for scene in scenes:
        dense = root / "phoenix" / "S6" / "zl548" / "MegaDepth_v1" / scene / "dense0"
        (dense / "imgs").mkdir(parents=True)
        for number, name in enumerate(JPEGS):
            Image.fromarray(flat.photo(number)).save(dense / "imgs" / name, quality=95)
            write_depth_h5((dense / "depths" / name).with_suffix(".h5"), flat.depth(number))
        model = root / "MegaDepth_v1_SfM" / scene / "sparse" / "manhattan" / "0"
        model.mkdir(parents=True)
        raw.reconstruction(JPEGS).write_binary(model)
    return root


def write_undistorted(root: Path, scene: str) -> Path:
    """The form that the release's scripts make: photos undistorted again, with their model."""
    write_raw(root, scene)
    flat = flat_plane()
    (root / "MegaDepth_v1_SfM").rename(root / "elsewhere")
    folder = root / "Undistorted_SfM" / scene
    (folder / "images").mkdir(parents=True)
    (folder / "sparse-txt").mkdir()
    for number, name in enumerate(JPEGS):
        Image.fromarray(flat.photo(number)).save(folder / "images" / name, quality=95)
    flat.reconstruction(JPEGS).write_text(folder / "sparse-txt")
    return root


def write_scene_info(root: Path, folder: Path, scene: str) -> Path:
    """What the release's preprocess_scene.py leaves, pickles and all, for `write_undistorted`."""
    model = flat_plane().reconstruction(JPEGS)
    K = model.cameras[1].calibration_matrix()
    focal = 0.5 * (K[0, 0] + K[1, 1])
    points, sizes, images, depths, poses = [], [], [], [], []
    for image in sorted(model.images.values(), key=lambda image: image.name):
        seen = {p.point3D_id: p.xy.tolist() for p in image.get_observation_points2D()}
        matrix = np.vstack([image.cam_from_world().matrix(), [0, 0, 0, 1]])
        points.append(seen)
        sizes.append(
            {i: (matrix[2, :3] @ model.points3D[i].xyz + matrix[2, 3]) / focal for i in seen}
        )
        images.append(f"Undistorted_SfM/{scene}/images/{image.name}")
        stem = image.name.removesuffix(".jpg")
        depths.append(f"phoenix/S6/zl548/MegaDepth_v1/{scene}/dense0/depths/{stem}.h5")
        poses.append(matrix)
    for rows in (images, depths):
        rows.append(None)  # as the release leaves photos without depth
    poses.append(None)
    folder.mkdir(exist_ok=True)
    np.savez(
        folder / f"{scene}.npz",
        image_paths=np.array(images, dtype=object),
        depth_paths=np.array(depths, dtype=object),
        intrinsics=_objects([K] * 4 + [None]),
        poses=_objects(poses),
        overlap_matrix=np.full((5, 5), -1.0),
        scale_ratio_matrix=np.full((5, 5), -1.0),
        angles=np.zeros((5, 5)),
        n_points3D=[len(seen) for seen in points] + [0],
        points3D_id_to_2D=_objects([*points, {}]),
        points3D_id_to_ndepth=_objects([*sizes, {}]),
    )
    return folder


def _objects(rows):
    array = np.empty(len(rows), object)
    array[:] = rows
    return array


def photo_number(path: str) -> int:
    return JPEGS.index(Path(path).name)
