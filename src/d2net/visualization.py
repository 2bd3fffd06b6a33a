"""Pictures that show at a glance what was found: keypoints on a photo, matches between two."""

from __future__ import annotations

import os
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import cv2
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from d2net.errors import InputError
from d2net.features import Features, Matches
from d2net.geometry import coordinates
from d2net.geometry.coordinates import GridMap
from d2net.io.atomic import replacing
from d2net.io.images import ImageLike, resize, to_pixels
from d2net.matching.verification import check_rows

Canvas: TypeAlias = NDArray[np.uint8]  # H x W x 3 RGB
Colours: TypeAlias = NDArray[np.uint8]  # N x 3 RGB
Values: TypeAlias = NDArray[Any]  # floats of any precision
_Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont
PathLike: TypeAlias = str | os.PathLike[str]

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

# All lengths are in pixels of the picture.
_MAX_WIDTH = 2000
_MIN_HEIGHT, _MAX_HEIGHT = 480, 1200  # of the photos in it
_MIN_SLOT_WIDTH = 480  # room for the caption above a narrow photo
_MAX_ASPECT = 3.0  # a wider photo is shown lower than its neighbour, which would vanish otherwise
_GAP = 8
_FEW_LINES, _MAX_LINES = 150, 300  # more cannot be followed by eye
_RADIUS = 4.0  # of the circle of a keypoint of scale 1
_SUBPIXEL_BITS = 4  # OpenCV draws at sixteenths of a pixel

_BACKGROUND = (24, 24, 24)
_TEXT = (240, 240, 240)


def plot_matches(
    image_a: ImageLike,
    image_b: ImageLike,
    a: Features,
    b: Features,
    matches: Matches,
    *,
    upright: bool = True,
    output: PathLike | None = None,
) -> Image.Image:
    """Both photos side by side with their matches.

    A match has the colour of its height in the first photo, so that neighbours look alike and one
    that goes astray stands out. After verification inliers are coloured and outliers faint and
    white; without it all matches are coloured. Of many matches all ends and some lines are drawn.
    The photos get the same height, and the picture is about 2000 pixels wide at most.

    Args:
        image_a: the first photo, in any form that `to_pixels` takes.
        image_b: the second photo.
        a: features of the first photo.
        b: features of the second photo.
        matches: pairs of rows of `a` and `b`.
        upright: whether the features are those of the upright photos, or of the photos as stored.
        output: where to write the picture as well: a .png or .jpg file.

    Returns:
        The picture.

    Raises:
        ImageError: a photo cannot be read.
        InputError: a photo has another size than its features say; matches of other features; an
            unknown extension.
        OutputError: the picture cannot be written.
    """
    path = picture_path(output)
    check_rows(matches, a, b)
    picture = _Picture([_photo(image_a, a, upright), _photo(image_b, b, upright)])
    rows_a, rows_b = matches.indices.cpu().unbind(1)
    ends_a = picture.slots[0].locate(a.keypoints.cpu()[rows_a])
    ends_b = picture.slots[1].locate(b.keypoints.cpu()[rows_b])
    marks = torch.ones(len(matches), dtype=torch.bool)
    if matches.inliers is not None:
        marks = matches.inliers.cpu()
    heights = a.keypoints.cpu()[rows_a, 1].numpy() / a.image_size[1]
    outliers, inliers = (np.flatnonzero(mask) for mask in (~marks.numpy(), marks.numpy()))

    shown = _spread(outliers, heights)
    white = np.full((len(shown), 3), 255, np.uint8)
    picture.draw_lines(ends_a[shown], ends_b[shown], white, opacity=0.2, outlined=False)
    shown = _spread(inliers, heights)
    few = len(inliers) <= _FEW_LINES
    colours = _rainbow(heights)
    picture.draw_lines(
        ends_a[shown], ends_b[shown], colours[shown], opacity=0.9 if few else 0.6, outlined=few
    )
    for ends in (ends_a, ends_b):
        picture.draw_dots(ends[inliers], colours[inliers], width=7 if few else 5)

    for slot, image, features in zip(picture.slots, (image_a, image_b), (a, b), strict=True):
        picture.write(0, f"{len(features):,} keypoints", slot, name=_name(image))
    notes = [_summary(matches)]
    if len(outliers) and len(inliers):
        notes.append("outliers white")
    if len(shown) < len(inliers):
        notes.append(f"{len(shown)} lines drawn")
    picture.write(1, "; ".join(notes))
    return picture.finish(path)


def plot_keypoints(
    image: ImageLike,
    features: Features,
    *,
    score_map: ArrayLike | Tensor | None = None,
    upright: bool = True,
    output: PathLike | None = None,
) -> Image.Image:
    """A photo with its keypoints, and beside it the score map if one is given.

    A circle has the size of its keypoint's scale and the colour of its score.

    Args:
        image: the photo, in any form that `to_pixels` takes.
        features: its features.
        score_map: h x w scores of a dense map, which is stretched over the photo.
        upright: whether the features are those of the upright photo, or of the photo as stored.
        output: where to write the picture as well: a .png or .jpg file.

    Returns:
        The picture.

    Raises:
        ImageError: the photo cannot be read.
        InputError: the photo has another size than its features say; a score map that is not
            h x w; an unknown extension.
        OutputError: the picture cannot be written.
    """
    path = picture_path(output)
    photo = _photo(image, features, upright)
    heat = None if score_map is None else _heat_values(score_map)
    picture = _Picture([photo] if heat is None else [photo, photo])
    best_last = features.scores.cpu().argsort()
    scores = features.scores.cpu()[best_last].numpy()
    scale = _ColourScale.of(scores, cv2.COLORMAP_PLASMA, darkest=90)
    picture.draw_circles(
        picture.slots[0].locate(features.keypoints.cpu()[best_last]),
        _RADIUS * features.scales.cpu()[best_last].numpy(),
        scale.colours(scores),
    )
    picture.write(0, f"{len(features):,} keypoints", picture.slots[0], name=_name(image))
    if len(features):
        picture.write_scale(1, "circle: scale, colour: score", scale, picture.slots[0])
    if heat is not None:
        heat_scale = _ColourScale.of(heat, cv2.COLORMAP_INFERNO)
        picture.overlay(picture.slots[1], heat_scale.colours(heat))
        picture.write(0, "score map", picture.slots[1])
        picture.write_scale(1, "score", heat_scale, picture.slots[1])
    return picture.finish(path)


# --- The picture: photos side by side below a caption of two rows ----------------------------


@dataclass(frozen=True)
class _Slot:
    """The place of one photo in the picture: `left` and `width` include margins of narrow ones."""

    left: int
    width: int
    box: tuple[slice, slice]  # rows and columns of the canvas that hold the photo
    canvas_from_photo: GridMap

    @classmethod
    def centred(cls, photo: Canvas, small: Canvas, left: int, width: int, rows: int) -> _Slot:
        """The slot at `left` with the photo, made `small`, in its middle."""
        height, columns = small.shape[:2]
        x, y = left + (width - columns) // 2, (rows - height) // 2
        small_from_photo = coordinates.resize(photo.shape[1::-1], (columns, height))
        return cls(
            left,
            width,
            (slice(y, y + height), slice(x, x + columns)),
            coordinates.crop(-x, -y).after(small_from_photo),
        )

    def locate(self, keypoints: Tensor) -> Values:
        """N x 2 places on the canvas of N x 2 keypoints."""
        places: Values = self.canvas_from_photo(keypoints.double()).numpy()
        return places


class _Picture:
    """Photos side by side, each in a slot, with a caption of two rows above them.

    `canvas` holds the photos; places on it do not count the caption.
    """

    def __init__(self, photos: list[Canvas]) -> None:
        aspects = [min(photo.shape[1] / photo.shape[0], _MAX_ASPECT) for photo in photos]
        widest = _MAX_WIDTH - _GAP * (len(photos) - 1)
        height = min(max(_MIN_HEIGHT, *(len(photo) for photo in photos)), _MAX_HEIGHT)
        height = min(height, widest / sum(aspects))
        reduced = [
            _reduced(photo, height, height * aspect)
            for photo, aspect in zip(photos, aspects, strict=True)
        ]
        rows = max(len(photo) for photo in reduced)
        self.slots: list[_Slot] = []
        left = 0
        for photo, small in zip(photos, reduced, strict=True):
            width = max(small.shape[1], _MIN_SLOT_WIDTH)
            self.slots.append(_Slot.centred(photo, small, left, width, rows))
            left += width + _GAP
        self.canvas: Canvas = np.full((rows, left - _GAP, 3), _BACKGROUND, np.uint8)
        for slot, small in zip(self.slots, reduced, strict=True):
            self.canvas[slot.box] = _muted(small)
        size: float = min(max(self.canvas.shape[1] / 64, 16), 32)
        self._font = ImageFont.load_default(size)
        self._row = round(1.6 * size)
        self._caption = Image.new("RGB", (self.canvas.shape[1], 2 * self._row + _GAP), _BACKGROUND)
        self._pen = ImageDraw.Draw(self._caption)

    def draw_lines(
        self, starts: Values, ends: Values, colours: Colours, *, opacity: float, outlined: bool
    ) -> None:
        """Draw lines between N x 2 places, all of them together at one opacity."""
        drawn = self.canvas.copy()
        widths = ((4, (0, 0, 0)), (2, None)) if outlined else ((1, None),)
        for start, end, colour in zip(_fixed(starts), _fixed(ends), colours.tolist(), strict=True):
            for width, own in widths:
                cv2.line(drawn, start, end, own or colour, width, cv2.LINE_AA, shift=_SUBPIXEL_BITS)
        cv2.addWeighted(drawn, opacity, self.canvas, 1 - opacity, 0, dst=self.canvas)

    def draw_dots(self, places: Values, colours: Colours, *, width: int) -> None:
        """Draw a round dot with a dark rim at each of N x 2 places."""
        for place, colour in zip(_fixed(places), colours.tolist(), strict=True):
            for paint, size in (((0, 0, 0), width + 2), (colour, width)):
                # A line of no length: OpenCV draws circles this small as diamonds.
                cv2.line(self.canvas, place, place, paint, size, cv2.LINE_AA, shift=_SUBPIXEL_BITS)

    def draw_circles(self, places: Values, radii: Values, colours: Colours) -> None:
        """Draw a circle around each of N x 2 places."""
        for place, radius, colour in zip(
            _fixed(places), _fixed(radii), colours.tolist(), strict=True
        ):
            cv2.circle(self.canvas, place, radius, colour, 1, cv2.LINE_AA, shift=_SUBPIXEL_BITS)

    def overlay(self, slot: _Slot, colours: Colours) -> None:
        """Lay an h x w x 3 picture over the photo of a slot, which shows through."""
        photo = self.canvas[slot.box]
        layer = cv2.resize(colours, photo.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        self.canvas[slot.box] = cv2.addWeighted(photo, 0.35, layer, 0.65, 0)

    def write(self, row: int, text: str, slot: _Slot | None = None, name: str = "") -> None:
        """Write into a row of the caption, above a slot or from the left end.

        A name goes before the text and is shortened where both do not fit.
        """
        left, width = (slot.left, slot.width) if slot else (0, self.canvas.shape[1])
        if name:
            space = width - 2 * _GAP - self._font.getlength("   " + text)
            text = f"{_shortened(_printable(name), self._font, space)}   {text}"
        self._pen.text((left + _GAP, self._middle(row)), text, _TEXT, self._font, anchor="lm")

    def write_scale(self, row: int, text: str, scale: _ColourScale, slot: _Slot) -> None:
        """Write what the colours mean: text, lowest value, bar of colours, highest value."""
        y = self._middle(row)
        lowest = f"{text}  {_short(scale.low)}"
        bar_left = slot.left + _GAP + round(self._font.getlength(lowest)) + _GAP
        bar_width, bar_height = 6 * self._row, self._row // 3
        bar = scale.colours(np.linspace(scale.low, scale.high, bar_width))[None]
        strip = Image.fromarray(np.repeat(bar, bar_height, axis=0))
        self._caption.paste(strip, (bar_left, round(y - bar_height / 2)))
        for left, value in (
            (slot.left + _GAP, lowest),
            (bar_left + bar_width + _GAP, _short(scale.high)),
        ):
            self._pen.text((left, y), value, _TEXT, self._font, anchor="lm")

    def _middle(self, row: int) -> float:
        return _GAP / 2 + (row + 0.5) * self._row

    def finish(self, path: Path | None) -> Image.Image:
        """The caption and below it the photos, written to `path` if there is one."""
        whole = Image.fromarray(np.concatenate([np.asarray(self._caption), self.canvas]))
        if path is not None:
            with replacing(path) as temporary:
                whole.save(temporary, format=_FORMATS[path.suffix.lower()], quality=92)
        return whole


def _reduced(photo: Canvas, height: float, width: float) -> Canvas:
    """The photo made to fit into height and width."""
    factor = min(height / photo.shape[0], width / photo.shape[1])
    rows, columns = (max(1, round(factor * edge)) for edge in photo.shape[:2])
    return np.asarray(resize(photo, (columns, rows)), dtype=np.uint8)


def _muted(photo: Canvas) -> Canvas:
    """Darker and nearly grey, so that coloured marks stand out on any photo."""
    grey = photo.mean(axis=2, keepdims=True)
    muted: Canvas = np.rint(0.7 * (0.75 * grey + 0.25 * photo)).astype(np.uint8)
    return muted


def _fixed(values: Values) -> list[Any]:
    """Lengths as OpenCV draws them at parts of a pixel."""
    fixed: list[Any] = np.rint(values * 2**_SUBPIXEL_BITS).astype(np.int32).tolist()
    return fixed


def _printable(name: str) -> str:
    """The name in the letters of pillow's own font, which are ASCII's; others become "?"."""
    letters = (c for c in unicodedata.normalize("NFKD", name) if not unicodedata.combining(c))
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in letters)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _shortened(name: str, font: _Font, width: float) -> str:
    """The end of the name, where photos of one series differ, as far as it fits."""
    if font.getlength(name) <= width:
        return name
    while name and font.getlength("…" + name) > width:
        name = name[1:]
    return "…" + name


# --- Colours ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class _ColourScale:
    """Colours for values between low and high; beyond them the colours of the ends."""

    low: float
    high: float
    colour_map: int
    darkest: int = 0  # entry of the colour map's 256 for the lowest value

    @classmethod
    def of(cls, values: Values, colour_map: int, darkest: int = 0) -> _ColourScale:
        """A scale that ignores the extreme hundredth of the values at either end."""
        low, high = np.quantile(values, [0.01, 0.99]) if values.size else (0.0, 0.0)
        high = high if high > low else low + 1
        return cls(float(low), float(high), colour_map, darkest)

    def colours(self, values: Values) -> NDArray[np.uint8]:
        """... x 3 RGB for values of one or two dimensions."""
        fraction = (np.clip(values, self.low, self.high) - self.low) / (self.high - self.low)
        levels = np.rint(self.darkest + (255 - self.darkest) * fraction).astype(np.uint8)
        return _palette(self.colour_map)[levels]


def _palette(colour_map: int) -> Colours:
    """The 256 colours of one of OpenCV's colour maps."""
    bgr = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], colour_map)
    return np.ascontiguousarray(bgr[:, 0, ::-1])


def _rainbow(fractions: Values) -> Colours:
    """N x 3 bright colours from red (0) over green to violet (1)."""
    hue = np.arange(256, dtype=np.uint8)
    hsv = np.stack([hue, np.full_like(hue, 180), np.full_like(hue, 255)], axis=1)
    palette = cv2.cvtColor(hsv[None], cv2.COLOR_HSV2RGB_FULL)[0]
    colours: Colours = palette[np.rint(215 * np.clip(fractions, 0, 1)).astype(np.intp)]
    return colours


# --- Small helpers ---------------------------------------------------------------------------


def _spread(rows: NDArray[np.intp], heights: Values) -> NDArray[np.intp]:
    """At most so many rows as can be followed by eye, spread evenly over the photo's height."""
    if len(rows) <= _MAX_LINES:
        return rows
    by_height = rows[np.argsort(heights[rows], kind="stable")]
    return by_height[np.linspace(0, len(rows) - 1, _MAX_LINES).astype(np.intp)]


def _summary(matches: Matches) -> str:
    total = f"{len(matches):,} match{'' if len(matches) == 1 else 'es'}"
    if matches.inliers is None:
        return total
    if matches.model is None:  # marked by something other than a fitted model, as known truth
        return f"{matches.num_inliers:,} right of {total}"
    if matches.model == "pose":
        return f"{matches.num_inliers:,} of {total} agree with the pose"
    model = f"{matches.model} matrix" if matches.model != "homography" else "homography"
    if matches.matrix is None:
        return f"no {model} fits the {total}"
    share = matches.num_inliers / len(matches)
    return f"{matches.num_inliers:,} inliers of {total} ({share:.0%}), {model}"


def _photo(image: ImageLike, features: Features, upright: bool) -> Canvas:
    """The pixels in 8 bits, in the orientation that the features were found in."""
    pixels = to_pixels(image, upright=upright)
    if pixels.shape[1::-1] != tuple(features.image_size):
        width, height = features.image_size
        raise InputError(
            f"the features are of a photo of {width} x {height} pixels, but {_name(image)} has "
            f"{pixels.shape[1]} x {pixels.shape[0]}"
        )
    return np.rint(pixels).astype(np.uint8)


def _name(image: ImageLike) -> str:
    if isinstance(image, Image.Image):
        image = getattr(image, "filename", "")
    return Path(image).name if isinstance(image, (str, os.PathLike)) and image else "the photo"


def _heat_values(score_map: ArrayLike | Tensor) -> Values:
    if isinstance(score_map, Tensor):
        score_map = score_map.detach().float().cpu().numpy()
    values = np.asarray(score_map, dtype=np.float32)
    if values.ndim != 2 or values.size == 0 or not np.isfinite(values).all():
        raise InputError(
            f"a score map must be h x w finite numbers; this one has shape {values.shape}"
        )
    return values


def picture_path(output: PathLike | None) -> Path | None:
    """The path of a picture to be written, if its extension is known: to ask before the work.

    Raises:
        InputError: the extension is none of .png, .jpg, .jpeg.
    """
    if output is None:
        return None
    path = Path(output)
    if path.suffix.lower() not in _FORMATS:
        raise InputError(
            f"a picture can be written as {', '.join(_FORMATS)}, not as {path.name!r}; choose "
            "one of these extensions"
        )
    return path
