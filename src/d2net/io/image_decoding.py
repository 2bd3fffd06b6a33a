"""From a photo's file to its samples: pillow, and OpenCV where pillow would drop bits.

`d2net.io.images` is the public interface. Samples are as stored in the file: H x W grey or
H x W x 3 RGB; uint8, uint16, int32 or float. Alpha is dropped here. The range of float samples is
decided in `images._float_pixels`.
"""

from __future__ import annotations

import io
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError
from PIL.ExifTags import Base
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2

from d2net.errors import ImageError, InputError
from d2net.geometry.coordinates import Size

Samples = npt.NDArray[Any]
Result = TypeVar("Result", bound=np.generic)
Source = str | os.PathLike[str] | io.BytesIO | Image.Image

MAX_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Largest photo that is read, as in pillow: a larger one is probably damaged or hostile."""

# Formats of cameras and scanners. Others of pillow's readers would run Ghostscript, for example.
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "GIF", "TIFF", "WEBP")
_PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
_TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")


class UnreadableError(Exception):
    """Why samples cannot be used, without the name of the photo, which `decode` adds."""


def decode(
    source: Source,
    convert: Callable[[Samples], npt.NDArray[Result]],
    *,
    upright: bool,
    max_pixels: int = MAX_PIXELS,
) -> npt.NDArray[Result]:
    """Read a photo, apply `convert` to its samples, and rotate the result upright.

    `convert` works on each sample separately, and may raise `UnreadableError`. The result is
    contiguous and writable. The other arguments are those of `images.read_image`.
    """
    if not isinstance(source, (str, os.PathLike, io.BytesIO, Image.Image)):
        raise InputError(
            "an image must be given as a path or a pillow image, or a mask as a NumPy array, not "
            f"{type(source).__name__}"
        )
    try:
        decoded = _decode(source, max_pixels)
        turned = decoded.turned(convert(decoded.samples), upright)
        return np.require(turned, requirements=["C", "W"])
    except UnreadableError as error:
        reason, cause = str(error), None
    except UnidentifiedImageError:
        reason, cause = "it is not a JPEG, PNG, TIFF, HEIC, WebP, PPM, PGM, BMP or GIF photo", None
    except Image.DecompressionBombError:
        megapixels = min(max_pixels, 2 * (Image.MAX_IMAGE_PIXELS or max_pixels)) // 1_000_000
        reason, cause = f"it has more than {megapixels} megapixels; cut it into parts first", None
    except MemoryError:
        reason, cause = "there is not enough memory for it", None
    except Exception as error:  # pillow's readers let nearly every kind of exception through
        detail = " ".join(str(error).split()) or type(error).__name__
        reason, cause = f"the file is damaged ({detail})", error
    name = repr(os.fspath(source)) if isinstance(source, (str, os.PathLike)) else "the photo"
    raise ImageError(f"cannot read {name}: {reason}") from cause


@dataclass(frozen=True)
class _Decoded:
    """Samples, the EXIF orientation of the file, and whether it has been applied to them."""

    samples: Samples
    orientation: int
    is_upright: bool = False

    def turned(self, image: npt.NDArray[Result], upright: bool) -> npt.NDArray[Result]:
        """Apply the remaining orientation to `image`, which has the size of the samples."""
        orientation = self.orientation
        if upright == self.is_upright:
            return image
        if not upright:
            orientation = {6: 8, 8: 6}.get(orientation, orientation)
        if orientation in (5, 6, 7, 8):
            image = image.swapaxes(0, 1)
        if orientation in (2, 3, 6, 7):
            image = image[:, ::-1]
        return image[::-1] if orientation in (3, 4, 7, 8) else image


def _valid_orientation(value: object) -> int:
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _exif_orientation(image: Image.Image) -> int:
    try:
        return _valid_orientation(image.getexif().get(Base.Orientation))
    except Exception:  # damaged EXIF data; the photo itself may be whole
        return 1


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


def _open_file(source: str | os.PathLike[str] | io.BytesIO) -> BinaryIO:
    if isinstance(source, io.BytesIO):
        return io.BytesIO(source.getvalue())  # the caller's object stays open
    try:
        path = Path(source)
        if path.exists() and not path.is_file():
            raise UnreadableError("it is not a regular file")  # a pipe would block
        return path.open("rb")
    except FileNotFoundError:
        raise UnreadableError("there is no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the name
        raise UnreadableError(getattr(error, "strerror", None) or str(error)) from None


def _decode_common(file: BinaryIO, header: bytes, max_pixels: int) -> _Decoded:
    image = Image.open(file, formats=_FORMATS)
    _check_size(image.size, max_pixels)
    decoded = _decode_pillow(image)
    if image.format == "PNG" and header[24] == 16 and image.mode in ("RGB", "RGBA"):
        # pillow keeps 8 of the 16 bits of colours; OpenCV keeps all but ignores EXIF.
        return _Decoded(_opencv_samples(file), decoded.orientation)
    return decoded


def _check_size(size: Size, max_pixels: int) -> None:
    """Stop before memory is allocated for the claim of a damaged or hostile header."""
    if size[0] * size[1] > max_pixels:
        raise Image.DecompressionBombError


def _decode_pillow(image: Image.Image) -> _Decoded:
    # Pillow rotates a TIFF upright while loading it, and then forgets the tag. In a PNG the tag may
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
    elif mode == "P":  # pillow warns if transparent colours do not become RGBA first
        image = image.convert("RGBA")
    return np.array(image.convert("L" if mode in ("1", "L", "LA", "La") else "RGB"))


def _repaired(data: bytes) -> bytes | None:
    """A PNG or JPEG that pillow refuses although all of its pixels are there; else None."""
    if data.startswith(b"\xff\xd8\xff"):
        # The decoder invents missing pixels from the bytes that it finds. So if pixels are missing,
        # different bytes in front of the end marker give different pixels.
        ended = [data + padding + b"\xff\xd9" for padding in (b"", b"\x55" * 64)]
        first, second = (Image.open(io.BytesIO(one), formats=("JPEG",)) for one in ended)
        return ended[0] if np.array_equal(np.array(first), np.array(second)) else None
    if not data.startswith(_PNG_MAGIC):
        return None
    # Pillow refuses long texts, large colour profiles and wrong checksums of texts. Keep only the
    # chunks that matter for the pixels.
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
    return None  # it is cut off


def _decode_heif(file: BinaryIO, brand: bytes, max_pixels: int) -> _Decoded:
    if brand[:3] not in (b"hei", b"hev", b"mif", b"msf"):
        raise UnreadableError("it is an AVIF or video file; convert it to JPEG first")
    try:
        import pillow_heif
    except ImportError:
        raise UnreadableError(
            "it is a HEIC photo: pip install 'd2net[heic]' to read it, or convert it to JPEG"
        ) from None
    heif = pillow_heif.open_heif(file)
    _check_size(heif.size, max_pixels)
    # The decoder always rotates the photo upright.
    return _Decoded(_pillow_samples(heif.to_pillow()), 1, is_upright=True)


def _decode_tiff(file: BinaryIO, max_pixels: int) -> _Decoded:
    header = file.read(8)
    if 43 in header[2:4]:  # BigTIFF
        header += file.read(8)
    tags = ImageFileDirectory_v2(header)
    file.seek(tags.next)
    tags.load(file)  # those of the first image
    file.seek(0)
    if Base.DNGVersion in tags or int(tags.get(Base.NewSubfileType, 0)) & 1:
        raise UnreadableError(
            "its first image is a preview, as in raw photos; develop it to JPEG or TIFF first"
        )
    _check_size((int(tags.get(Base.ImageWidth, 0)), int(tags.get(Base.ImageLength, 0))), max_pixels)
    if tags.get(Base.Compression, 1) not in COMPRESSION_INFO:  # OpenCV may return black pixels
        raise UnreadableError("its compression is not supported; save it with LZW or deflate")
    bits = max(tags.get(Base.BitsPerSample, (1,)))
    needs_opencv = bits == 8 and 2 in tags.get(Base.SampleFormat, ())  # signed
    if tags.get(Base.SamplesPerPixel, 1) > 1 and bits > 8:
        if tags.get(Base.PlanarConfiguration, 1) == 2:  # pillow and OpenCV both confuse the planes
            raise UnreadableError(
                f"it has {bits}-bit colours in separate planes; save it with interleaved channels"
            )
        # Grey or RGB; OpenCV reads no others.
        needs_opencv = tags.get(Base.PhotometricInterpretation) in (0, 1, 2)
    try:
        image = None if needs_opencv else Image.open(file, formats=["TIFF"])
    except UnidentifiedImageError:  # 64-bit floats, for example
        image = None
    if image is None:  # OpenCV always rotates a TIFF upright
        orientation = _valid_orientation(tags.get(Base.Orientation))
        return _Decoded(_opencv_samples(file), orientation, is_upright=True)
    return _decode_pillow(image)


def _opencv_samples(file: BinaryIO) -> Samples:
    cv2 = quiet_opencv()
    file.seek(0)
    data = np.frombuffer(file.read(), np.uint8)
    samples: Samples | None = cv2.imdecode(data, cv2.IMREAD_UNCHANGED)
    if samples is None:
        raise UnreadableError("the file is damaged or of a kind that cannot be decoded")
    return samples if samples.ndim == 2 else samples[:, :, 2::-1]  # BGR or BGRA


def quiet_opencv() -> Any:  # noqa: ANN401 (a module)
    """OpenCV, silenced about unknown TIFF tags such as map coordinates."""
    import cv2

    log: Any = getattr(cv2.utils, "logging", cv2)  # OpenCV 4 has the function in cv2 itself
    log.setLogLevel(0)
    return cv2
