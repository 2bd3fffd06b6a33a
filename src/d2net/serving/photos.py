"""The photos that were sent: in memory only, not too many, and not for long."""

from __future__ import annotations

import io
import secrets
import time
from collections import OrderedDict
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from d2net.features import Features, Matches
from d2net.geometry.coordinates import Size
from d2net.io.images import Pixels, limited_size, read_image, resize

MAX_FILE = 32 * 2**20
"""Bytes of a photo: what the largest cameras write as JPEG."""

MAX_PIXELS = 64_000_000
"""Of a photo, some 200 MB while it is reduced."""

MAX_MEMORY = 768 * 2**20
"""Bytes that all photos may take together with their features; the longest unused go first."""

MAX_IDLE = 30 * 60.0
"""Seconds after which an unused photo is forgotten."""

_PICTURE_EDGE, _QUALITY = 1600, 85


@dataclass(eq=False)
class SentPhoto:
    """A photo and what was found in it.

    Attributes:
        key: a secret that nobody can guess: who sent the photo, and nobody else, can ask for it.
        name: of its file, to show.
        content: the file.
        upright: whether it is turned as its EXIF data say.
        size: (width, height).
        picture: a JPEG to show, not larger than a screen.
        features: by kind, best score first.
        matched: the last matches in which it was the first photo, and of what they are.
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
        """A photo from the bytes of its file.

        Raises:
            ImageError: they are no photo, or one that is too large.
        """
        pixels = _read(content, upright)
        size = (pixels.shape[1], pixels.shape[0])
        return cls(name, content, upright, size, small_jpeg(pixels))

    def pixels(self) -> Pixels:
        """H x W x 3 uint8."""
        return _eight_bits(_read(self.content, self.upright))

    @property
    def num_bytes(self) -> int:
        """Memory that it takes."""
        tensors = [
            tensor
            for found in self.features.values()
            for tensor in (found.keypoints, found.descriptors)
        ]
        return len(self.content) + len(self.picture) + sum(tensor.nbytes for tensor in tensors)


class Photos:
    """Photos by their keys.

    Args:
        max_memory: see `MAX_MEMORY`. The photo used last is kept whatever its size.
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
        """The photo, which counts as used; None if it was never there or is forgotten."""
        photo, _ = self._photos.pop(key, (None, 0.0))
        if photo is not None:
            self._photos[key] = (photo, time.monotonic())
        return photo

    def forget(self, key: str) -> None:
        """Forget a photo, if it is there."""
        self._photos.pop(key, None)

    def tidy(self) -> None:
        """Forget what is unused for long, and the longest unused of too much."""
        latest = time.monotonic() - self._max_idle
        memory = sum(photo.num_bytes for photo, _ in self._photos.values())
        for key, (photo, used) in list(self._photos.items()):
            if used > latest and (memory <= self._max_memory or len(self._photos) == 1):
                break
            memory -= photo.num_bytes
            self.forget(key)


def small_jpeg(pixels: Pixels) -> bytes:
    """The photo for a screen."""
    height, width = pixels.shape[:2]
    small = resize(_eight_bits(pixels), limited_size((width, height), _PICTURE_EDGE, None))
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, "JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _read(content: bytes, upright: bool) -> Pixels:
    return read_image(io.BytesIO(content), upright=upright, max_pixels=MAX_PIXELS)


def _eight_bits(pixels: Pixels) -> Pixels:
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8)
