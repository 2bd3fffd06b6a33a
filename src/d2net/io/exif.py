"""The EXIF data of photos: GPS positions and the camera."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base

from d2net.geometry.cameras import check_photo_size
from d2net.geometry.coordinates import Size
from d2net.io.image_lists import FoundImage

if TYPE_CHECKING:
    import pycolmap

_MAX_ALTITUDE = 20_000.0  # metres
_DIAGONAL_35MM = math.hypot(36, 24)  # mm


class Position(NamedTuple):
    """A position on the earth (WGS84) in degrees; north and east are positive.

    The altitude is in metres above sea level, None if unknown.
    """

    latitude: float
    longitude: float
    altitude: float | None = None


def gps_positions(photos: Iterable[FoundImage]) -> dict[str, Position]:
    """The positions of the photos, by name, in the photos' order.

    Photos that cannot be read are left out; the error is reported when their pixels are read.
    """
    positions = {photo.name: gps_position(photo.path) for photo in photos}
    return {name: position for name, position in positions.items() if position is not None}


def _exif(path: Path) -> tuple[dict[int, Any], dict[int, Any], dict[int, Any]]:
    """The tags of a photo, of its exposure and of its position."""
    with path.open("rb") as file:
        if file.read(12)[4:8] == b"ftyp":  # HEIC
            import pillow_heif

            tags = Image.Exif()
            tags.load(pillow_heif.open_heif(path).info["exif"])
        else:
            tags = Image.open(file).getexif()
        return dict(tags), dict(tags.get_ifd(IFD.Exif)), dict(tags.get_ifd(IFD.GPSInfo))


def gps_position(path: Path) -> Position | None:
    """Where a photo was taken; None if the EXIF data lack it or are invalid.

    Cameras write 0, 0 before they know their position, so this position counts as missing.
    """
    try:
        _, _, tags = _exif(path)
        latitude = _degrees(tags[GPS.GPSLatitude], tags[GPS.GPSLatitudeRef], {"N": 1, "S": -1})
        longitude = _degrees(tags[GPS.GPSLongitude], tags[GPS.GPSLongitudeRef], {"E": 1, "W": -1})
    except Exception:  # pillow's readers let nearly every kind of exception through
        return None
    if not (abs(latitude) <= 90 and abs(longitude) <= 180) or latitude == longitude == 0:
        return None
    try:
        below = tags.get(GPS.GPSAltitudeRef) in (1, 3, b"\1", b"\3")  # 3: below the sea, EXIF 3.0
        altitude = (-1 if below else 1) * float(tags[GPS.GPSAltitude])
    except (LookupError, TypeError, ValueError, ZeroDivisionError):
        altitude = float("nan")
    return Position(latitude, longitude, altitude if abs(altitude) < _MAX_ALTITUDE else None)


def _degrees(parts: tuple[float, float, float], direction: str, signs: dict[str, int]) -> float:
    degrees, minutes, seconds = map(float, parts)
    return signs[direction.strip("\0 ").upper()] * (degrees + minutes / 60 + seconds / 3600)


def photo_size(path: Path, upright: bool = True) -> Size | None:
    """(width, height) from a photo's header; None if pillow cannot read it.

    The error is reported when the pixels are read.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            if image.format == "TIFF":  # pillow's size may be upright already
                width, height = (int(image.tag_v2[tag]) for tag in (256, 257))
            is_turned = upright and image.getexif().get(Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # pillow's readers let nearly every kind of exception through
        return None
    return (height, width) if is_turned else (width, height)


def check_photo_sizes(
    photos: Iterable[tuple[Path, pycolmap.Camera]], upright: bool | None = None, warn: bool = True
) -> None:
    """Raise InputError if a photo and its camera differ in size; warn if EXIF may rotate it.

    `upright` tells whether the photos will be rotated upright; None if that is not known.
    """
    rotated = []  # photos that keep their size, so the size cannot tell the camera's orientation
    for path, camera in photos:
        size = photo_size(path, upright=upright is not False)
        if size is not None and (upright is not None or size != (camera.height, camera.width)):
            check_photo_size(str(path), size, camera)
        with suppress(Exception), Image.open(path) as image:
            kinds = range(2, 9 if image.width == image.height else 5)
            if image.getexif().get(Base.Orientation) in kinds:
                rotated.append(path)
    if rotated and warn and upright is not False:
        logging.getLogger(__name__).warning(
            "EXIF data rotate %d photos, such as %s. If the true cameras belong to photos as "
            "stored, as in COLMAP's models, give --stored-orientation (`evaluate`: upright=false)",
            len(rotated),
            rotated[0],
        )


def camera_name(path: Path) -> str | None:
    """Make, model, lens, focal length and zoom, which determine a calibration; None if unknown."""
    try:
        tags, details, _ = _exif(path)
        body = [str(tags[key]).strip("\0 ") for key in (Base.Make, Base.Model)]
        focal_length = str(float(details[Base.FocalLength]))
        optional = (Base.FocalLengthIn35mmFilm, Base.DigitalZoomRatio, Base.LensModel)
        rest = [str(details.get(key, "")) for key in optional]
    except Exception:  # pillow's readers let nearly every kind of exception through
        return None
    return "|".join([*body, focal_length, *rest])


def focal_length_35mm(path: Path, size: Size) -> float | None:
    """The focal length in pixels from its 35 mm equivalent; None if unknown."""
    try:
        millimetres = float(_exif(path)[1][Base.FocalLengthIn35mmFilm])
    except Exception:  # pillow's readers let nearly every kind of exception through
        return None
    return millimetres * math.hypot(*size) / _DIAGONAL_35MM if millimetres > 0 else None
