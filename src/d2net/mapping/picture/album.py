"""Thumbnails of a map's photos, and colours of its points. Each photo is read once."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from d2net.errors import D2NetError
from d2net.geometry import coordinates
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS
from d2net.io.image_lists import find_photo
from d2net.io.images import Pixels, limited_size, resize, to_pixels
from d2net.mapping.cloud import Array, Cloud, PosedPhoto

_READ_EDGE = 640  # pixels; enough for colours, and a JPEG is decoded quickly at this size
_MAX_EDGE, _MIN_EDGE = 240, 72  # of a thumbnail
_TOTAL_EDGE = 2400  # over the root of the number of photos: all thumbnails together stay small
_MAX_THUMBNAILS = 1000
_QUALITY = 72
_GREY = 150  # of points whose colour is unknown


@dataclass(frozen=True)
class Album:
    """The photos of a map.

    Attributes:
        thumbnails: JPEG by name of the photo.
        unreadable: names of registered photos that are missing or damaged.
        uncoloured: number of points that are grey because of that.
    """

    thumbnails: dict[str, bytes]
    unreadable: tuple[str, ...] = ()
    uncoloured: int = 0


def add_colours(
    cloud: Cloud, folders: Sequence[Path], failed: Iterable[str] = ()
) -> tuple[Cloud, Album]:
    """Colour the points that have no colour, and make thumbnails of all photos.

    A point gets the mean colour of the photos that observe it, or grey if none can be read.

    Args:
        cloud: black points have no colour yet, as in COLMAP.
        folders: photos' names are relative to one of them.
        failed: names of photos that are not registered; they get thumbnails, too.
    """
    posed = {photo.name: photo for photo in cloud.photos}
    names = sorted({*posed, *failed})
    bare = np.asarray(~cloud.colours.any(axis=1))
    with_thumbnail = set(names[:: -(-len(names) // _MAX_THUMBNAILS) or 1])
    edge = int(np.clip(_TOTAL_EDGE / max(len(names), 1) ** 0.5, _MIN_EDGE, _MAX_EDGE))
    sums, counts = np.zeros(cloud.colours.shape), np.zeros(len(bare))
    thumbnails, unreadable = {}, []
    for name in names:
        photo = posed.get(name)
        gives_colours = photo is not None and bool(bare[photo.point_rows].any())
        if name not in with_thumbnail and not gives_colours:
            continue
        path = find_photo(folders, name)
        pixels = None if path is None else _read_small(path, photo)
        if pixels is None:
            if photo is not None:
                unreadable.append(name)
            continue
        if name in with_thumbnail:
            thumbnails[name] = small_jpeg(pixels, edge, _QUALITY)
        if photo is not None and gives_colours:
            np.add.at(sums, photo.point_rows, _sample(pixels, photo))
            np.add.at(counts, photo.point_rows, 1)
    colours = cloud.colours.copy()
    coloured = bare & (counts > 0)
    colours[coloured] = np.rint(sums[coloured] / counts[coloured, None]).astype(np.uint8)
    colours[bare & ~coloured] = _GREY
    album = Album(thumbnails, tuple(unreadable), int((bare & ~coloured).sum()))
    return replace(cloud, colours=colours), album


def small_jpeg(pixels: Pixels, edge: int, quality: int) -> bytes:
    """The photo as JPEG, reduced to this longer edge in pixels if it is larger."""
    height, width = pixels.shape[:2]
    small = resize(pixels, limited_size((width, height), edge, None))
    buffer = io.BytesIO()
    Image.fromarray(_eight_bits(small)).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()


def _eight_bits(pixels: Pixels) -> Pixels:
    return pixels if pixels.dtype == np.uint8 else np.rint(pixels).astype(np.uint8)


def _read_small(path: Path, photo: PosedPhoto | None) -> Pixels | None:
    """The photo, reduced and turned as its camera has it; None if it cannot be read."""
    for upright in (True, False):  # a map may be made of the photos as stored
        try:
            draft = _draft_jpeg(path, upright)
            pixels = to_pixels(path, upright=upright) if draft is None else draft
        except D2NetError:
            return None
        height, width = pixels.shape[:2]
        if photo is None or (width - height) * (photo.size[0] - photo.size[1]) >= 0:
            break
    return _eight_bits(resize(pixels, limited_size((width, height), _READ_EDGE, None)))


def _draft_jpeg(path: Path, upright: bool) -> Pixels | None:
    """A JPEG decoded at reduced size; None for other files."""
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            image.draft("RGB", (_READ_EDGE, _READ_EDGE))
            return to_pixels(image, upright=upright)
    except (OSError, Image.DecompressionBombError):
        return None


def _sample(pixels: Pixels, photo: PosedPhoto) -> Array:
    """K x 3, colours where the photo observes its points."""
    height, width = pixels.shape[:2]
    reduced_from_camera = coordinates.resize(photo.size, (width, height))
    positions = reduced_from_camera(COLMAP_FROM_PIXELS.inverse()(photo.pixels))
    x, y = np.rint(positions).astype(np.int64).T
    sampled = pixels[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return np.asarray(sampled, np.float64)
