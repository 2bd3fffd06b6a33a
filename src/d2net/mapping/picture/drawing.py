"""A picture of a map: points and cameras seen obliquely and from above, with figures in words."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from d2net.mapping.cloud import Array, Cloud
from d2net.mapping.picture.glyphs import frustums, point_radii
from d2net.mapping.picture.splats import Splats, Viewer
from d2net.mapping.picture.viewpoint import Look, from_above, oblique

Canvas = NDArray[np.uint8]

CAMERA_COLOUR = (0, 90, 255)  # rare in photos of things, and dark enough for print

# In pixels of the picture.
_MAIN, _ABOVE = (1200, 900), (600, 560)
_GAP = 16
_TEXT_SIZE = 25
_LINE_WIDTH = 1.2

SLOPE = 0.25 * np.array([1, _MAIN[1] / _MAIN[0]])  # the picture is half as wide as it is far away
_PARALLEL = 0.002 * np.array([1, _ABOVE[1] / _ABOVE[0]])  # a plan
_MARGIN = 0.92  # share of the picture that the frame fills
_INK, _QUIET, _LINE = (28, 30, 33), (91, 97, 104), (217, 220, 224)


def draw_oblique(cloud: Cloud) -> Canvas:
    """H x W x 3: the cloud with its cameras as a person would look at it."""
    return _draw(cloud, oblique(cloud, SLOPE), _MAIN, SLOPE)[0]


def draw_picture(cloud: Cloud, lines: Sequence[str]) -> Image.Image:
    """The whole picture: oblique view, view from above, and a caption.

    Args:
        cloud: points with colours, and cameras.
        lines: the caption.
    """
    main, hidden = _draw(cloud, oblique(cloud, SLOPE), _MAIN, SLOPE)
    above, _ = _draw(cloud, from_above(cloud, _PARALLEL), _ABOVE, _PARALLEL)
    picture = Image.new("RGB", (_MAIN[0] + _ABOVE[0] + 3 * _GAP, _MAIN[1] + 2 * _GAP), "white")
    pen = ImageDraw.Draw(picture)
    picture.paste(Image.fromarray(main), (_GAP, _GAP))
    left = _MAIN[0] + 2 * _GAP
    picture.paste(Image.fromarray(above), (left, _GAP))
    pen.rectangle((left, _GAP, left + _ABOVE[0] - 1, _GAP + _ABOVE[1] - 1), outline=_LINE)
    font = ImageFont.load_default(_TEXT_SIZE)
    small = ImageFont.load_default(0.8 * _TEXT_SIZE)
    place = (left + _GAP, 2 * _GAP)
    left_, top_, right_, bottom_ = pen.textbbox(place, "from above", small)
    pen.rectangle((left_ - 6, top_ - 6, right_ + 6, bottom_ + 6), fill="white")
    pen.text(place, "from above", _QUIET, small)
    top = 3.0 * _GAP + _ABOVE[1]
    for text, own, ink in [
        *((line, font, _INK) for line in lines),
        *((line, small, _QUIET) for line in _notes(cloud, hidden)),
    ]:
        for row in _wrapped(text, own, _ABOVE[0]):
            pen.text((left, top), row, ink, own)
            top += 1.45 * _TEXT_SIZE
    return picture


def _draw(cloud: Cloud, look: Look, size: tuple[int, int], slope: Array) -> tuple[Canvas, int]:
    """A view, and how many of its cameras lie outside of the picture."""
    distance = look.frame.distance(_MARGIN * slope)
    viewer = Viewer(look.view_from_world, look.frame.target, distance, float(slope[0]), size)
    half_width = float(look.frame.extent.max())
    splats = Splats(viewer)
    pixels = size[0] / 2 / (slope[0] * distance)  # of the world's unit at the target
    splats.draw_points(cloud.points, cloud.colours, pixels * point_radii(cloud, half_width))
    splats.draw_frustums(frustums(cloud, half_width), CAMERA_COLOUR, _LINE_WIDTH)
    places, depths = viewer.see(cloud.centres)
    inside = (places >= 0).all(axis=1) & (places < size).all(axis=1) & (depths > 0)
    return splats.finish(), int((~inside).sum())


def _notes(cloud: Cloud, hidden: int) -> list[str]:
    notes = []
    if cloud.views:
        notes.append("Each blue pyramid is a camera and opens the way it looks.")
    if hidden:
        are = "camera is" if hidden == 1 else "cameras are"
        notes.append(f"{hidden:,} {are} farther away than the picture shows.")
    return notes


def _wrapped(
    text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int
) -> list[str]:
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if rows[-1] and font.getlength(longer) > width:
            rows.append(word)
        else:
            rows[-1] = longer
    return rows
