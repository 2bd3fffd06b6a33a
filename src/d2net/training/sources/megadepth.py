"""MegaDepth, prepared: one HDF5 file per reconstruction, read photo by photo.

`d2net data prepare` writes the files (`megadepth_preparation.py`). MegaDepth has more observations
than fit into memory, so a training process reads only those of the two photos that it needs.
Cameras are pinholes, in pixels whose centres are at integers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError, InputError
from d2net.geometry.cameras import intrinsics_from_colmap, pinhole
from d2net.io.atomic import replacing
from d2net.training.sources.scenes import Overlaps, PosedPhoto, Scene, SceneOptions, ScenePairs

MIN_STORED_OVERLAP = 0.1
"""Pairs of photos with a smaller overlap in both orders are not stored."""

_ATTRIBUTE, _FORMAT = "d2net", "d2net-scene-1"


@dataclass(frozen=True)
class MegadepthOptions(SceneOptions):
    """Options of prepared MegaDepth. The defaults are the release's."""

    pairs_per_scene: int = 100
    """Each scene counts as this many random pairs. 0: each pair counts once."""

    root: str = ""
    """Folder of MegaDepth. Empty: where it was when it was prepared."""


def open_megadepth(folder: Path, options: MegadepthOptions, crop: int) -> ScenePairs:
    """Open the scenes that `prepare_megadepth` wrote.

    Raises:
        InputError: no such folder, no prepared scene in it, or no pairs within the limits.
        FormatError: a prepared scene is damaged.
    """
    files = sorted(folder.glob("*.h5"))
    if not files:
        raise InputError(
            f"{folder} holds no prepared scenes: run `d2net data prepare megadepth ROOT "
            f"--output {folder}` first"
        )
    root = Path(options.root) if options.root else None
    stored = [StoredScene(path, root, options) for path in files]
    usable = [Scene(scene.pairs, scene.photo) for scene in stored if len(scene.pairs)]
    if not usable:
        raise InputError(
            f"none of the {len(stored)} scenes in {folder} has pairs within the limits of overlap "
            f"({options.min_overlap} to {options.max_overlap}) and scale ratio"
        )
    remarks = []
    if len(usable) < len(stored):
        remarks.append(f"{len(stored) - len(usable)} scenes have no pairs within the limits")
    if options.min_overlap < MIN_STORED_OVERLAP:
        remarks.append(f"pairs with an overlap below {MIN_STORED_OVERLAP} were not stored")
    return ScenePairs(
        options.name or "megadepth", usable, options, crop, remarks, options.pairs_per_scene or None
    )


def write_scene(
    path: Path,
    root: Path,
    photos: Sequence[PosedPhoto],
    overlaps: Overlaps,
    notes: Mapping[str, Any],
) -> None:
    """Write a scene; the file is whole or absent.

    Args:
        path: the file.
        root: folder that the paths of photos and depth maps are stored relative to.
        photos: photos with pinhole cameras and depth maps.
        overlaps: overlaps of the photos.
        notes: plain values to store with the scene.

    Raises:
        OutputError: it cannot be written.
        OutputBusyError: another process writes it.
    """

    def relative(file: Path | None) -> str:
        return "" if file is None else file.relative_to(root).as_posix()

    def intrinsics(photo: PosedPhoto) -> NDArray[np.float64]:
        return intrinsics_from_colmap(np.asarray(photo.camera.calibration_matrix(), np.float64))

    def joined(name: str, *shape: int) -> NDArray[Any]:
        return np.concatenate([np.empty((0, *shape)), *(getattr(photo, name) for photo in photos)])

    count, text = len(photos), h5py.string_dtype()
    poses = [photo.cam_from_world for photo in photos]
    datasets: dict[str, tuple[Any, Any]] = {
        "photos": ([relative(photo.path) for photo in photos], text),
        "depth_maps": ([relative(photo.depth_map) for photo in photos], text),
        "sizes": (np.reshape([photo.size for photo in photos], (count, 2)), np.int32),
        "intrinsics": (np.reshape([intrinsics(photo) for photo in photos], (count, 3, 3)), float),
        "cam_from_world": (np.reshape(poses, (count, 3, 4)), float),
        "ends": (np.cumsum([len(photo.ids) for photo in photos]), np.int64),
        "ids": (joined("ids"), np.int64),
        "points": (joined("points", 2), np.float32),
        "depths": (joined("depths"), np.float32),
        "pairs": (overlaps.pairs.reshape(-1, 2), np.int32),
        "shares": (overlaps.shares, np.float32),
        "scale_ratios": (overlaps.scale_ratios, np.float32),
    }
    header = {"format": _FORMAT, "root": str(root.resolve()), **notes}
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs[_ATTRIBUTE] = json.dumps(header)
        for name, (values, dtype) in datasets.items():
            file.create_dataset(name, data=values, dtype=dtype)


def read_notes(path: Path) -> dict[str, Any]:
    """The notes that are stored with a scene.

    Raises:
        FormatError: it is no stored scene, or damaged.
    """
    with _open(path) as file:
        header: dict[str, Any] = json.loads(file.attrs[_ATTRIBUTE])
    if header.get("format") != _FORMAT:
        raise FormatError(f"{path} is not a scene that `d2net data prepare` wrote")
    return header


def is_stored_scene(path: Path) -> bool:
    """Whether a file is a stored scene."""
    try:
        read_notes(path)
    except FormatError:
        return False
    return True


class StoredScene:
    """A stored scene. Its file is opened anew for each photo, so any process may use the object.

    Args:
        path: the file.
        root: folder of the photos; None: where they were when the scene was prepared.
        options: limits of overlap and scale ratio, and of the photos' size.

    Raises:
        FormatError: no such file, or it is damaged.
    """

    def __init__(self, path: Path, root: Path | None, options: SceneOptions) -> None:
        self._path, self._root = path, root or Path(read_notes(path)["root"])
        self._max_edge = options.max_edge
        with _open(path) as file:
            self._photos = [name.decode() for name in file["photos"][:]]
            self._depth_maps = [name.decode() for name in file["depth_maps"][:]]
            self._sizes = file["sizes"][:]
            self._intrinsics = file["intrinsics"][:]
            self._poses = file["cam_from_world"][:]
            self._ends = file["ends"][:]
            overlaps = Overlaps(
                file["pairs"][:].astype(np.int64), file["shares"][:], file["scale_ratios"][:]
            )
        self.pairs: NDArray[np.int64] = overlaps.within(options)

    def photo(self, number: int) -> PosedPhoto:
        """A photo with its observations.

        Raises:
            FormatError: the file is damaged or gone.
        """
        start, end = (int(self._ends[i]) if i >= 0 else 0 for i in (number - 1, number))
        with _open(self._path) as file:
            ids, points, depths = (file[name][start:end] for name in ("ids", "points", "depths"))
        camera = pinhole(self._intrinsics[number])
        camera.width, camera.height = map(int, self._sizes[number])
        depth_map = self._depth_maps[number]
        return PosedPhoto(
            path=self._root / self._photos[number],
            upright=False,
            size=(camera.width, camera.height),
            camera=camera,
            cam_from_world=self._poses[number],
            ids=ids,
            points=points.astype(np.float64),
            depths=depths.astype(np.float64),
            depth_map=self._root / depth_map if depth_map else None,
        ).reduced(self._max_edge)


@contextmanager
def _open(path: Path) -> Iterator[h5py.File]:
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FormatError(
            f"{path} is no stored scene, or damaged ({reason}): delete it and prepare it again"
        ) from error
