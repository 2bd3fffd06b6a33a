"""Photos and depth maps of training sources; those that were read last stay in memory."""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2net.errors import FormatError, ImageError
from d2net.geometry.coordinates import Size
from d2net.io.exif import photo_size
from d2net.io.image_decoding import decode, quiet_opencv
from d2net.io.images import limited_size, raise_low_contrast, read_image, resize
from d2net.training.crops import RGB

DepthMap = NDArray[np.float32]  # h x w depths along the optical axis; 0 where unknown

_KEPT = 48  # photos, and as many depth maps: 0.3 GB of each at 1600 pixels


def size_of(path: Path, *, upright: bool) -> Size:
    """(width, height) of a photo: from its header, else from its pixels; ImageError if damaged."""
    if size := photo_size(path, upright):
        return size
    height, width = decode(path, lambda samples: samples, upright=upright).shape[:2]
    return width, height


@lru_cache(maxsize=_KEPT)
def read_photo(path: Path, max_edge: int | None, *, upright: bool = True) -> RGB:
    """Read a photo, reduced to a longer edge of at most `max_edge` pixels; read-only."""
    size = limited_size(size_of(path, upright=upright), max_edge, None)
    pixels = None
    bomb = Image.DecompressionBombError
    with suppress(ImageError, OSError, ValueError, bomb), Image.open(path) as photo:
        # libjpeg decodes at a fraction of the size, in a third of the time. It leaves out high
        # frequencies, which resizing would remove anyway.
        if photo.format == "JPEG" and max(photo.size) >= 2 * max(size):
            landscape = photo.width > photo.height
            photo.draft(None, (max(size), min(size)) if landscape else (min(size), max(size)))
            pixels = read_image(photo, upright=upright)
    if pixels is None:  # after an error, which this raises again with the path in its message, too
        pixels = read_image(path, upright=upright)
    if pixels.dtype != np.uint8:
        pixels = raise_low_contrast(pixels)  # or 8 bits would lose it
    photo_8bit: RGB = resize(pixels, size).round().astype(np.uint8)
    photo_8bit.flags.writeable = False
    return photo_8bit


def find_depth_map(folder: Path, name: str) -> Path | None:
    """The depth map of a photo, or None.

    It is COLMAP's `stereo/depth_maps/NAME.geometric.bin` in the folder or its subfolder `dense`,
    or NAME with the extension .png or .h5 in `depth`, `depths` or `depth_maps`.
    """
    candidates = [
        parent / "stereo" / "depth_maps" / f"{name}.geometric.bin"
        for parent in (folder, folder / "dense")
    ]
    for subfolder in ("depth", "depths", "depth_maps"):
        candidates += [(folder / subfolder / name).with_suffix(end) for end in (".png", ".h5")]
    return next((path for path in candidates if path.is_file()), None)


@lru_cache(maxsize=_KEPT)
def read_depth_map(path: Path, png_unit: float) -> DepthMap:
    """Read a depth map as a read-only array; unknown, negative and infinite depths are 0.

    The file is COLMAP's .bin, an .h5 file with the dataset `depth` as in MegaDepth, or a 16-bit png
    in which the value 1 stands for the length `png_unit`, in the unit of the poses.
    """
    unit = png_unit if path.suffix == ".png" else 1.0
    depth: DepthMap = np.multiply(read_raw_depth(path), np.float32(unit), dtype=np.float32)
    depth[~np.isfinite(depth) | (depth < 0)] = 0
    if not depth.any():
        raise FormatError(f"the depth map {path} holds no known depth")
    depth.flags.writeable = False
    return depth


def read_raw_depth(path: Path) -> NDArray[Any]:
    """Read the h x w values of a depth map as they are stored."""
    if not path.is_file():
        raise FormatError(f"there is no depth map {path}")
    depth: Any = None
    try:
        if path.suffix == ".h5":
            with h5py.File(path, "r") as file:
                depth = np.asarray(file["depth"])
        elif path.suffix == ".png":
            cv2 = quiet_opencv()
            depth = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        else:
            import pycolmap

            colmap = pycolmap.DepthMap()
            colmap.read(path)
            depth = colmap.to_array()
            if path.stat().st_size < depth.nbytes:  # COLMAP does not notice a file that is cut off
                depth = None
    except Exception as error:  # broken files provoke all kinds of exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"the depth map {path} cannot be read: {reason[:160]}") from error
    if depth is None or (path.suffix == ".png" and depth.dtype != np.uint16):
        kind = "a 16-bit png" if path.suffix == ".png" else "whole"
        raise FormatError(f"the depth map {path} cannot be read: it is not {kind}")
    if depth.ndim != 2:
        raise FormatError(f"the depth map {path} has the shape {depth.shape}, not height x width")
    return np.asarray(depth)
