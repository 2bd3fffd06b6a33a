"""Pairs that went best and worst, with their matches drawn right or wrong."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from d2net.evaluation.results import Drawing, PairResult, Result
from d2net.evaluation.tables import direction, figure_text
from d2net.geometry import coordinates
from d2net.io.images import resize, to_pixels

PICTURES = 4  # of the best pairs, and as many of the worst
_WIDTH, _HEIGHT = 1000, 420  # pixels, at most, of both photos side by side
_GAP = 6
_MAX_BYTES = 110_000  # of the JPEG, a third less than as data URI
_MAX_LINES = 200  # more cannot be told apart
_RIGHT, _WRONG = (70, 180, 255), (255, 90, 30)  # told apart by colour-blind people too
_SUBPIXEL_BITS = 4

Canvas = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """A pair for the page."""

    group: str
    photos: tuple[str, ...]
    uri: str
    width: int
    height: int
    right: int
    matches: int
    figures: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Gallery:
    """A method's pairs, best first in `best` and worst first in `worst`."""

    method: str
    figure: str
    best: tuple[Picture, ...]
    worst: tuple[Picture, ...]


def gallery(result: Result, photos_root: Path) -> Gallery | None:
    """Pictures of a method's best and worst pairs; None if it has no matches to draw.

    Pairs are ordered by the result's ranking figure, else by the one at the middle threshold of the
    curve, or by the first headline figure if there is no curve. No pair is shown twice.
    """
    pairs = [pair for pair in result.pairs if pair.drawing is not None]
    if not pairs:
        return None
    figure = ranking_figure(result)
    sign = direction(figure) or 1
    ranked = sorted(pairs, key=lambda pair: -sign * pair.figures[figure])
    worst = ranked[max(PICTURES, len(ranked) - PICTURES) :][::-1]
    return Gallery(
        result.method,
        figure,
        _pictures(result, ranked[:PICTURES], photos_root),
        _pictures(result, worst, photos_root),
    )


def ranking_figure(result: Result) -> str:
    """The figure that pairs are ordered by."""
    if result.ranking:
        return result.ranking
    thresholds = sorted(result.curve)
    if not thresholds:
        return result.headline[0]
    return result.curve[thresholds[(len(thresholds) - 1) // 2]]


def _pictures(result: Result, pairs: Sequence[PairResult], root: Path) -> tuple[Picture, ...]:
    return tuple(
        _picture(result, pair, pair.drawing, root) for pair in pairs if pair.drawing is not None
    )


def _picture(result: Result, pair: PairResult, drawing: Drawing, root: Path) -> Picture:
    canvas = draw_pair(root / pair.photos[0], root / pair.photos[1], drawing)
    encoded = base64.b64encode(_jpeg(canvas)).decode("ascii")
    ranking = ranking_figure(result)
    headline = [name.removeprefix("median ") for name in result.headline]
    shown = [*([] if ranking in headline else [ranking]), *headline]
    return Picture(
        pair.group,
        pair.photos,
        f"data:image/jpeg;base64,{encoded}",
        canvas.shape[1],
        canvas.shape[0],
        int(drawing.right.sum()),
        len(drawing.right),
        tuple((n, figure_text(result, n, pair.figures[n])) for n in shown if n in pair.figures),
    )


def draw_pair(first: Path, second: Path, drawing: Drawing) -> Canvas:
    """Both photos side by side, H x W x 3, with right matches blue and wrong ones orange.

    Of many matches some are drawn, as large a share of the right ones as of the wrong ones.

    Raises:
        ImageError: a photo cannot be read.
    """
    photos = [np.rint(to_pixels(path)).astype(np.uint8) for path in (first, second)]
    aspects = [photo.shape[1] / photo.shape[0] for photo in photos]
    height = min(_HEIGHT, (_WIDTH - _GAP) / sum(aspects))
    small = [
        np.asarray(resize(p, (max(1, round(height * aspect)), max(1, round(height)))), np.uint8)
        for p, aspect in zip(photos, aspects, strict=True)
    ]
    widths = [photo.shape[1] for photo in small]
    canvas = np.full((small[0].shape[0], sum(widths) + _GAP, 3), 128, np.uint8)
    ends = []
    for photo, reduced, points, left in zip(
        photos,
        small,
        (drawing.points_a, drawing.points_b),
        (0, widths[0] + _GAP),
        strict=True,
    ):
        canvas[:, left : left + reduced.shape[1]] = _muted(reduced)
        smaller = coordinates.resize(photo.shape[1::-1], reduced.shape[1::-1])
        canvas_from_photo = coordinates.crop(-left, 0).after(smaller)
        ends.append(canvas_from_photo(torch.from_numpy(points).double()).numpy())
    _draw_matches(canvas, ends[0], ends[1], drawing.right)
    return canvas


def _draw_matches(
    canvas: Canvas,
    starts: NDArray[np.float64],
    ends: NDArray[np.float64],
    right: NDArray[np.bool_],
) -> None:
    """Lines half transparent and ends opaque; right matches lie above wrong ones."""
    lines = canvas.copy()
    fixed: list[Any] = (
        np.rint(np.stack([starts, ends], 1) * 2**_SUBPIXEL_BITS).astype(np.int32).tolist()
    )
    share = min(1.0, _MAX_LINES / max(len(right), 1))
    shown = {
        colour: _spread(np.flatnonzero(right == kind), starts[:, 1], share)
        for kind, colour in ((False, _WRONG), (True, _RIGHT))
    }
    for colour, rows in shown.items():
        for i in rows:
            start, end = fixed[i]
            cv2.line(lines, start, end, colour, 1, cv2.LINE_AA, shift=_SUBPIXEL_BITS)
    cv2.addWeighted(lines, 0.65, canvas, 0.35, 0, dst=canvas)
    for colour, rows in shown.items():
        for i in rows:
            for end in fixed[i]:
                cv2.line(canvas, end, end, colour, 4, cv2.LINE_AA, shift=_SUBPIXEL_BITS)


def _spread(rows: NDArray[np.intp], heights: NDArray[np.float64], share: float) -> NDArray[np.intp]:
    """A share of the rows, at least one, spread evenly over the photo's height."""
    if len(rows) == 0:
        return rows
    by_height = rows[np.argsort(heights[rows], kind="stable")]
    count = max(1, round(share * len(rows)))
    return by_height[np.linspace(0, len(rows) - 1, count).astype(np.intp)]


def _muted(photo: Canvas) -> Canvas:
    """Darker and greyer, so that coloured lines stand out."""
    grey = photo.mean(axis=2, keepdims=True)
    return np.asarray(np.rint(0.75 * (0.6 * grey + 0.4 * photo)), dtype=np.uint8)


def _jpeg(canvas: Canvas) -> bytes:
    """In the best quality that stays below the limit of size."""
    image = Image.fromarray(canvas)
    data = b""
    for quality in (82, 72, 60, 45, 30):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        data = buffer.getvalue()
        if len(data) <= _MAX_BYTES:
            break
    return data
