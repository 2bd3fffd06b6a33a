"""Photos of a source: decoded once, reduced, and kept while memory allows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from PIL import Image

from d2net.errors import ImageError
from d2net.geometry.coordinates import Size
from d2net.image_decoding import decode
from d2net.images import limited_size, read_image, resize
from d2net.training.views import Crop

_BUDGET = 256 << 20
"""Bytes of decoded photos that one process keeps, over all sources."""

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
    return _cache.get(path, max_edge, upright)


class _Cache:
    """The photos read last."""

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._bytes = 0
        self._photos: OrderedDict[tuple[str, int | None, bool], Crop] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: Path, max_edge: int | None, upright: bool) -> Crop:
        key = str(path), max_edge, upright
        with self._lock:
            if key in self._photos:
                self._photos.move_to_end(key)
                return self._photos[key]
        photo = _read(path, max_edge, upright)
        photo.flags.writeable = False
        with self._lock:
            if key not in self._photos:
                self._photos[key] = photo
                self._bytes += photo.nbytes
            while self._bytes > self._budget and len(self._photos) > 1:
                self._bytes -= self._photos.popitem(last=False)[1].nbytes
        return photo


_cache = _Cache(_BUDGET)


def _read(path: Path, max_edge: int | None, upright: bool) -> Crop:
    if not path.is_file():
        raise ImageError(f"there is no photo {str(path)!r}")
    size = limited_size(stored_size(path, upright=upright), max_edge, None)
    pixels = resize(read_image(path, upright=upright), size)
    return np.asarray(pixels if pixels.dtype == np.uint8 else np.rint(pixels), dtype=np.uint8)
