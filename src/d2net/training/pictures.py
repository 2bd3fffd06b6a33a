"""Pictures of training pairs: the crops side by side, with partners in the same colour.

They are drawn with OpenCV: `d2net data check` and TensorBoard need them where matplotlib, an
optional package, is not installed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from d2net.io.pictures import write_picture
from d2net.training.crops import RGB, Array
from d2net.training.sources.base import TrainingPair
from d2net.visualization import picture_path

_EDGE = 384  # of a crop in the picture, pixels
_GAP, _CAPTION = 8, 22
_MAX_DOTS, _MAX_LINES = 150, 12
_BACKGROUND, _TEXT = (24, 24, 24), (240, 240, 240)
_SUBPIXEL_BITS = 4  # OpenCV draws at sixteenths of a pixel
_SCORE_OPACITY = 0.65

ScoreMap = Callable[[RGB], NDArray[np.float32]]
"""Computes the h x w soft scores of a crop."""


def draw_pairs(
    pairs: Sequence[TrainingPair],
    score_map: ScoreMap | None = None,
    output: Path | None = None,
) -> Image.Image:
    """Draw training pairs, two in a row or, with score maps, one.

    A point and its partner have the same colour, which depends on the position in crop a. Of many
    points a random selection is shown, some of them joined by lines.

    Args:
        pairs: the pairs.
        score_map: draws the soft scores of both crops beside each pair.
        output: a .png or .jpg file to write.

    Raises:
        InputError: an unknown extension.
        OutputError: the picture cannot be written.
    """
    path = picture_path(output)
    tiles = [_draw_pair(pair, score_map) for pair in pairs]
    if not tiles:
        tiles = [_with_caption(np.full((_EDGE, 2 * _EDGE, 3), _BACKGROUND, np.uint8), "no pairs")]
    columns = 1 if score_map is not None or len(tiles) == 1 else 2
    tiles += [np.full_like(tiles[0], _BACKGROUND[0])] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    picture = Image.fromarray(np.vstack(rows))
    if path is not None:
        write_picture(path, picture)
    return picture


def _draw_pair(pair: TrainingPair, score_map: ScoreMap | None) -> RGB:
    a, b = _enlarged(pair.image_a), _enlarged(pair.image_b)
    factor = _EDGE / len(pair.image_a)
    points_a, points_b = (
        (points.astype(np.float64) + 0.5) * factor - 0.5
        for points in (pair.points_a, pair.points_b)
    )
    gap = np.full((_EDGE, _GAP, 3), _BACKGROUND, np.uint8)
    canvas = np.hstack([a, gap, b])
    colours = _colours(points_a)
    # The same random rows each time, in an order without a pattern.
    rows = np.random.default_rng(0).permutation(len(points_a))[:_MAX_DOTS]
    starts, ends = _fixed_point(points_a), _fixed_point(points_b + np.array([_EDGE + _GAP, 0]))
    for row in rows[:_MAX_LINES]:
        cv2.line(canvas, starts[row], ends[row], colours[row], 1, cv2.LINE_AA, _SUBPIXEL_BITS)
    for row in rows:
        for point in (starts[row], ends[row]):
            for radius, colour in ((4, (0, 0, 0)), (3, colours[row])):
                scaled = radius << _SUBPIXEL_BITS
                cv2.circle(canvas, point, scaled, colour, -1, cv2.LINE_AA, _SUBPIXEL_BITS)
    if score_map is not None:
        heats = [_draw_scores(_enlarged(i), score_map(i)) for i in (pair.image_a, pair.image_b)]
        canvas = np.hstack([canvas, gap, heats[0], gap, heats[1]])
    names = " | ".join(Path(photo).name for photo in dict.fromkeys(pair.photos))
    return _with_caption(canvas, f"{pair.source}: {len(points_a):,} points   {names}")


def _enlarged(crop: RGB) -> RGB:
    return np.asarray(cv2.resize(crop, (_EDGE, _EDGE), interpolation=cv2.INTER_LINEAR), np.uint8)


def _fixed_point(points: Array) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for x, y in np.rint(points * (1 << _SUBPIXEL_BITS))]


def _colours(points: Array) -> list[tuple[int, ...]]:
    """RGB by position: hue from left to right, paler from top to bottom."""
    if not len(points):
        return []
    x, y = np.clip(points.T / _EDGE, 0, 1)
    hsv = np.stack([170 * x, 255 - 150 * y, np.full(len(points), 255)], axis=1).astype(np.uint8)
    return [tuple(rgb) for rgb in cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB)[0].tolist()]


def _draw_scores(crop: RGB, scores: NDArray[np.float32]) -> RGB:
    """Scores over the grey crop. The colours span nearly all values, which differ little."""
    grey = np.repeat(np.asarray(cv2.cvtColor(crop, cv2.COLOR_RGB2GRAY))[..., None], 3, axis=2)
    if not scores.size:  # the crop is too small for a cell
        return np.asarray(grey, np.uint8)
    low, high = np.percentile(scores, (2, 99.8))
    levels = np.clip((scores - low) / max(float(high - low), 1e-12), 0, 1)
    colours = cv2.applyColorMap(np.rint(255 * levels).astype(np.uint8), cv2.COLORMAP_INFERNO)
    layer = cv2.resize(colours[..., ::-1], crop.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    blended = cv2.addWeighted(grey, 1 - _SCORE_OPACITY, layer, _SCORE_OPACITY, 0)
    return np.asarray(blended, np.uint8)


def _with_caption(canvas: RGB, text: str) -> RGB:
    """The canvas below a caption, with a gap around it."""
    size = (canvas.shape[1] + 2 * _GAP, len(canvas) + _CAPTION + _GAP)
    picture = Image.new("RGB", size, _BACKGROUND)
    picture.paste(Image.fromarray(canvas), (_GAP, _CAPTION))
    printable = "".join(c if c.isascii() and c.isprintable() else "?" for c in text)
    pen = ImageDraw.Draw(picture)
    pen.text((_GAP, _CAPTION / 2), printable, _TEXT, ImageFont.load_default(14), anchor="lm")
    return np.asarray(picture, np.uint8)
