"""The photos of a map, read once and kept small: thumbnails, and colours for its points."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from d2net.errors import D2NetError
from d2net.geometry import coordinates
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS, Size
from d2net.io.image_lists import find_photo
from d2net.io.images import Pixels, resize, to_pixels
from d2net.mapping.cloud import Cloud, View

_READ_EDGE = 640  # pixels; colours need no more, and a JPEG of that size is decoded quickly
_MAX_EDGE, _MIN_EDGE = 240, 72  # of a thumbnail
_TOTAL_EDGE = 2400  # the edge falls with the root of the number of photos: the bytes stay bounded
_MAX_THUMBNAILS = 1000
_QUALITY = 72
_GREY = 150  # of points whose colour nobody knows


@dataclass(frozen=True)
class Album:
    """What the photos give to the pictures of a map.

    Attributes:
        thumbnails: JPEG by name of the photo.
        unreadable: names of photos in the map that are missing or damaged.
        uncoloured: how many points have no colour, and are grey, because of that.
    """

    thumbnails: dict[str, bytes]
    unreadable: tuple[str, ...] = ()
    uncoloured: int = 0


def colour(
    cloud: Cloud, folders: Sequence[Path], others: Iterable[str] = ()
) -> tuple[Cloud, Album]:
    """Give colours to the points that have none, and make thumbnails of all photos.

    A point's colour is the mean over the photos that see it; grey where none can be read.

    Args:
        cloud: points that are black have no colour yet, as COLMAP has it.
        folders: where photos are; their names are relative to one of them.
        others: further photos that get a thumbnail.

    Returns:
        The cloud with colours, and the photos.
    """
    views = {view.name: view for view in cloud.views}
    names = sorted({*views, *others})
    bare = np.asarray(~cloud.colours.any(axis=1))
    with_thumbnail = set(names[:: -(-len(names) // _MAX_THUMBNAILS)] if names else ())
    edge = int(np.clip(_TOTAL_EDGE / max(len(names), 1) ** 0.5, _MIN_EDGE, _MAX_EDGE))
    sums, counts = np.zeros(cloud.colours.shape), np.zeros(len(bare))
    thumbnails, unreadable = {}, []
    for name in names:
        view = views.get(name)
        if name not in with_thumbnail and (view is None or not bare[view.points].any()):
            continue
        path = find_photo(folders, name)
        photo = None if path is None else _read(path, view)
        if photo is None:
            if view is not None:
                unreadable.append(name)
            continue
        if name in with_thumbnail:
            thumbnails[name] = _jpeg(photo, edge)
        if view is not None and bare[view.points].any():
            np.add.at(sums, view.points, _sample(photo, view))
            np.add.at(counts, view.points, 1)
    colours = cloud.colours.copy()
    found = bare & (counts > 0)
    colours[found] = np.rint(sums[found] / counts[found, None]).astype(np.uint8)
    colours[bare & ~found] = _GREY
    album = Album(thumbnails, tuple(unreadable), int((bare & ~found).sum()))
    return replace(cloud, colours=colours), album


def _read(path: Path, view: View | None) -> Pixels | None:
    """The photo, small, turned as its camera has it; None if it cannot be read."""
    try:
        photo = _small(path, upright=True)
        if view is not None and _is_upended(photo.shape[1::-1], view.size):
            photo = _small(path, upright=False)  # a map of the photos as stored
    except D2NetError:
        return None
    return photo


def _is_upended(photo: Size, camera: Size) -> bool:
    return (photo[0] - photo[1]) * (camera[0] - camera[1]) < 0


def _small(path: Path, *, upright: bool) -> Pixels:
    pixels = _quick_jpeg(path, upright)
    if pixels is None:
        pixels = to_pixels(path, upright=upright)
    return np.rint(_fitted(pixels, _READ_EDGE)).astype(np.uint8)


def _quick_jpeg(path: Path, upright: bool) -> Pixels | None:
    """A JPEG decoded at a part of its size; None if it is something else."""
    try:
        with Image.open(path, formats=["JPEG"]) as image:
            image.draft("RGB", (_READ_EDGE, _READ_EDGE))
            return to_pixels(image, upright=upright)
    except (OSError, Image.DecompressionBombError):
        return None


def _fitted(pixels: Pixels, edge: int) -> Pixels:
    """Reduced to a longer edge of so many pixels, if it is longer."""
    height, width = pixels.shape[:2]
    factor = min(1.0, edge / max(height, width))
    return resize(pixels, (max(1, round(factor * width)), max(1, round(factor * height))))


def _sample(photo: Pixels, view: View) -> NDArray[np.float64]:
    """K x 3 colours at the places where a view sees its points."""
    height, width = photo.shape[:2]
    photo_from_camera = coordinates.resize(view.size, (width, height))
    places = COLMAP_FROM_PIXELS.inverse()(torch.from_numpy(view.places))
    x, y = np.rint(photo_from_camera(places).numpy()).astype(np.int64).T
    sampled = photo[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
    return np.asarray(sampled, np.float64)


def _jpeg(photo: Pixels, edge: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_fitted(photo, edge)).save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
