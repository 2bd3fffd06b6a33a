"""Pictures of training pairs: the crops side by side, partners in the same colour."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from d2net.io.atomic import replacing
from d2net.training.sources.base import TrainingPair
from d2net.training.views import Array, Crop
from d2net.visualization import picture_path

_EDGE = 384  # of a crop in the picture, pixels
_GAP, _ROW = 8, 22
_MOST_DOTS, _MOST_LINES = 150, 12
_BACKGROUND, _TEXT = (24, 24, 24), (240, 240, 240)
_HEAT_SHARE = 0.65

ScoreMap = Callable[[Crop], NDArray[np.float32]]
"""Gives the h x w soft score map of a crop."""


def draw_pairs(
    pairs: Sequence[TrainingPair],
    score_map: ScoreMap | None = None,
    output: Path | None = None,
) -> Image.Image:
    """Training pairs below each other, or two in a row.

    A point and its partner have the same colour, which says where in crop a it lies; of many points
    some are shown, and a few are joined by lines.

    Args:
        pairs: what to draw.
        score_map: draws the soft scores of both crops beside each pair.
        output: a .png or .jpg file to write.

    Returns:
        The picture.

    Raises:
        InputError: an unknown extension.
        OutputError: the picture cannot be written.
    """
    path = picture_path(output)
    tiles = [_tile(pair, score_map) for pair in pairs]
    if not tiles:
        tiles = [_captioned(np.full((_EDGE, 2 * _EDGE, 3), _BACKGROUND, np.uint8), "no pairs")]
    columns = 1 if score_map is not None or len(tiles) == 1 else 2
    blank = np.full_like(tiles[0], _BACKGROUND[0])
    tiles += [blank] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    picture = Image.fromarray(np.vstack(rows))
    if path is not None:
        with replacing(path) as temporary:
            picture.save(temporary, format="PNG" if path.suffix.lower() == ".png" else "JPEG")
    return picture


def _tile(pair: TrainingPair, score_map: ScoreMap | None) -> Crop:
    """One pair with its caption."""
    a, b = (_enlarged(image) for image in (pair.image_a, pair.image_b))
    factor = _EDGE / len(pair.image_a)
    points_a, points_b = (
        (points.astype(np.float64) + 0.5) * factor - 0.5
        for points in (pair.points_a, pair.points_b)
    )
    canvas = np.hstack([a, np.full((_EDGE, _GAP, 3), _BACKGROUND, np.uint8), b])
    points_b[:, 0] += _EDGE + _GAP
    colours = _colours(points_a)
    shown = _spread(len(points_a), _MOST_DOTS)
    lines = shown[_spread(len(shown), _MOST_LINES)]
    for start, end, colour in zip(
        _places(points_a[lines]), _places(points_b[lines]), colours[lines].tolist(), strict=True
    ):
        cv2.line(canvas, start, end, colour, 1, cv2.LINE_AA, shift=4)
    for places in (_places(points_a[shown]), _places(points_b[shown])):
        for place, colour in zip(places, colours[shown].tolist(), strict=True):
            cv2.circle(canvas, place, 4 * 16, (0, 0, 0), -1, cv2.LINE_AA, shift=4)
            cv2.circle(canvas, place, 3 * 16, colour, -1, cv2.LINE_AA, shift=4)
    if score_map is not None:
        gap = np.full((_EDGE, _GAP, 3), _BACKGROUND, np.uint8)
        for image in (pair.image_a, pair.image_b):
            canvas = np.hstack([canvas, gap, _heat(_enlarged(image), score_map(image))])
    names = " | ".join(Path(photo).name for photo in dict.fromkeys(pair.photos))
    return _captioned(canvas, f"{pair.source}: {len(pair.points_a):,} points   {names}")


def _enlarged(crop: Crop) -> Crop:
    return np.asarray(
        cv2.resize(crop, (_EDGE, _EDGE), interpolation=cv2.INTER_LINEAR), dtype=np.uint8
    )


def _heat(crop: Crop, scores: ArrayLike) -> Crop:
    """Scores over the grey crop; colours span nearly all values, for they differ little."""
    values = np.asarray(scores, np.float32)
    grey = np.repeat(np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY))[..., None], 3, axis=2)
    if not values.size:  # a crop too small for a cell
        return np.asarray(grey, np.uint8)
    low, high = np.percentile(values, (2, 99.8))
    levels = np.clip((values - low) / max(float(high - low), 1e-12), 0, 1)
    colours = cv2.applyColorMap(np.rint(255 * levels).astype(np.uint8), cv2.COLORMAP_INFERNO)
    layer = cv2.resize(colours[..., ::-1], crop.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    return np.asarray(cv2.addWeighted(grey, 1 - _HEAT_SHARE, layer, _HEAT_SHARE, 0), np.uint8)


def _colours(points: Array) -> NDArray[np.uint8]:
    """N x 3 RGB: the hue says how far right a point lies, paleness how far down."""
    hue = 170 * np.clip(points[:, 0] / _EDGE, 0, 1)
    saturation = 255 - 150 * np.clip(points[:, 1] / _EDGE, 0, 1)
    hsv = np.stack([hue, saturation, np.full(len(points), 255)], axis=1).astype(np.uint8)
    if not len(hsv):
        return np.empty((0, 3), np.uint8)
    return np.asarray(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0], np.uint8)


def _spread(count: int, most: int) -> NDArray[np.int64]:
    """At most so many numbers below `count`, the same ones each time, without a pattern."""
    rng = np.random.default_rng(0)
    return np.sort(rng.choice(count, min(count, most), replace=False)).astype(np.int64)


def _places(points: Array) -> list[tuple[int, int]]:
    """Points as OpenCV draws them, in sixteenths of a pixel."""
    return [(int(x), int(y)) for x, y in np.rint(points * 16)]


def _captioned(canvas: Crop, text: str) -> Crop:
    """The canvas with a caption above it and a gap around it."""
    whole = Image.new("RGB", (canvas.shape[1] + 2 * _GAP, len(canvas) + _ROW + _GAP), _BACKGROUND)
    whole.paste(Image.fromarray(canvas), (_GAP, _ROW))
    printable = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    pen = ImageDraw.Draw(whole)
    pen.text((_GAP, _ROW / 2), printable, _TEXT, ImageFont.load_default(14), anchor="lm")
    return np.asarray(whole, np.uint8)
