"""Photos that were sent. They are kept in memory only, within a budget, and for a short time."""

from __future__ import annotations

import io
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np

from d2net.features import Features, Matches
from d2net.geometry.coordinates import Size
from d2net.io.images import Pixels, read_image
from d2net.mapping.picture.album import small_jpeg

MAX_FILE = 32 * 2**20
"""Bytes of a photo: the largest JPEG files of cameras."""

MAX_PIXELS = 64_000_000
"""Pixels of a photo; reducing it takes about 200 MB."""

MAX_MEMORY = 768 * 2**20
"""Bytes of all photos with their features. The least recently used are forgotten first."""

MAX_IDLE = 30 * 60.0
"""Seconds after which an unused photo is forgotten."""

_SCREEN_EDGE, _QUALITY = 1600, 85


@dataclass(eq=False)
class SentPhoto:
    """A photo and its features.

    Attributes:
        name: of the file, to show.
        content: the file.
        upright: whether it is turned as its EXIF orientation says.
        size: (width, height).
        picture: a JPEG for the screen.
        features: by preset, best score first.
        matched: the last matches in which it was the first photo, and their key.
        key: a random secret. Only the sender of the photo has it, and so can ask for the photo.
    """

    name: str
    content: bytes
    upright: bool
    size: Size
    picture: bytes
    features: dict[str, Features] = field(default_factory=dict)
    matched: tuple[object, Matches] | None = None
    key: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @classmethod
    def read(cls, name: str, content: bytes, *, upright: bool = True) -> SentPhoto:
        """Read a photo from the bytes of its file.

        Raises:
            ImageError: the file is not a photo, or too large.
        """
        pixels = _read(content, upright)
        size = (pixels.shape[1], pixels.shape[0])
        return cls(name, content, upright, size, screen_jpeg(pixels))

    def pixels(self) -> Pixels:
        """H x W x 3 uint8."""
        return np.rint(_read(self.content, self.upright)).astype(np.uint8)

    @property
    def num_bytes(self) -> int:
        """Memory that the photo and its features take."""
        tensors = [t for f in self.features.values() for t in (f.keypoints, f.descriptors)]
        return len(self.content) + len(self.picture) + sum(tensor.nbytes for tensor in tensors)


class Photos:
    """Photos by their keys.

    Args:
        max_memory: see `MAX_MEMORY`. The last used photo is kept whatever its size.
        max_idle: see `MAX_IDLE`.
    """

    def __init__(self, max_memory: int = MAX_MEMORY, max_idle: float = MAX_IDLE) -> None:
        self._max_memory = max_memory
        self._max_idle = max_idle
        self._photos: OrderedDict[str, tuple[SentPhoto, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._photos)

    def add(self, photo: SentPhoto) -> None:
        """Keep a photo for a while."""
        self._photos[photo.key] = (photo, time.monotonic())
        self.tidy()

    def get(self, key: str) -> SentPhoto | None:
        """The photo, which counts as used; None if it is unknown or forgotten."""
        photo, _ = self._photos.pop(key, (None, 0.0))
        if photo is not None:
            self._photos[key] = (photo, time.monotonic())
        return photo

    def forget(self, key: str) -> None:
        """Forget a photo; does nothing if it is unknown."""
        self._photos.pop(key, None)

    def tidy(self) -> None:
        """Forget photos that were unused for too long or exceed the memory budget."""
        oldest_kept = time.monotonic() - self._max_idle
        memory = sum(photo.num_bytes for photo, _ in self._photos.values())
        for key, (photo, used) in list(self._photos.items()):  # least recently used first
            if used > oldest_kept and (memory <= self._max_memory or len(self._photos) == 1):
                break
            memory -= photo.num_bytes
            self.forget(key)


def screen_jpeg(pixels: Pixels) -> bytes:
    """The photo as JPEG, reduced to the size of a screen."""
    return small_jpeg(pixels, _SCREEN_EDGE, _QUALITY)


def _read(content: bytes, upright: bool) -> Pixels:
    return read_image(io.BytesIO(content), upright=upright, max_pixels=MAX_PIXELS)
