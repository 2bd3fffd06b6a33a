"""Scenes as `d2net data prepare` stores them: one HDF5 file each, read photo by photo.

Collections as MegaDepth hold more observations than memory does; a training process reads those of
the two photos that it needs. Cameras are pinholes, in pixels whose centres are at integers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError
from d2net.geometry.cameras import intrinsics_from_colmap, pinhole
from d2net.io.atomic import replacing
from d2net.training.sources.scenes import Overlaps, PosedPhoto, SceneOptions

if TYPE_CHECKING:
    import h5py

LEAST_OVERLAP = 0.1
"""Pairs of photos that share less are not stored."""

_ATTRIBUTE, _FORMAT = "d2net", "d2net-scene-1"


def write_scene(
    path: Path,
    root: Path,
    photos: Sequence[PosedPhoto],
    found: Overlaps,
    notes: Mapping[str, Any],
) -> None:
    """Store a scene; the file is whole or absent.

    Args:
        path: the file.
        root: photos and depth maps are named relative to it.
        photos: with pinhole cameras and depth.
        found: their overlaps.
        notes: plain values to keep with it.

    Raises:
        OutputError: it cannot be written.
        OutputBusyError: another process writes it.
    """
    import h5py

    text = h5py.string_dtype()
    named: dict[str, tuple[Any, Any]] = {
        "photos": ([photo.path.relative_to(root).as_posix() for photo in photos], text),
        "depth_maps": ([_relative(photo.depth_map, root) for photo in photos], text),
        "sizes": (_array([photo.size for photo in photos], 2), np.int32),
        "intrinsics": (_array([_intrinsics(photo) for photo in photos], 3, 3), np.float64),
        "cam_from_world": (_array([photo.cam_from_world for photo in photos], 3, 4), np.float64),
        "ends": (np.cumsum([len(photo.ids) for photo in photos]), np.int64),
        "ids": (_joined([photo.ids for photo in photos]), np.int64),
        "points": (_joined([photo.points for photo in photos], 2), np.float32),
        "depths": (_joined([photo.depths for photo in photos]), np.float32),
        "pairs": (found.pairs.reshape(-1, 2), np.int32),
        "shares": (found.shares, np.float32),
        "scale_ratios": (found.scale_ratios, np.float32),
    }
    header = {"format": _FORMAT, "root": str(root.resolve()), **notes}
    with replacing(path) as temporary, h5py.File(temporary, "w") as file:
        file.attrs[_ATTRIBUTE] = json.dumps(header)
        for name, (values, dtype) in named.items():
            file.create_dataset(name, data=values, dtype=dtype)


def _array(rows: Sequence[Any], *shape: int) -> NDArray[Any]:
    return np.array(rows).reshape(-1, *shape)


def _joined(parts: Sequence[NDArray[Any]], *shape: int) -> NDArray[Any]:
    return np.concatenate([np.empty((0, *shape)), *parts])


def _relative(path: Path | None, root: Path) -> str:
    return "" if path is None else path.relative_to(root).as_posix()


def _intrinsics(photo: PosedPhoto) -> NDArray[np.float64]:
    return intrinsics_from_colmap(np.asarray(photo.camera.calibration_matrix(), np.float64))


def read_header(path: Path) -> dict[str, Any]:
    """What is noted in a stored scene.

    Raises:
        FormatError: it is no stored scene, or damaged.
    """
    with _reading(path) as file:
        header: dict[str, Any] = json.loads(file.attrs[_ATTRIBUTE])
    if header.get("format") != _FORMAT:
        raise FormatError(f"{path} is not a scene that `d2net data prepare` wrote")
    return header


def is_stored(path: Path) -> bool:
    """Whether a file is a stored scene."""
    try:
        read_header(path)
    except FormatError:
        return False
    return True


@dataclass(frozen=True, eq=False)
class _Table:
    """What is kept in memory of a stored scene."""

    photos: list[str]
    depth_maps: list[str]
    sizes: NDArray[np.int32]
    intrinsics: NDArray[np.float64]
    cam_from_world: NDArray[np.float64]
    ends: NDArray[np.int64]


class StoredScene:
    """A stored scene. Its file is opened for each photo, so that any process may use it."""

    def __init__(self, path: Path, root: Path | None, options: SceneOptions) -> None:
        """Read the table of photos and choose the pairs.

        Args:
            path: the file.
            root: where the photos are; by default where they were when it was prepared.
            options: limits of overlap and scale ratio.

        Raises:
            FormatError: no such file, or damaged.
        """
        header = read_header(path)
        self._path, self._root = path, root or Path(header["root"])
        self._max_edge = options.max_edge
        with _reading(path) as file:
            found = Overlaps(
                file["pairs"][:].astype(np.int64), file["shares"][:], file["scale_ratios"][:]
            )
            self._table = _Table(
                photos=[name.decode() for name in file["photos"][:]],
                depth_maps=[name.decode() for name in file["depth_maps"][:]],
                sizes=file["sizes"][:],
                intrinsics=file["intrinsics"][:],
                cam_from_world=file["cam_from_world"][:],
                ends=file["ends"][:],
            )
        self.pairs: NDArray[np.int64] = found.chosen(options)

    def photo(self, number: int) -> PosedPhoto:
        """A photo with its observations.

        Raises:
            FormatError: the file is damaged or gone.
        """
        table = self._table
        start, end = (int(table.ends[i]) if i >= 0 else 0 for i in (number - 1, number))
        with _reading(self._path) as file:
            ids, points, depths = (file[name][start:end] for name in ("ids", "points", "depths"))
        width, height = (int(edge) for edge in table.sizes[number])
        camera = pinhole(table.intrinsics[number])
        camera.width, camera.height = width, height
        depth_map = table.depth_maps[number]
        return PosedPhoto(
            path=self._root / table.photos[number],
            upright=False,
            size=(width, height),
            camera=camera,
            cam_from_world=table.cam_from_world[number],
            ids=ids,
            points=points.astype(np.float64),
            depths=depths.astype(np.float64),
            depth_map=self._root / depth_map if depth_map else None,
        ).reduced(self._max_edge)


@contextmanager
def _reading(path: Path) -> Iterator[h5py.File]:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise FormatError(
            f"{path} is no stored scene, or damaged ({reason}): delete it and prepare it again"
        ) from error
