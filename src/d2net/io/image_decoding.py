"""From a photo's file to its samples: pillow, and OpenCV where pillow would drop bits.

`d2net.io.images` is the public interface. Samples are as stored in the file: H x W grey or
H x W x 3 RGB; uint8, uint16, int32 or float. Alpha is dropped here.
"""

from __future__ import annotations

import io
import math
import os
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from d2net.errors import ImageError, InputError
from d2net.geometry.coordinates import Size

Samples = npt.NDArray[Any]
Result = TypeVar("Result", bound=np.generic)
Source = str | os.PathLike[str] | io.BytesIO | Image.Image

MAX_PIXELS = 1_000_000_000
"""Largest photo that is read. A header that claims more is probably damaged or hostile."""

# Formats of cameras and scanners. Others of pillow's readers would run Ghostscript, for example.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

# TIFF tags.
_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION = 254, 256, 257, 258, 262, 274
_SAMPLES_PER_PIXEL, _PLANAR, _DNG_VERSION = 277, 284, 50706


class UnreadableError(Exception):
    """Why samples cannot be used, without the name of the photo, which `decode` adds."""


def decode(
    source: Source,
    convert: Callable[[Samples], npt.NDArray[Result]],
    *,
    upright: bool,
    max_pixels: int = MAX_PIXELS,
) -> npt.NDArray[Result]:
    """Read a photo, apply `convert` to its samples, and turn the result upright.

    Args:
        source: a file on the disk or in memory, or the current frame of a pillow image.
        convert: works on each sample separately; may raise `UnreadableError`.
        upright: apply the EXIF orientation; False gives the stored orientation.
        max_pixels: larger files are refused before memory is allocated for them.

    Returns:
        The result of `convert`, contiguous and writable.

    Raises:
        ImageError: the photo cannot be read; the message names it and says why.
        InputError: `source` has another type.
    """
    if not isinstance(source, (str, os.PathLike, io.BytesIO, Image.Image)):
        raise InputError(
            f"an image must be given as a path or a pillow image, not {type(source).__name__}"
        )
    try:
        with quiet_pillow:
            decoded = _decode(source, max_pixels)
        converted = convert(decoded.samples)
        return np.require(_turned(converted, decoded.turn(upright)), requirements=["C", "W"])
    except UnreadableError as error:
        reason, cause = str(error), None
    except UnidentifiedImageError:
        reason, cause = "it is not a JPEG, PNG, TIFF, HEIC, WebP, PPM, PGM, BMP or GIF photo", None
    except Image.DecompressionBombError:
        reason, cause = _too_large(max_pixels), None
    except MemoryError:
        reason, cause = "there is not enough memory for it", None
    except Exception as error:  # pillow's readers let nearly every kind of exception through
        detail = " ".join(str(error).split()) or type(error).__name__
        reason, cause = f"the file is damaged ({detail})", error
    raise ImageError(f"cannot read {_name(source)}: {reason}") from cause


def _name(source: Source) -> str:
    if isinstance(source, Image.Image):
        return "the pillow image"
    return "the photo" if isinstance(source, io.BytesIO) else repr(os.fspath(source))


# --- Orientation -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Decoded:
    """Samples, the EXIF orientation of the file, and whether it has been applied to them."""

    samples: Samples
    orientation: int
    is_upright: bool = False

    def turn(self, upright: bool) -> int:
        """The orientation that remains to be applied; 1 if none does."""
        if upright == self.is_upright:
            return 1
        return self.orientation if upright else {6: 8, 8: 6}.get(self.orientation, self.orientation)


def _turned(image: npt.NDArray[Result], orientation: int) -> npt.NDArray[Result]:
    """Apply an EXIF orientation (1 to 8) to the first two axes."""
    if orientation in (5, 6, 7, 8):
        image = image.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        image = image[:, ::-1]
    if orientation in (3, 4, 7, 8):
        image = image[::-1]
    return image


def _valid_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif_orientation(image: Image.Image) -> int:
    try:
        return _valid_orientation(image.getexif().get(_ORIENTATION))
    except Exception:  # damaged EXIF data; the photo itself may be whole
        return 1


# --- Files -----------------------------------------------------------------------------------


def _too_large(max_pixels: int) -> str:
    return f"it has more than {max_pixels // 1_000_000:,} megapixels; cut it into parts first"


def _decode(source: Source, max_pixels: int) -> _Decoded:
    if isinstance(source, Image.Image):
        return _decode_pillow(source)
    with _open_file(source) as file:
        header = file.read(32)
        file.seek(0)
        if not header:
            raise UnreadableError("the file is empty")
        if header[4:8] == b"ftyp":
            return _decode_heif(file, header[8:12], max_pixels)
        if header[:4] in _TIFF_MAGIC:
            return _decode_tiff(file, max_pixels)
        try:
            return _decode_common(file, header, max_pixels)
        except (UnreadableError, Image.DecompressionBombError, MemoryError):
            raise
        except Exception:
            file.seek(0)
            repaired = _repaired(file.read())
            if repaired is None:
                raise
            return _decode_common(io.BytesIO(repaired), header, max_pixels)


def _decode_common(file: BinaryIO, header: bytes, max_pixels: int) -> _Decoded:
    image = Image.open(file, formats=_FORMATS)
    _check_size(image.size, file, max_pixels)
    if image.format == "PPM" and image.tile[0][0] == "ppm":
        return _Decoded(_ppm_samples(file, image), orientation=1)
    decoded = _decode_pillow(image)
    if image.format == "PNG" and header[24] == 16 and image.mode in ("RGB", "RGBA"):
        # pillow keeps 8 of the 16 bits of colours; OpenCV keeps all but ignores EXIF.
        return _Decoded(_opencv_samples(file), decoded.orientation)
    return decoded


def _open_file(source: str | os.PathLike[str] | io.BytesIO) -> BinaryIO:
    if isinstance(source, io.BytesIO):
        return io.BytesIO(source.getvalue())  # the caller's object stays open
    path = Path(source)
    try:
        if path.is_dir():
            raise UnreadableError("it is a folder, not a photo")
        if path.exists() and not path.is_file():
            raise UnreadableError("it is not a regular file")
        return path.open("rb")
    except FileNotFoundError:
        raise UnreadableError("there is no such file") from None
    except PermissionError:
        raise UnreadableError("permission denied") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UnreadableError(getattr(error, "strerror", None) or str(error)) from None


def _check_size(size: Size, file: BinaryIO, max_pixels: int) -> None:
    """Stop before memory is allocated for the claim of a damaged or hostile header."""
    num_pixels = size[0] * size[1]
    if num_pixels > max_pixels:
        raise UnreadableError(_too_large(max_pixels))
    position = file.tell()
    num_bytes = file.seek(0, io.SEEK_END)
    file.seek(position)
    if num_pixels > max(100_000_000, 20_000 * num_bytes):  # even an empty page takes more bytes
        raise UnreadableError(
            f"the file is damaged ({size[0]} x {size[1]} pixels cannot be in {num_bytes} bytes)"
        )


def _decode_pillow(image: Image.Image) -> _Decoded:
    # Pillow turns a TIFF upright while loading it, and then forgets the tag. In a PNG the tag may
    # come after the pixels, so it is read once they are loaded.
    orientation = _exif_orientation(image) if image.format == "TIFF" else 1
    image.load()
    remaining = _exif_orientation(image)
    if remaining == 1:
        return _Decoded(_pillow_samples(image), orientation, is_upright=True)
    return _Decoded(_pillow_samples(image), remaining)


def _pillow_samples(image: Image.Image) -> Samples:
    """Grey or RGB samples of any mode; colours under transparent pixels are kept."""
    mode = image.mode
    if mode in ("RGB", "I", "F") or mode.startswith("I;16"):
        return np.array(image)
    if mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(mode.upper())
    return np.array(image.convert("L" if mode in ("1", "L", "LA", "La") else "RGB"))


def _repaired(data: bytes) -> bytes | None:
    """A PNG or JPEG that pillow refuses although all of its pixels are there; else None."""
    if data.startswith(_PNG_MAGIC):
        return _png_without_metadata(data)
    if data.startswith(b"\xff\xd8\xff"):
        return _jpeg_with_end(data)
    return None


def _png_without_metadata(data: bytes) -> bytes | None:
    """The PNG with only the chunks that matter for its pixels; None if it is cut off.

    Pillow refuses long texts, large colour profiles and wrong checksums of texts.
    """
    kept = [_PNG_MAGIC]
    position = len(_PNG_MAGIC)
    while position + 12 <= len(data):
        length = int.from_bytes(data[position : position + 4], "big")
        chunk = data[position : position + 12 + length]
        kind = chunk[4:8]
        is_intact = zlib.crc32(chunk[4:-4]) == int.from_bytes(chunk[-4:], "big")
        if kind[:1].isupper() or (is_intact and kind in (b"tRNS", b"eXIf")):
            kept.append(chunk)
        if kind == b"IEND":
            return b"".join(kept)
        position += 12 + length
    return None


def _jpeg_with_end(data: bytes) -> bytes | None:
    """The JPEG with an end marker; None if pixels are missing, too.

    The decoder invents missing pixels from the bytes that it finds. So if pixels are missing,
    different bytes in front of the end marker give different pixels.
    """
    end = b"\xff\xd9"

    def pixels(padding: bytes) -> Samples:
        return np.array(Image.open(io.BytesIO(data + padding + end), formats=("JPEG",)))

    return data + end if np.array_equal(pixels(b""), pixels(b"\x55" * 64)) else None


def _decode_heif(file: BinaryIO, brand: bytes, max_pixels: int) -> _Decoded:
    if brand[:3] not in (b"hei", b"hev", b"mif", b"msf"):
        raise UnreadableError("it is an AVIF or video file; convert it to JPEG first")
    try:
        import pillow_heif
    except ImportError:
        raise UnreadableError(
            "it is a HEIC photo; install the package that reads it with "
            "pip install 'd2net[heic]', or convert it to JPEG"
        ) from None
    heif = pillow_heif.open_heif(file)
    _check_size(heif.size, file, max_pixels)
    # The decoder always turns the photo upright.
    return _Decoded(_pillow_samples(heif.to_pillow()), 1, is_upright=True)


def _decode_tiff(file: BinaryIO, max_pixels: int) -> _Decoded:
    tags = _tiff_tags(file)
    if _DNG_VERSION in tags or int(tags.get(_SUBFILE_TYPE, 0)) & 1:
        raise UnreadableError(
            "its first image is a preview, as in raw photos; develop it to JPEG or TIFF first"
        )
    _check_size((int(tags.get(_WIDTH, 0)), int(tags.get(_HEIGHT, 0))), file, max_pixels)
    bits, photometric = max(tags.get(_BITS, (1,))), tags.get(_PHOTOMETRIC)
    needs_opencv = False
    if tags.get(_SAMPLES_PER_PIXEL, 1) > 1 and bits > 8:
        if tags.get(_PLANAR, 1) == 2:  # pillow and OpenCV both confuse the planes
            raise UnreadableError(
                f"it has {bits}-bit colours in separate planes; save it with interleaved channels"
            )
        needs_opencv = photometric in (0, 1, 2)  # grey or RGB; OpenCV reads no others
    try:
        image = None if needs_opencv else Image.open(file, formats=["TIFF"])
    except UnidentifiedImageError:  # 64-bit floats, for example
        image = None
    if image is None:  # OpenCV always turns a TIFF upright
        orientation = _valid_orientation(tags.get(_ORIENTATION))
        return _Decoded(_opencv_samples(file), orientation, is_upright=True)
    decoded = _decode_pillow(image)
    samples = decoded.samples
    if samples.dtype == np.uint16:
        if bits == 12:
            samples = samples << 4 | samples >> 8
        if photometric == 0:  # white is zero; pillow takes care of it in 8 bits only
            samples = 65535 - samples
    return _Decoded(samples, decoded.orientation, decoded.is_upright)


def _tiff_tags(file: BinaryIO) -> ImageFileDirectory_v2:
    """The tags of the first image; the file is rewound."""
    header = file.read(8)
    if 43 in header[2:4]:  # BigTIFF
        header += file.read(8)
    tags = ImageFileDirectory_v2(header)
    file.seek(tags.next)
    tags.load(file)
    file.seek(0)
    return tags


def _ppm_samples(file: BinaryIO, image: ImageFile) -> Samples:
    """Binary PPM or PGM of any maximum value; pillow is slow at it and keeps 8 bits of colours."""
    start, arguments = image.tile[0][2:4]
    maximum = int(arguments[1])  # type: ignore[index]  # pillow's decoder has (mode, maximum)
    stored, full = (np.dtype(">u2"), 65535) if maximum > 255 else (np.dtype("u1"), 255)
    shape = (image.height, image.width) + ((3,) if image.mode == "RGB" else ())
    file.seek(start)
    data = file.read(math.prod(shape) * stored.itemsize)
    if len(data) < math.prod(shape) * stored.itemsize:
        raise UnreadableError("the file is truncated")
    values = np.frombuffer(data, stored).reshape(shape).clip(max=maximum)
    samples: Samples = np.rint(values * np.float32(full / maximum)).astype(stored.newbyteorder("="))
    return samples


def _opencv_samples(file: BinaryIO) -> Samples:
    import cv2

    file.seek(0)
    data = np.frombuffer(file.read(), np.uint8)
    with quiet_opencv:
        samples: Samples | None = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise UnreadableError("the file is damaged or of a kind that cannot be decoded")
    return samples if samples.ndim == 2 else samples[:, :, 2::-1]  # BGR or BGRA


# --- Process-wide settings of pillow and OpenCV ----------------------------------------------


class _Shared:
    """A process-wide setting that the first thread in the block changes and the last one restores.

    If each thread saved and restored it on its own, they would restore in the wrong order.
    """

    def __init__(self, change: Callable[[], AbstractContextManager[None]]) -> None:
        self._change = change
        self._lock = threading.Lock()
        self._num_users = 0

    def __enter__(self) -> None:
        with self._lock:
            if self._num_users == 0:
                self._active = self._change()
                self._active.__enter__()
            self._num_users += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._num_users -= 1
            if self._num_users == 0:
                self._active.__exit__(None, None, None)


@contextmanager
def _pillow_settings() -> Iterator[None]:
    limit = Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS // 2  # pillow refuses photos above twice this number
        try:
            yield
        finally:
            Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def _opencv_settings() -> Iterator[None]:
    import cv2

    log: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 4 has these functions in cv2 itself
    level = log.getLogLevel()
    log.setLogLevel(0)
    try:
        yield
    finally:
        log.setLogLevel(level)


quiet_pillow = _Shared(_pillow_settings)
"""No warnings about unusual metadata, which do not matter for features; photos up to
`MAX_PIXELS`, where pillow's own limit is 179 megapixels."""

quiet_opencv = _Shared(_opencv_settings)
"""OpenCV prints unknown TIFF tags, such as map coordinates, to standard error."""
