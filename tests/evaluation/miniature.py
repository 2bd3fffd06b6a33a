"""Writes small datasets in exactly the layout of Aachen Day-Night."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pycolmap

Photo = Path | bytes


def write_aachen(
    folder: Path,
    model: pycolmap.Reconstruction,
    queries: Mapping[str, tuple[pycolmap.Camera, pycolmap.Rigid3d]],
    photos: Mapping[str, Photo],
) -> None:
    """Aachen Day-Night.

    Args:
        folder: is made.
        model: of the database photos, named db/..., with points.
        queries: camera and true pose of query/day/... and query/night/...
        photos: the files, or what to write into them, of both.
    """
    for name, photo in photos.items():
        put(folder / "images" / "images_upright" / name, photo)
    (folder / "3D-models" / "aachen_v_1_1").mkdir(parents=True)
    model.write_binary(folder / "3D-models" / "aachen_v_1_1")
    (folder / "queries").mkdir()
    for group in ("day", "night"):
        lines = [
            f"{name} {camera.model_name} {camera.width} {camera.height} "
            f"{' '.join(map(str, camera.params))}\n"
            for name, (camera, _) in queries.items()
            if f"/{group}/" in name
        ]
        path = folder / "queries" / f"{group}_time_queries_with_intrinsics.txt"
        path.write_text("".join(lines))
    database = sorted(image.name for image in model.images.values())
    pairs = [f"{query} {name}\n" for query in queries for name in database]
    (folder / "pairs-query-netvlad50.txt").write_text("".join(pairs))
    write_truth(folder / "truth.txt", {name: pose for name, (_, pose) in queries.items()})


def put(path: Path, photo: Photo) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(photo, Path):
        shutil.copy(photo, path)
    else:
        path.write_bytes(photo)


def write_truth(path: Path, poses: Mapping[str, pycolmap.Rigid3d]) -> None:
    """As the benchmark's site takes poses; written here by itself, to hold the package against."""
    lines = []
    for name, pose in poses.items():
        x, y, z, w = pose.rotation.quat
        numbers = (w, x, y, z, *pose.translation)
        lines.append(" ".join([name.rpartition("/")[2], *map(str, numbers)]) + "\n")
    path.write_text("".join(lines))
