"""A map as undistorted photos and points (PLY), for Gaussian splatting and nerfstudio."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pycolmap
from PIL import Image

from d2net.geometry.cameras import quiet_colmap
from d2net.io.atomic import new_folder
from d2net.io.colmap_model import write_model
from d2net.io.h5 import FeatureFile
from d2net.io.images import for_screen, to_pixels
from d2net.mapping.map_folder import MapFolder
from d2net.progress import Progress, no_progress

POINTS = "points.ply"
_JPEG_QUALITY = 95
_PLY_POINT = 15  # bytes
_OPENGL_FROM_COLMAP = np.diag([1.0, -1.0, -1.0, 1.0])
"""OpenGL's camera looks along -z and its y axis points up; COLMAP's along z, and y points down."""


def export_scene(
    map_folder: Path | str, output: Path | str, progress: Progress = no_progress
) -> pycolmap.Reconstruction:
    """Write the first model of a map with undistorted photos and pinhole cameras.

    The folder has COLMAP's layout (`images/`, `sparse/0`) beside `transforms.json` (nerfstudio's
    format) and `points.ply`. All of them use the map's world coordinates.
    `output` must not exist, or be empty. Returns the written model.
    """
    folder = MapFolder(Path(map_folder))
    model = folder.read_models()[0][0]
    with FeatureFile(folder.features) as features:
        upright = features.upright
    options = pycolmap.UndistortCameraOptions()
    lenses = {number: pycolmap.Camera(camera.todict()) for number, camera in model.cameras.items()}
    for number, lens in lenses.items():
        pinhole = pycolmap.undistort_camera(options, lens)
        pinhole.camera_id = number
        model.cameras[number].mergedict(pinhole.todict())
    posed = sorted((i for i in model.images.values() if i.has_pose), key=lambda i: i.name)
    names = {image.name for image in posed}
    with new_folder(Path(output)) as scene:
        for done, image in enumerate(posed):
            progress(f"undistorting {image.name}", done, len(posed))
            lens = lenses[image.camera_id]
            pixels = to_pixels(folder.photo(image.name), upright=upright)
            bitmap = pycolmap.Bitmap.from_array(
                pixels if pixels.dtype == np.uint8 else for_screen(pixels)
            )
            with quiet_colmap():
                undistorted, _ = pycolmap.undistort_image(options, bitmap, lens)
            if len(image.points2D):
                rays = lens.cam_from_img(np.array([point.xy for point in image.points2D]))
                pinhole = model.cameras[image.camera_id]
                moved = pinhole.img_from_cam(np.column_stack([rays, np.ones(len(rays))]))
                for point, xy in zip(image.points2D, np.nan_to_num(moved), strict=True):
                    point.xy = xy
            if Path(image.name).suffix.lower() not in (".jpg", ".jpeg", ".png"):
                image.name += ".jpg"
                while image.name in names:
                    image.name += ".jpg"
            path = scene / "images" / image.name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(undistorted.to_array()).save(path, quality=_JPEG_QUALITY)
        with quiet_colmap():
            model.extract_colors_for_all_images(scene / "images")
        write_model(model, scene / "sparse" / "0")
        model.export_PLY(scene / POINTS)
        if (scene / POINTS).stat().st_size < _PLY_POINT * model.num_points3D():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # COLMAP does not notice it
        # nerfstudio's format: https://docs.nerf.studio/quickstart/data_conventions.html
        frames = []
        for image in posed:
            camera = model.cameras[image.camera_id]
            world_from_cam = np.vstack([image.cam_from_world().inverse().matrix(), [0, 0, 0, 1]])
            frames.append(
                {
                    "file_path": f"images/{image.name}",
                    "w": camera.width,
                    "h": camera.height,
                    **dict(zip(("fl_x", "fl_y", "cx", "cy"), camera.params.tolist(), strict=True)),
                    "transform_matrix": (world_from_cam @ _OPENGL_FROM_COLMAP).tolist(),
                }
            )
        transforms = {"camera_model": "PINHOLE", "ply_file_path": POINTS, "frames": frames}
        text = json.dumps(transforms, indent=1, ensure_ascii=False) + "\n"
        (scene / "transforms.json").write_text(text, encoding="utf-8")
    return model
