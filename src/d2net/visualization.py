"""Pictures of keypoints on a photo and of matches between two photos."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.geometry import coordinates
from d2net.geometry.coordinates import GridMap
from d2net.geometry.significance import VERDICT_TEXT
from d2net.io.arrays import evenly_spaced
from d2net.io.drawn_pictures import check_replaceable, write_picture
from d2net.io.images import ImageLike, for_screen, resize, to_pixels
from d2net.matching.verification import check_rows
from d2net.wording import count

Canvas: TypeAlias = NDArray[np.uint8]  # H x W x 3 RGB
Colours: TypeAlias = NDArray[np.uint8]  # N x 3 RGB
Values: TypeAlias = NDArray[Any]  # floats of any precision
PathLike: TypeAlias = str | os.PathLike[str]

_EXTENSIONS = (".png", ".jpg", ".jpeg")

MAX_LINES = 100  # the eye cannot follow many more

# All lengths are in pixels of the picture.
_MAX_WIDTH = 2000
_MIN_HEIGHT, _MAX_HEIGHT = 480, 1200  # of a photo
_MIN_COLUMN = 480  # leaves room for the caption above a narrow photo
_MAX_ASPECT = 3.0  # a wider photo is shown lower, so that its neighbour stays visible
_GAP = 8
_DOT = 3  # diameter of a matched point
_RADIUS = 2.5  # of the circle of a keypoint of scale 1
_SUBPIXEL_BITS = 4  # OpenCV draws at sixteenths of a pixel

_FRAME = 3  # cells at the border of a score map that the network's zero padding distorts

_BACKGROUND = (24, 24, 24)
_TEXT = (240, 240, 240)
_RIGHT, _WRONG = (47, 155, 255), (255, 106, 31)  # distinct for colour-blind people, too


def plot_matches(
    image_a: ImageLike,
    image_b: ImageLike,
    a: Features,
    b: Features,
    matches: Matches,
    *,
    lines: int = MAX_LINES,
    upright: bool = True,
    output: PathLike | None = None,
) -> Image.Image:
    """Both photos side by side with their matches.

    The colour of a match shows its confidence, if the matcher gives one. Otherwise it follows its
    height in the first photo, so that neighbours look alike and a wrong match stands out. After
    verification, inliers are coloured and outliers are faint white lines; without verification, all
    matches are coloured. All are faint if there is no evidence that the photos show the same place.
    Both photos get the same height, and the picture is at most about 2000 pixels wide.

    Args:
        image_a: the first photo, in any form that `to_pixels` takes.
        image_b: the second photo.
        a: features of the first photo.
        b: features of the second photo.
        matches: pairs of rows of `a` and `b`.
        lines: the largest number of lines to draw, those of inliers first. The lines are spread
            evenly over the height of the first photo. All coloured matches get dots at both ends.
        upright: whether the features are from the upright photos, or from the photos as stored.
        output: a .png or .jpg file to write the picture to.

    Raises:
        ImageError: a photo cannot be read.
        InputError: a photo has another size than its features, the matches belong to other
            features, `lines` is negative, or the file extension is unknown.
        OutputError: the picture cannot be written, or would replace a photo.
    """
    path = picture_path(output)
    if lines < 0:
        raise InputError(f"lines must be 0 or more, not {lines}")
    check_rows(matches, a, b)
    photos = [_photo(image_a, a, upright), _photo(image_b, b, upright)]
    picture = _Picture(photos, caption_rows=2 if matches.confidence is None else 3)
    points = matches.points(a, b)
    ends_a, ends_b = (
        column.canvas_from_photo(p) for column, p in zip(picture.columns, points, strict=True)
    )
    heights = points[0][:, 1] / a.image_size[1]
    colours = np.full((len(matches), 3), 255, np.uint8)
    mask = np.full(len(matches), matches.verdict != "none")
    if matches.inliers is not None:
        mask &= matches.inliers.cpu().numpy()
    if matches.confidence is not None:
        # From 0 to 1 in every picture.
        scale = _ColourScale(np.repeat([0.0, 1.0], 100), cv2.COLORMAP_PLASMA, darkest=90)
        colours[mask] = scale.colours(matches.confidence.cpu().numpy())[mask]
        picture.write_scale("colour: probability that a match is right", scale, row=2)
    else:
        colours[mask] = _colours_by_height(heights[mask])

    inliers = np.flatnonzero(mask)
    lined = _spread(inliers, heights, lines)
    outliers = _spread(np.flatnonzero(~mask), heights, lines - len(lined))
    for rows, opacity in ((outliers, 0.25), (lined, 0.8)):
        picture.draw_lines(ends_a[rows], ends_b[rows], colours[rows], opacity)
    for ends in (ends_a, ends_b):
        picture.draw_dots(ends[inliers], colours[inliers])

    for column, image, features in zip(picture.columns, (image_a, image_b), (a, b), strict=True):
        picture.write(0, f"{len(features):,} keypoints", column, name=_name(image))
    notes = [_summary(matches)]
    if len(outliers) and len(inliers):
        notes.append("outliers white")
    if len(lined) + len(outliers) < len(matches):
        notes.append(f"{len(lined) + len(outliers)} lines drawn")
    picture.write(1, "; ".join(notes))
    return picture.finish(path)


def plot_points(
    images: tuple[ImageLike, ImageLike],
    points: tuple[Values, Values],
    right: NDArray[np.bool_] | None = None,
    *,
    lines: int = MAX_LINES,
    max_width: int = _MAX_WIDTH,
    names: Sequence[str] = (),
) -> Image.Image:
    """Two photos side by side with lines between their points, N x 2 in each photo.

    If it is known which lines are right, those are blue and the others orange, and the same share
    of both is drawn. Otherwise the colour follows the height in the first photo, and all points get
    dots. The names stand above the photos.
    """
    photos = [for_screen(to_pixels(image)) for image in images]
    picture = _Picture(photos, caption_rows=1 if names else 0, max_width=max_width)
    starts, ends = (
        column.canvas_from_photo(p) for column, p in zip(picture.columns, points, strict=True)
    )
    heights = points[0][:, 1] / len(photos[0])
    if right is None:
        colours, kinds = _colours_by_height(heights), [np.full(len(heights), True)]
    else:
        colours = np.where(right[:, None], _RIGHT, _WRONG).astype(np.uint8)
        kinds = [~right, right]
    for kind in kinds:
        rows = np.flatnonzero(kind)
        lined = _spread(rows, heights, round(len(rows) * min(1, lines / max(len(heights), 1))))
        picture.draw_lines(starts[lined], ends[lined], colours[lined], 0.8)
        dotted = rows if right is None else lined
        for at in (starts, ends):
            picture.draw_dots(at[dotted], colours[dotted])
    for name, column in zip(names, picture.columns, strict=False):
        picture.write(0, "", column, name=name)
    return picture.finish(None)


def _colours_by_height(heights: Values) -> Colours:
    """Colours from red for 0, the top of a photo, to violet for 1."""
    if not len(heights):  # OpenCV refuses empty arrays
        return np.empty((0, 3), np.uint8)
    hues = np.rint(215 * np.clip(heights, 0, 1)).astype(np.uint8)
    hsv = np.stack([hues, np.full_like(hues, 180), np.full_like(hues, 255)], axis=1)
    return np.asarray(cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB_FULL)[0], np.uint8)


def _spread(rows: NDArray[np.intp], heights: Values, max_count: int) -> NDArray[np.intp]:
    """At most `max_count` of the rows, evenly spread over the heights."""
    by_height = rows[np.argsort(heights[rows], kind="stable")]
    return by_height[evenly_spaced(len(rows), max_count)]


def plot_keypoints(
    image: ImageLike,
    features: Features,
    *,
    score_map: ArrayLike | Tensor | None = None,
    upright: bool = True,
    output: PathLike | None = None,
) -> Image.Image:
    """A photo with its keypoints and, if a score map is given, the map over the photo beside it.

    The radius of a circle shows the scale of its keypoint, the colour shows its score. The score
    map is h x w, see `D2Net.score_map`. It is stretched over the photo, without a frame of three
    cells, which the network's zero padding distorts. See `plot_matches` for the rest.
    """
    path = picture_path(output)
    photo = _photo(image, features, upright)
    picture = _Picture([photo] if score_map is None else [photo, photo])
    left = picture.columns[0]
    best_last = features[features.scores.argsort()].numpy()
    scale = _ColourScale(best_last["scores"], cv2.COLORMAP_PLASMA, darkest=90)
    picture.draw_circles(
        left.canvas_from_photo(best_last["keypoints"]),
        _RADIUS * best_last["scales"],
        scale.colours(best_last["scores"]),
    )
    picture.write(0, f"{len(features):,} keypoints", left, name=_name(image))
    if len(features):
        picture.write_scale("colour: score, radius: scale", scale, left)
    if score_map is not None:
        if isinstance(score_map, Tensor):
            score_map = score_map.detach().float().cpu().numpy()
        heat = np.asarray(score_map, dtype=np.float32)
        if heat.ndim != 2 or heat.size == 0 or not (np.isfinite(heat) & (heat >= 0)).all():
            raise InputError(
                f"a score map must be h x w finite numbers from 0; this one has shape {heat.shape}"
            )
        heat = heat / (float(heat.mean()) or 1.0)
        right = picture.columns[1]
        frame = _FRAME if min(heat.shape) > 4 * _FRAME else 0
        inner = slice(frame, -frame or None)
        scale = _ColourScale(heat[inner, inner], cv2.COLORMAP_INFERNO)
        picture.overlay(right, scale.colours(heat), frame)
        picture.write(0, "soft detection map", right)
        picture.write_scale("score relative to the mean", scale, right)
    return picture.finish(path)


@dataclass(frozen=True)
class _Column:
    """One photo in the picture. `left` and `width` include the margins of a narrow photo."""

    left: int
    width: int
    box: tuple[slice, slice]  # rows and columns of the canvas that the photo covers
    canvas_from_photo: GridMap


class _Picture:
    """Photos side by side (`canvas`), with a caption above them."""

    def __init__(
        self, photos: list[Canvas], caption_rows: int = 2, max_width: int = _MAX_WIDTH
    ) -> None:
        aspects = [min(photo.shape[1] / photo.shape[0], _MAX_ASPECT) for photo in photos]
        height: float = min(max(_MIN_HEIGHT, *(len(photo) for photo in photos)), _MAX_HEIGHT)
        height = min(height, (max_width - _GAP * (len(photos) - 1)) / sum(aspects))
        resized = []
        for photo, aspect in zip(photos, aspects, strict=True):
            factor = min(height / photo.shape[0], height * aspect / photo.shape[1])
            rows, columns = (max(1, round(factor * edge)) for edge in photo.shape[:2])
            resized.append(np.asarray(resize(photo, (columns, rows)), np.uint8))
        min_width = _MIN_COLUMN if caption_rows else 0
        widths = [max(small.shape[1], min_width) for small in resized]
        rows = max(len(small) for small in resized)
        shape = rows, sum(widths) + _GAP * (len(photos) - 1), 3
        self.canvas: Canvas = np.full(shape, _BACKGROUND, np.uint8)
        self.columns: list[_Column] = []
        left = 0
        for photo, small, width in zip(photos, resized, widths, strict=True):
            x, y = left + (width - small.shape[1]) // 2, (rows - len(small)) // 2
            box = slice(y, y + len(small)), slice(x, x + small.shape[1])
            small_from_photo = coordinates.resize(photo.shape[1::-1], small.shape[1::-1])
            canvas_from_photo = coordinates.crop(-x, -y).after(small_from_photo)
            self.columns.append(_Column(left, width, box, canvas_from_photo))
            self.canvas[box] = small
            left += width + _GAP
        size: float = min(max(self.canvas.shape[1] / 64, 16), 32)
        self._font = ImageFont.load_default(size)
        self._row = round(1.6 * size)
        caption = self.canvas.shape[1], caption_rows * self._row + _GAP
        self._caption = Image.new("RGB", caption, _BACKGROUND)
        self._pen = ImageDraw.Draw(self._caption)

    def draw_lines(self, starts: Values, ends: Values, colours: Colours, opacity: float) -> None:
        """Draw outlined lines between N x 2 points, all of them together at one opacity."""
        drawn = self.canvas.copy()
        for start, end, colour in zip(_fixed(starts), _fixed(ends), colours.tolist(), strict=True):
            for paint, width in (((0, 0, 0), 3), (colour, 1)):
                cv2.line(drawn, start, end, paint, width, cv2.LINE_AA, shift=_SUBPIXEL_BITS)
        cv2.addWeighted(drawn, opacity, self.canvas, 1 - opacity, 0, dst=self.canvas)

    def draw_dots(self, points: Values, colours: Colours) -> None:
        """Draw a round dot with a dark rim at each of N x 2 points."""
        for point, colour in zip(_fixed(points), colours.tolist(), strict=True):
            for paint, width in (((0, 0, 0), _DOT + 2), (colour, _DOT)):
                # A line of no length: OpenCV draws circles this small as diamonds.
                cv2.line(self.canvas, point, point, paint, width, cv2.LINE_AA, shift=_SUBPIXEL_BITS)

    def draw_circles(self, points: Values, radii: Values, colours: Colours) -> None:
        for point, radius, colour in zip(
            _fixed(points), _fixed(radii), colours.tolist(), strict=True
        ):
            cv2.circle(self.canvas, point, radius, colour, 1, cv2.LINE_AA, shift=_SUBPIXEL_BITS)

    def overlay(self, column: _Column, colours: Colours, frame: int) -> None:
        """Lay an h x w x 3 picture without its frame over the photo of a column, transparent."""
        photo = self.canvas[column.box]
        layer = cv2.resize(colours, photo.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        y, x = (round(frame * photo.shape[i] / colours.shape[i]) for i in (0, 1))
        inner = slice(y, photo.shape[0] - y), slice(x, photo.shape[1] - x)
        photo[inner] = cv2.addWeighted(photo[inner], 0.35, layer[inner], 0.65, 0)

    def write(self, row: int, text: str, column: _Column | None = None, name: str = "") -> None:
        """Write into a row of the caption, above a column or from the left end.

        A name goes before the text and is shortened if both do not fit.
        """
        left, width = (column.left, column.width) if column else (0, self.canvas.shape[1])
        if name:
            # Pillow's own font has ASCII only.
            name = "".join(c if c.isascii() and c.isprintable() else "?" for c in name)
            space = width - 2 * _GAP - self._font.getlength("   " + text)
            while self._font.getlength(name) > space and len(name) > 1:
                name = "…" + name.removeprefix("…")[1:]  # names of a series differ at the end
            text = f"{name}   {text}"
        self._text(left + _GAP, row, text)

    def write_scale(
        self, text: str, scale: _ColourScale, column: _Column | None = None, row: int = 1
    ) -> None:
        """Write a legend into a row: text, lowest value, bar of colours, highest value."""
        lowest = f"{text}  {_short(scale.low)}"
        left = (column.left if column else 0) + _GAP
        bar_left = left + round(self._font.getlength(lowest)) + _GAP
        bar_width, bar_height = 5 * self._row, self._row // 3
        bar = scale.colours(np.linspace(scale.low, scale.high, bar_width))[None]
        strip = Image.fromarray(np.repeat(bar, bar_height, axis=0))
        self._caption.paste(strip, (bar_left, round(self._middle(row) - bar_height / 2)))
        self._text(left, row, lowest)
        self._text(bar_left + bar_width + _GAP, row, _short(scale.high))

    def _text(self, left: float, row: int, text: str) -> None:
        self._pen.text((left, self._middle(row)), text, _TEXT, self._font, anchor="lm")

    def _middle(self, row: int) -> float:
        return _GAP / 2 + (row + 0.5) * self._row

    def finish(self, path: Path | None) -> Image.Image:
        """The caption above the photos, written to `path` if it is given."""
        whole = Image.fromarray(np.concatenate([np.asarray(self._caption), self.canvas]))
        if path is not None:
            write_picture(path, whole)
        return whole


class _ColourScale:
    """Colours for values. The extreme hundredth of the values at either end is ignored.

    `darkest` is the entry of OpenCV's colour map (0 to 255) for the lowest value.
    """

    def __init__(self, values: Values, colour_map: int, darkest: int = 0) -> None:
        low, high = np.quantile(values, [0.01, 0.99]) if values.size else (0.0, 0.0)
        self.low, self.high = float(low), float(high if high > low else low + 1)
        bgr = cv2.applyColorMap(np.arange(darkest, 256, dtype=np.uint8)[:, None], colour_map)
        self._palette = np.asarray(bgr[:, 0, ::-1], np.uint8)

    def colours(self, values: Values) -> Colours:
        """... x 3 RGB for values of one or two dimensions."""
        fraction = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        entries = np.rint((len(self._palette) - 1) * fraction).astype(np.intp)
        return np.ascontiguousarray(self._palette[entries])


def _fixed(values: Values) -> list[Any]:
    """Lengths in OpenCV's fixed-point numbers."""
    fixed: list[Any] = np.rint(values * 2**_SUBPIXEL_BITS).astype(np.int32).tolist()
    return fixed


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _summary(matches: Matches) -> str:
    total = count(len(matches), "match")
    if matches.inliers is None:
        return total
    if matches.model == "pose":
        return f"{matches.num_inliers:,} of {total} agree with the pose"
    model = f"{matches.model} matrix" if matches.model != "homography" else "homography"
    if matches.matrix is None:
        return f"no {model} fits the {total}"
    share = matches.num_inliers / len(matches)
    text = f"{matches.num_inliers:,} inliers of {total} ({share:.0%}), {model}"
    return text if matches.verdict is None else f"{VERDICT_TEXT[matches.verdict]}: {text}"


def _photo(image: ImageLike, features: Features, upright: bool) -> Canvas:
    """The photo in 8 bits, in the orientation of its features."""
    pixels = to_pixels(image, upright=upright)
    if pixels.shape[1::-1] != tuple(features.image_size):
        width, height = features.image_size
        raise InputError(
            f"the features are from a photo of {width} x {height} pixels, but {_name(image)} has "
            f"{pixels.shape[1]} x {pixels.shape[0]}"
        )
    return for_screen(pixels)


def _name(image: ImageLike) -> str:
    if isinstance(image, Image.Image):
        image = getattr(image, "filename", "")
    return Path(image).name if isinstance(image, (str, os.PathLike)) and image else "the photo"


def picture_path(output: PathLike | None) -> Path | None:
    """The path of a picture; an error if it would replace a photo. Call this before long work."""
    if output is None:
        return None
    path = Path(output)
    if path.suffix.lower() not in _EXTENSIONS:
        raise InputError(
            f"a picture must be {', '.join(_EXTENSIONS)}, not {path.name!r}; change the extension"
        )
    check_replaceable(path)
    return path
