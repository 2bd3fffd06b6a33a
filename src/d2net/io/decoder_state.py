"""Global state of pillow and OpenCV that reading a photo changes for as long as it takes.

Both libraries keep limits and log levels for the whole process, and several threads read at once.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import Any

from PIL import Image

MAX_PIXELS = 1_000_000_000
"""Largest photo that is read. Beyond it a header is more likely damaged or hostile than true."""


class _Shared:
    """A change of global state, made by the first thread that needs it, undone by the last.

    Saving and restoring in each thread on its own would restore in the wrong order.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._users = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._users == 0:
                self._active = self._change()
                self._active.__enter__()
            self._users += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._users -= 1
            if self._users == 0:
                self._active.__exit__(None, None, None)


@contextmanager
def _pillow_warnings_ignored() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


@contextmanager
def _pixel_limit_raised() -> Iterator[None]:
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # pillow refuses above twice this number
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _opencv_log_silenced() -> Iterator[None]:
    import cv2

    log: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 4 has these functions in cv2 itself
    before = log.getLogLevel()
    log.setLogLevel(0)
    try:
        yield
    finally:
        log.setLogLevel(before)


quiet_pillow = _Shared(_pillow_warnings_ignored)
"""Warnings about odd metadata are of no use to who extracts features; other warnings pass."""

large_photos = _Shared(_pixel_limit_raised)
"""Pillow refuses photos of more than 179 megapixels by default."""

quiet_opencv = _Shared(_opencv_log_silenced)
"""OpenCV prints to standard error what it does not know in a TIFF, such as map coordinates."""
