"""Where a photo was taken and with what, from its EXIF data."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from d2net.io.image_decoding import quiet_pillow
from d2net.io.image_lists import FoundImage

_GPS = 0x8825
_EXIF = 0x8769
_MAKE, _MODEL, _FOCAL_LENGTH, _FOCAL_LENGTH_35MM, _ZOOM, _LENS = (
    0x010F,
    0x0110,
    0x920A,
    0xA405,
    0xA404,
    0xA434,
)
_LATITUDE_REF, _LATITUDE, _LONGITUDE_REF, _LONGITUDE = 1, 2, 3, 4

_SEMI_MAJOR = 6_378_137.0  # metres; WGS84
_FLATTENING = 1 / 298.257223563


@dataclass(frozen=True)
class Position:
    """A place on the earth in WGS84, degrees: north and east are positive."""

    latitude: float
    longitude: float

    def on_ellipsoid(self) -> NDArray[np.float64]:
        """3, metres: its earth-centred, earth-fixed coordinates at height 0."""
        latitude, longitude = math.radians(self.latitude), math.radians(self.longitude)
        e2 = _FLATTENING * (2 - _FLATTENING)
        normal = _SEMI_MAJOR / math.sqrt(1 - e2 * math.sin(latitude) ** 2)
        return normal * np.array(
            [
                math.cos(latitude) * math.cos(longitude),
                math.cos(latitude) * math.sin(longitude),
                (1 - e2) * math.sin(latitude),
            ]
        )


def gps_positions(photos: Iterable[FoundImage]) -> dict[str, Position]:
    """The positions of the photos that have one, by name, in the photos' order.

    A photo that cannot be read has none: what is wrong with it is told by who reads its pixels.
    """
    found = {photo.name: gps_position(photo.path) for photo in photos}
    return {name: position for name, position in found.items() if position is not None}


def gps_position(path: Path) -> Position | None:
    """Where the photo was taken; None if its EXIF data do not say so or make no sense.

    0, 0 counts as none: cameras write it before they know.
    """
    try:
        with quiet_pillow, Image.open(path) as image:
            tags = image.getexif().get_ifd(_GPS)
        latitude = _degrees(tags[_LATITUDE], tags[_LATITUDE_REF], {"N": 1, "S": -1})
        longitude = _degrees(tags[_LONGITUDE], tags[_LONGITUDE_REF], {"E": 1, "W": -1})
    except Exception:  # pillow's readers let nearly every kind of exception through
        return None
    if not (abs(latitude) <= 90 and abs(longitude) <= 180) or latitude == longitude == 0:
        return None
    return Position(latitude, longitude)


def camera_name(path: Path) -> str | None:
    """What a calibration holds for: make, model, lens, focal length, zoom; None if not told."""
    try:
        with quiet_pillow, Image.open(path) as image:
            tags = image.getexif()
            details = tags.get_ifd(_EXIF)
            body = [str(tags[key]).strip("\0 ") for key in (_MAKE, _MODEL)]
            focal = str(float(details[_FOCAL_LENGTH]))
            rest = [str(details.get(key, "")) for key in (_FOCAL_LENGTH_35MM, _ZOOM, _LENS)]
    except Exception:  # pillow's readers let nearly every kind of exception through
        return None
    return "|".join([*body, focal, *rest])


def _degrees(parts: tuple[float, float, float], reference: str, signs: dict[str, int]) -> float:
    """From degrees, minutes, seconds and the letter of a direction."""
    degrees, minutes, seconds = map(float, parts)
    return signs[reference.strip("\0 ").upper()] * (degrees + minutes / 60 + seconds / 3600)
