"""Pictures that d2net draws. A mark in the file tells them from photos."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from PIL import Image
from PIL.ExifTags import Base
from PIL.PngImagePlugin import PngInfo

from d2net.errors import D2NetError, OutputError
from d2net.io.atomic import replacing

_MARK = "d2net"
_HEADER_SIZE = 1024
"""Bytes at the beginning of a file that contain the mark: pillow writes it before the pixels."""


def write_picture(path: Path, picture: Image.Image) -> None:
    """Write a picture, as PNG if the extension is .png and otherwise as JPEG, with the mark."""
    with replacing(path) as temporary:
        if path.suffix.lower() == ".png":
            text = PngInfo()
            text.add_text("Software", _MARK)
            picture.save(temporary, "PNG", pnginfo=text, optimize=True)
        else:
            exif = Image.Exif()
            exif[Base.Software] = _MARK
            picture.save(temporary, "JPEG", quality=92, exif=exif)


def is_own_picture(path: Path) -> bool:
    """Whether `write_picture` wrote the file. Only its header is read."""
    try:
        with path.open("rb") as file:  # much faster than pillow for a folder of photos
            if _MARK.encode() not in file.read(_HEADER_SIZE):
                return False
        with Image.open(path) as picture:
            marks = (picture.info.get("Software"), picture.getexif().get(Base.Software))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return False
    return _MARK in marks


def check_replaceable(
    output: Path, is_own: Callable[[Path], object] | bytes = is_own_picture
) -> None:
    """OutputError if the output exists and is not an earlier result. Empty files may be replaced.

    For other files, `is_own` returns False or raises a D2NetError. It may also be the bytes that
    mark the beginning of earlier results.
    """
    if not output.exists() or output.stat().st_size == 0:
        return
    with suppress(D2NetError, ValueError, OSError), output.open("rb") as file:  # or not text
        own = is_own in file.read(_HEADER_SIZE) if isinstance(is_own, bytes) else is_own(output)
        if own is not False:
            return
    raise OutputError(
        f"the output {output} exists and was not made by this command; choose another, or delete it"
    )
