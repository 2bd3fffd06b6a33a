"""Pictures that show at a glance what was found: keypoints on a photo, matches between two."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.formats.atomic import locked, replacing
from d2net.geometry import coordinates
from d2net.geometry.coordinates import GridMap, Size
from d2net.images import ImageLike, to_pixels

Canvas: TypeAlias = NDArray[np.uint8]  # H x W x 3 RGB
Points: TypeAlias = NDArray[np.float64]  # N x 2 (x, y) in pixels of a canvas
Colours: TypeAlias = NDArray[np.uint8]  # N x 3 RGB
PathLike: TypeAlias = str | os.PathLike[str]

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

# All in pixels of the picture.
_MAX_WIDTH = 2000
_MIN_HEIGHT, _MAX_HEIGHT = 480, 1200  # of the photos
_MIN_SLOT_WIDTH = 320  # room for a caption above a photo, however narrow that is
_MAX_ASPECT = 3.0  # a wider photo is shown lower than its neighbour, which would vanish otherwise
_GAP = 8

_BACKGROUND = (24, 24, 24)
_TEXT = (240, 240, 240)
_FAINT = (215, 215, 215)  # outliers
_FAINT_OPACITY = 0.3
_MAX_LINES = 400  # more cannot be followed by eye; the end points of all are drawn
_SUBPIXEL_BITS = 4  # OpenCV draws at sixteenths of a pixel


def plot_matches(
    image_a: ImageLike,
    image_b: ImageLike,
    a: Features,
    b: Features,
    matches: Matches,
    *,
    output: PathLike | None = None,
) -> Image.Image:
    """Both photos side by side with their matches.

    Lines take their colour from their place in the first photo, so that neighbours look alike and
    a match that goes astray stands out. After verification inliers are coloured and outliers
    faint; before it all matches are coloured. Large photos are reduced: the picture is at most
    2000 pixels wide.

    Args:
        image_a: the first photo, as for `to_pixels`.
        image_b: the second photo.
        a: features of the first photo.
        b: features of the second photo.
        matches: pairs of rows of `a` and `b`.
        output: where to write the picture as well, .png or .jpg.

    Returns:
        The picture.

    Raises:
        ImageError: a photo cannot be read.
        InputError: a photo is not the one that the features are of; unknown extension.
        OutputError: the picture cannot be written.
    """
    write = _writer(output)
    layout = _Layout.of([_pixels(image_a, a), _pixels(image_b, b)], caption_rows=2)
    canvas = layout.canvas
    rows_a, rows_b = matches.indices.cpu().unbind(1)
    from_a = layout.slots[0].points(a, rows_a)
    to_b = layout.slots[1].points(b, rows_b)
    inliers = (
        np.ones(len(matches), dtype=np.bool_)
        if matches.inliers is None
        else matches.inliers.cpu().numpy()
    )
    top = layout.caption_height
    hue = (from_a[:, 1] - top) / max(1, canvas.shape[0] - top)
    colours = _rainbow(hue)

    shown = _spread(from_a, ~inliers)
    _draw_lines(canvas, from_a[shown], to_b[shown], _repeat(_FAINT, len(shown)), _FAINT_OPACITY, 1)
    shown = _spread(from_a, inliers)
    few = len(shown) <= 60
    _draw_lines(
        canvas, from_a[shown], to_b[shown], colours[shown], 0.9 if few else 0.6, 2 if few else 1
    )
    for points in (from_a, to_b):
        radius = 4.0 if few else 2.5
        _draw_dots(canvas, points[inliers], np.full(inliers.sum(), radius), colours[inliers], -1)

    picture = Image.fromarray(canvas)
    for slot, image, features, which in zip(
        layout.slots, (image_a, image_b), (a, b), ("first photo", "second photo"), strict=True
    ):
        _write_caption(picture, layout, 0, slot, _name(image, which), _keypoints(len(features)))
    ...
