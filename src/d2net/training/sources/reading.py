"""Photos and depth maps of a source: decoded once, and kept while memory allows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2net.errors import ImageError
from d2net.geometry.coordinates import Size
from d2net.io.image_decoding import decode
from d2net.io.images import Pixels, limited_size, read_image, resize
from d2net.training.sources.depth_maps import Depth, read_depth
from d2net.training.views import Crop

_BUDGET = 256 << 20
"""Bytes of decoded photos and depth that one process keeps, over all sources."""

_ORIENTATION, _SIDEWAYS = 274, (5, 6, 7, 8)


def stored_size(path: Path, *, upright: bool) -> Size:
    """(width, height) of a photo without decoding it.

    Raises:
        ImageError: it is missing or no photo.
    """
    try:
        with Image.open(path) as photo:
            width, height = photo.size
            turned = upright and photo.getexif().get(_ORIENTATION) in _SIDEWAYS
    except Exception:  # pillow lets nearly every kind of exception through; ours names the reason
        height, width = decode(path, lambda samples: samples, upright=upright).shape[:2]
        turned = False
    return (height, width) if turned else (width, height)


def read_photo(path: Path, max_edge: int | None, *, upright: bool = True) -> Crop:
    """A photo, its longer edge at most `max_edge` pixels, from memory where it was read before.

    Whoever gets it must not write into it.

    Args:
        path: the file.
        max_edge: limit of the longer edge; None for no limit.
        upright: turn the photo as its EXIF data say.

    Raises:
        ImageError: it is missing or cannot be decoded.
    """
    return _cache.get((str(path), max_edge, upright), lambda: _read(path, max_edge, upright))


def read_depth_map(path: Path, png_unit: float) -> Depth:
    """A depth map as `depth_maps.read_depth` reads it, kept as photos are.

    Raises:
        FormatError: it is missing or broken.
    """
    return _cache.get((str(path), png_unit), lambda: read_depth(path, png_unit))


class _Cache:
    """The arrays read last."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._bytes = 0
        self._arrays: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, read: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        """What `read` gives, now or the last time."""
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
            while self._bytes > self._budget and len(self._arrays) > 1:
                self._bytes -= self._arrays.popitem(last=False)[1].nbytes
        return array


_cache = _Cache(_BUDGET)


def _read(path: Path, max_edge: int | None, upright: bool) -> Crop:
    if not path.is_file():
        raise ImageError(f"there is no photo {str(path)!r}")
    size = limited_size(stored_size(path, upright=upright), max_edge, None)
    pixels = _decoded(path, size, upright)
    return np.asarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels), dtype=np.uint8)


def _decoded(path: Path, size: Size, upright: bool) -> Pixels:
    """The photo of that size; a JPEG of many times the size is decoded at a part of its own.

    libjpeg leaves out high frequencies, which resizing would remove anyway, in a third of the time.
    """
    try:
        with Image.open(path) as photo:
            if photo.format == "JPEG" and max(photo.size) >= 2 * max(size):
                lies = photo.width > photo.height
                photo.draft(None, (max(size), min(size)) if lies else (min(size), max(size)))
                return resize(read_image(photo, upright=upright), size)
    except (ImageError, OSError, ValueError, Image.DecompressionBombError):
        pass  # what is wrong is told below, with the photo's name
    return resize(read_image(path, upright=upright), size)
