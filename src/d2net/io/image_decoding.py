"""From the file of a photo to its samples: pillow, and OpenCV where pillow would drop bits.

`d2net.io.images` is the public face. Samples are as stored, H x W grey or H x W x 3 RGB, uint8,
uint16, int32 or float; alpha is dropped here.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable
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
from d2net.io.decoder_state import MAX_PIXELS, large_photos, quiet_opencv, quiet_pillow

Samples = npt.NDArray[Any]
Result = TypeVar("Result", bound=np.generic)

# Only what cameras and scanners write; pillow's other readers would run Ghostscript, for example.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_SUBFILE_TYPE, _WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _ORIENTATION = 254, 256, 257, 258, 262, 274
_SAMPLES_PER_PIXEL, _PLANAR, _DNG_VERSION = 277, 284, 50706


class UnreadableError(Exception):
    """Why samples cannot be used, without the name of the photo; `decode` adds it."""


def decode(
    source: str | os.PathLike[str] | io.BytesIO | Image.Image,
    convert: Callable[[Samples], npt.NDArray[Result]],
    *,
    upright: bool,
    max_pixels: int = MAX_PIXELS,
) -> npt.NDArray[Result]:
    """Read a photo, apply `convert` to its samples, and turn the result.

    Args:
        source: a file on the disk or in memory, or a pillow image, whose current frame is taken.
        convert: pointwise in the samples; may raise `UnreadableError`.
        upright: apply the EXIF orientation, otherwise give the stored orientation.
        max_pixels: files with more are refused before memory is taken for them.

    Returns:
        What `convert` gave, contiguous and writable.

    Raises:
        ImageError: whatever is wrong with the photo, in one sentence that names it.
        InputError: `source` is of another type.
    """
    if not isinstance(source, (str, os.PathLike, io.BytesIO, Image.Image)):
        raise InputError(
            f"an image must be given as a path or a pillow image, not {type(source).__name__}"
        )
    name = _name(source)
    try:
        with quiet_pillow:
            try:
                decoded = _decode(source, max_pixels)
            except Image.DecompressionBombError:
                with large_photos:
                    decoded = _decode(source, max_pixels)
        orientation = decoded.turn(upright)
        return np.require(_turned(convert(decoded.samples), orientation), requirements=["C", "W"])
    except UnreadableError as error:
        raise ImageError(f"cannot read {name}: {error}") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"cannot read {name}: it is not a JPEG, PNG, TIFF, WebP, PPM, PGM, BMP or GIF photo"
        ) from None
    except Image.DecompressionBombError:
        raise ImageError(f"cannot read {name}: {_too_large(max_pixels)}") from None
    except MemoryError:
        raise ImageError(f"cannot read {name}: there is not enough memory for it") from None
    except Exception as error:  # pillow's readers let nearly every kind of exception through
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ImageError(f"cannot read {name}: the file is damaged ({reason})") from error


def _name(source: str | os.PathLike[str] | io.BytesIO | Image.Image) -> str:
    if isinstance(source, Image.Image):
        return "the pillow image"
    return "the photo" if isinstance(source, io.BytesIO) else repr(os.fspath(source))


# --- Orientation -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Decoded:
    """Samples with the EXIF orientation of the file, and whether it has been applied already."""

    samples: Samples
    orientation: int
    is_upright: bool = False

    def turn(self, upright: bool) -> int:
        """The orientation that is still to be applied (1: nothing to do)."""
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
    except Exception:  # damaged EXIF says nothing; the photo itself may be whole
        return 1


# --- Files -----------------------------------------------------------------------------------


def _too_large(max_pixels: int) -> str:
    return f"it has more than {max_pixels // 1_000_000:,} megapixels; cut it into parts first"


def _decode(source: str | os.PathLike[str] | io.BytesIO | Image.Image, max_pixels: int) -> _Decoded:
    if isinstance(source, Image.Image):
        return _decode_pillow(source)
    with _open_file(source) as file:
        header = file.read(32)
        file.seek(0)
        if not header:
            raise UnreadableError("the file is empty")
        if header[4:8] == b"ftyp":
            raise UnreadableError("it is a HEIC, AVIF or video file; convert it to JPEG first")
        if header[:4] in _TIFF_MAGIC:
            return _decode_tiff(file, max_pixels)
        image = Image.open(file, formats=_FORMATS)
        _check_size(image.size, file, max_pixels)
        if image.format == "PPM" and image.tile[0][0] == "ppm":
            return _Decoded(_ppm_samples(file, image), orientation=1)
        decoded = _decode_pillow(image)
        if image.format == "PNG" and header[24] == 16 and image.mode in ("RGB", "RGBA"):
            # Several channels of 16 bits, of which pillow keeps 8; OpenCV ignores the EXIF.
            return _Decoded(_opencv_samples(file), decoded.orientation)
        return decoded


def _open_file(source: str | os.PathLike[str] | io.BytesIO) -> BinaryIO:
    if isinstance(source, io.BytesIO):
        return io.BytesIO(source.getvalue())  # so that the given one stays open
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
    """Stop before memory is taken for what a damaged or hostile header claims."""
    pixels = size[0] * size[1]
    if pixels > max_pixels:
        raise UnreadableError(_too_large(max_pixels))
    place = file.tell()
    length = file.seek(0, io.SEEK_END)
    file.seek(place)
    if pixels > max(100_000_000, 20_000 * length):  # not even an empty page packs that well
        raise UnreadableError(
            f"the file is damaged ({size[0]} x {size[1]} pixels cannot be in {length} bytes)"
        )


def _decode_pillow(image: Image.Image) -> _Decoded:
    # Pillow turns a TIFF upright while loading it, and then forgets the tag. (In a PNG the tag may
    # come after the image, so the others are asked only once they are loaded.)
    stated = _exif_orientation(image) if image.format == "TIFF" else 1
    image.load()
    left = _exif_orientation(image)
    if left == 1:
        return _Decoded(_pillow_samples(image), stated, is_upright=True)
    return _Decoded(_pillow_samples(image), left)


def _pillow_samples(image: Image.Image) -> Samples:
    """Grey or RGB samples of any mode; colours under transparent pixels stay as they are."""
    mode = image.mode
    if mode in ("RGB", "I", "F") or mode.startswith("I;16"):
        return np.array(image)
    if mode in ("La", "RGBa"):  # premultiplied
        image = image.convert(mode.upper())
    return np.array(image.convert("L" if mode in ("1", "L", "LA", "La") else "RGB"))


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
        if tags.get(_PLANAR, 1) == 2:  # pillow and OpenCV both mix the planes up
            raise UnreadableError(
                f"it holds {bits}-bit colours in separate planes; save it with interleaved channels"
            )
        needs_opencv = photometric in (0, 1, 2)  # grey or RGB; OpenCV knows no others
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
        if photometric == 0:  # white is zero, which pillow minds in 8 bits only
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
    """Binary PPM or PGM of an odd maximum value: slow in pillow, which keeps 8 bits of colours."""
    start, arguments = image.tile[0][2:4]
    maximum = int(arguments[1])  # type: ignore[index]  # of pillow's decoder: (mode, maximum)
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
