"""Depth maps in the formats in which reconstructions and depth cameras store them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from d2net.errors import FormatError
from d2net.io.image_decoding import quiet_opencv

Depth = NDArray[np.float32]
"""h x w, along the optical axis; 0 where unknown."""

MILLIMETRES = 0.001
_COLMAP_HEADER = 64
"""Bytes that hold the header `width&height&channels&` with room to spare."""


def find_depth_map(folder: Path, name: str) -> Path | None:
    """The depth map of a photo in a scene's folder.

    COLMAP's dense workspace has `stereo/depth_maps/NAME.geometric.bin`; else NAME with the
    extension .png or .h5 in `depth`, `depths` or `depth_maps`.

    Args:
        folder: of the scene.
        name: of the photo, relative to the scene's photos.
    """
    return next((path for path in _places(folder, name) if path.is_file()), None)


def _places(folder: Path, name: str) -> Iterator[Path]:
    for parent in (folder, folder / "dense"):
        yield parent / "stereo" / "depth_maps" / f"{name}.geometric.bin"
    for parent in (folder / "depth", folder / "depths", folder / "depth_maps"):
        for extension in (".png", ".h5"):
            yield (parent / name).with_suffix(extension)


def read_depth(path: Path, png_unit: float = MILLIMETRES) -> Depth:
    """Read a depth map.

    Args:
        path: COLMAP's .bin, an .h5 file with the dataset `depth` as MegaDepth's, or a 16-bit png.
        png_unit: what 1 in a png means in the unit of the poses.

    Returns:
        The depths; unknown, negative and infinite ones are 0.

    Raises:
        FormatError: it is missing, broken, or holds no depth at all.
    """
    unit = png_unit if path.suffix == ".png" else 1.0
    depth = np.multiply(read_samples(path), np.float32(unit), dtype=np.float32)
    depth[~np.isfinite(depth) | (depth < 0)] = 0
    if not depth.any():
        raise FormatError(f"the depth map {path} holds no depth: all of it is unknown")
    return np.asarray(depth, np.float32)


def read_samples(path: Path) -> NDArray[Any]:
    """What a depth map holds, h x w numbers as they are stored.

    Raises:
        FormatError: it is missing or broken.
    """
    if not path.is_file():
        raise FormatError(f"there is no depth map {path}")
    readers: dict[str, Callable[[Path], NDArray[Any]]] = {
        ".bin": _read_colmap,
        ".h5": _read_h5,
        ".png": _read_png,
    }
    try:
        depth = readers[path.suffix](path)
    except Exception as error:  # whatever the bytes of a broken file provoke
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"the depth map {path} cannot be read: {reason[:160]}") from error
    if depth.ndim != 2:
        raise FormatError(f"the depth map {path} has the shape {depth.shape}, not height x width")
    return depth


def _read_colmap(path: Path) -> NDArray[np.float32]:
    """`width&height&channels&`, then float32 row by row (COLMAP's `Mat::Read`)."""
    data = path.read_bytes()
    width, height, channels, _ = data[:_COLMAP_HEADER].split(b"&", 3)
    start = len(width) + len(height) + len(channels) + 3
    shape = int(height), int(width)
    if int(channels) != 1 or len(data) - start != 4 * shape[0] * shape[1]:
        raise ValueError(f"{len(data) - start} bytes are not {shape[1]} x {shape[0]} depths")
    return np.frombuffer(data, "<f4", offset=start).reshape(shape)


def _read_h5(path: Path) -> NDArray[np.float32]:
    import h5py

    with h5py.File(path, "r") as file:
        return np.asarray(file["depth"])


def _read_png(path: Path) -> NDArray[np.uint16]:
    with quiet_opencv:
        samples = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise ValueError("it is no 16-bit png")
    return np.asarray(samples, np.uint16)
