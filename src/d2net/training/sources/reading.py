"""Photos and depth maps of training sources: read once, and kept while memory allows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2net.errors import FormatError, ImageError
from d2net.geometry.coordinates import Size
from d2net.io.image_decoding import decode, quiet_opencv
from d2net.io.images import Pixels, limited_size, read_image, resize
from d2net.training.crops import RGB

DepthMap = NDArray[np.float32]
"""h x w depths along the optical axis; 0 where unknown."""

_CACHE_BYTES = 256 << 20
"""Decoded photos and depth maps that one process keeps, over all sources."""

_ORIENTATION, _SIDEWAYS = 274, (5, 6, 7, 8)  # the EXIF tag, and its values that swap the edges
_COLMAP_HEADER_BYTES = 64  # more than enough for `width&height&channels&`


class _Cache:
    """The arrays that were read last, up to a total size."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """The array of `key`, from memory or else from `read`; read-only."""
        with self._lock:
            if key in self._arrays:
                self._arrays.move_to_end(key)
                return self._arrays[key]
        array = read()
        array.flags.writeable = False
        with self._lock:
            if key not in self._arrays:
                self._arrays[key] = array
                self._bytes += array.nbytes
            while self._bytes > self._max_bytes and len(self._arrays) > 1:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array


_cache = _Cache(_CACHE_BYTES)


def stored_size(path: Path, *, upright: bool) -> Size:
    """(width, height) of a photo, from its header where possible.

    Raises:
        ImageError: it is missing or no photo.
    """
    try:
        with Image.open(path) as photo:
            width, height = photo.size
            sideways = upright and photo.getexif().get(_ORIENTATION) in _SIDEWAYS
    except Exception:  # pillow raises nearly every kind of exception; ours names the reason
        height, width = decode(path, lambda samples: samples, upright=upright).shape[:2]
        sideways = False
    return (height, width) if sideways else (width, height)


def read_photo(path: Path, max_edge: int | None, *, upright: bool = True) -> RGB:
    """Read a photo, reduced to a longer edge of at most `max_edge` pixels; read-only.

    Args:
        path: the file.
        max_edge: limit of the longer edge in pixels; None for no limit.
        upright: turn the photo as its EXIF orientation says.

    Raises:
        ImageError: it is missing or cannot be decoded.
    """
    return _cache.get((str(path), max_edge, upright), lambda: _read_photo(path, max_edge, upright))


def _read_photo(path: Path, max_edge: int | None, upright: bool) -> RGB:
    if not path.is_file():
        raise ImageError(f"there is no photo {str(path)!r}")
    size = limited_size(stored_size(path, upright=upright), max_edge, None)
    pixels = _decode_reduced(path, size, upright)
    return np.asarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels), dtype=np.uint8)


def _decode_reduced(path: Path, size: Size, upright: bool) -> Pixels:
    """Decode a photo at (width, height); a much larger JPEG is decoded at a fraction of its size.

    libjpeg leaves out high frequencies, which resizing would remove anyway, in a third of the time.
    """
    try:
        with Image.open(path) as photo:
            if photo.format == "JPEG" and max(photo.size) >= 2 * max(size):
                landscape = photo.width > photo.height
                photo.draft(None, (max(size), min(size)) if landscape else (min(size), max(size)))
                return resize(read_image(photo, upright=upright), size)
    except (ImageError, OSError, ValueError, Image.DecompressionBombError):
        pass  # `read_image` raises it again, with the path in its message
    return resize(read_image(path, upright=upright), size)


def find_depth_map(folder: Path, name: str) -> Path | None:
    """The depth map of a photo, or None.

    That is COLMAP's `stereo/depth_maps/NAME.geometric.bin` in the folder or its subfolder `dense`,
    or NAME with the extension .png or .h5 in `depth`, `depths` or `depth_maps`.

    Args:
        folder: folder of the scene.
        name: name of the photo relative to the folder of the scene's photos.
    """
    candidates = [
        *(
            parent / "stereo" / "depth_maps" / f"{name}.geometric.bin"
            for parent in (folder, folder / "dense")
        ),
        *(
            (folder / subfolder / name).with_suffix(extension)
            for subfolder in ("depth", "depths", "depth_maps")
            for extension in (".png", ".h5")
        ),
    ]
    return next((path for path in candidates if path.is_file()), None)


def read_depth_map(path: Path, png_unit: float) -> DepthMap:
    """Read a depth map; read-only.

    Args:
        path: COLMAP's .bin, an .h5 file with the dataset `depth` as in MegaDepth, or a 16-bit png.
        png_unit: length that the value 1 of a png stands for, in the unit of the poses.

    Returns:
        The depths. Unknown, negative and infinite ones are 0.

    Raises:
        FormatError: it is missing or broken, or no depth in it is known.
    """
    return _cache.get((str(path), png_unit), lambda: _read_depth_map(path, png_unit))


def _read_depth_map(path: Path, png_unit: float) -> DepthMap:
    unit = png_unit if path.suffix == ".png" else 1.0
    depth = np.multiply(read_raw_depth(path), np.float32(unit), dtype=np.float32)
    depth[~np.isfinite(depth) | (depth < 0)] = 0
    if not depth.any():
        raise FormatError(f"the depth map {path} holds no known depth")
    return np.asarray(depth, np.float32)


def read_raw_depth(path: Path) -> NDArray[Any]:
    """Read the h x w values of a depth map as they are stored.

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
    except Exception as error:  # broken files provoke all kinds of exceptions
        reason = " ".join(str(error).split()) or type(error).__name__
        raise FormatError(f"the depth map {path} cannot be read: {reason[:160]}") from error
    if depth.ndim != 2:
        raise FormatError(f"the depth map {path} has the shape {depth.shape}, not height x width")
    return depth


def _read_colmap(path: Path) -> NDArray[np.float32]:
    """`width&height&channels&`, then float32 row by row (COLMAP's `Mat::Read`)."""
    data = path.read_bytes()
    width, height, channels, _ = data[:_COLMAP_HEADER_BYTES].split(b"&", 3)
    start = len(width) + len(height) + len(channels) + 3
    shape = int(height), int(width)
    if int(channels) != 1 or len(data) - start != 4 * shape[0] * shape[1]:
        raise ValueError(f"{len(data) - start} bytes are not {shape[1]} x {shape[0]} depths")
    return np.frombuffer(data, "<f4", offset=start).reshape(shape)


def _read_h5(path: Path) -> NDArray[np.float32]:
    with h5py.File(path, "r") as file:
        return np.asarray(file["depth"])


def _read_png(path: Path) -> NDArray[np.uint16]:
    cv2 = quiet_opencv()
    samples = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if samples is None or samples.dtype != np.uint16:
        raise ValueError("it is not a 16-bit png")
    return np.asarray(samples, np.uint16)
