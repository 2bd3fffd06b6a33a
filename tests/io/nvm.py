"""Writes VisualSFM's form of a COLMAP model, and the list of its cameras."""

from __future__ import annotations

from pathlib import Path

import pycolmap


def write_nvm(path: Path, intrinsics: Path, model: pycolmap.Reconstruction) -> None:
    images = list(model.images.values())
    places = {image.image_id: i for i, image in enumerate(images)}
    lines = ["NVM_V3", "", str(len(images))]
    cameras = []
    for image in images:
        camera = model.cameras[image.camera_id]
        x, y, z, w = image.cam_from_world().rotation.quat
        pose = [w, x, y, z, *image.projection_center()]
        lines.append(f"{image.name} {camera.mean_focal_length()} {' '.join(map(str, pose))} 0 0")
        size = f"{camera.width} {camera.height}"
        cameras.append(
            f"{image.name} {camera.model_name} {size} {' '.join(map(str, camera.params))}"
        )
    lines += ["", str(model.num_points3D())]
    for point in model.points3D.values():
        seen = [
            f"{places[e.image_id]} {e.point2D_idx} "
            + " ".join(map(str, model.images[e.image_id].points2D[e.point2D_idx].xy))
            for e in point.track.elements
        ]
        colour = " ".join(map(str, point.color))
        place = " ".join(map(str, point.xyz))
        lines.append(f"{place} {colour} {len(seen)} {' '.join(seen)}")
    path.write_text("\n".join([*lines, "", "0", "", "# the end"]) + "\n")
    intrinsics.write_text("\n".join(cameras) + "\n")
