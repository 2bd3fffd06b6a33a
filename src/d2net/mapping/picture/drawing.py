"""A still picture of a map: points and cameras obliquely and from above, with a caption.

Points are drawn as discs from far to near. Each disc has a dark rim that lies a little behind it.
On a surface the neighbouring discs cover the rims, and where the surface ends the rims outline it.
So bright points stay visible on white paper.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial import cKDTree

from d2net.mapping.cloud import Array, Cloud
from d2net.mapping.picture.viewpoint import Look, from_above, oblique

Canvas = NDArray[np.uint8]

MAX_POINTS = 200_000  # of larger clouds, the points with the longest tracks are drawn
CAMERA_COLOUR = (0, 90, 255)  # rare in photos, and dark enough for print

# In pixels of the picture.
_MAIN_SIZE, _ABOVE_SIZE = (1200, 900), (600, 560)
_GAP = 16
_TEXT_SIZE = 25
_MAX_LETTERS = 48  # of a line of the caption
_LINE_WIDTH = 1.2

TAN_HALF_FOV = 0.25 * np.array([1, _MAIN_SIZE[1] / _MAIN_SIZE[0]])
_TAN_ABOVE = 0.002 * np.array([1, _ABOVE_SIZE[1] / _ABOVE_SIZE[0]])  # nearly parallel, as a plan
_MARGIN = 0.92  # share of the picture that the frame fills
_INK, _QUIET, _LINE = (28, 30, 33), (91, 97, 104), (217, 220, 224)

_SUPERSAMPLING = 2
_RIM_BRIGHTNESS = 0.45
_RIM_DEPTH = 1.01  # over the depth of the disc
_MIN_DEPTH = 0.15  # over the distance to the target; nearer points would cover everything
_RADIUS_LIMITS = (0.6, 1.8)  # of a disc's radius over that of a disc at the target
_HIDDEN_OPACITY = 0.3  # of the parts of cameras that points hide

_ISOLATED = 6  # times the median gap between points; points so isolated are mostly wrong
_MIN_RADIUS, _MAX_RADIUS = 0.002, 0.0085  # of a point, over half the picture's width
_CAMERA_LENGTH = 0.12  # over half the picture's width
_MANY_CAMERAS = 60  # from about this number on, cameras are drawn smaller
_SPACING_SAMPLES = 200  # cameras from which the median spacing is computed


def kept_points(cloud: Cloud) -> NDArray[np.int64]:
    """Rows of the points that are drawn, sorted: no far ones, and at most `MAX_POINTS`.

    A single far point would cost all others their precision in the page's 16-bit positions.
    """
    if not len(cloud.points):
        return np.zeros(0, np.int64)
    low, high = np.quantile(cloud.points, [0.05, 0.95], axis=0)
    reach = 3.0 * max(float((high - low).max()), 1e-12)
    near = ((cloud.points >= low - reach) & (cloud.points <= high + reach)).all(axis=1)
    rows = np.flatnonzero(near)
    longest = rows[np.argsort(-cloud.track_lengths[rows], kind="stable")[:MAX_POINTS]]
    return np.sort(longest)


def point_radii(cloud: Cloud, half_width: float) -> Array:
    """N radii in the world's unit: dense points form surfaces, and isolated points are small.

    Args:
        cloud: the points.
        half_width: half the width of the visible part of the world.
    """
    number, gaps = len(cloud.points), cloud.gaps
    if not len(gaps):
        return np.full(number, _MAX_RADIUS * half_width)
    median = float(np.median(gaps))
    radius = max(0.5 * median, 0.38 * half_width / number**0.5)
    radius = float(np.clip(radius, _MIN_RADIUS * half_width, _MAX_RADIUS * half_width))
    return np.where(gaps > _ISOLATED * median, 0.5 * radius, radius)


def frustums(cloud: Cloud, half_width: float) -> Array:
    """M x 5 x 3 in the world: the centre of each camera, and the corners of its photo in order."""
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    centres = cloud.centres
    length = _CAMERA_LENGTH * half_width / (1 + len(centres) / _MANY_CAMERAS) ** 0.5
    if len(centres) > 1:  # also small beside the spacing of the cameras
        some = centres[:: -(-len(centres) // _SPACING_SAMPLES)]
        spacing = float(np.median(np.asarray(cKDTree(centres).query(some, 2)[0])[:, 1]))
        length = min(max(0.8 * spacing, 0.4 * length), length)
    shapes = np.zeros((len(centres), 5, 3))
    for shape, photo in zip(shapes, cloud.photos, strict=True):
        corners = np.concatenate([signs * photo.tan_half_fov, np.ones((4, 1))], axis=1)
        # Cameras with long lenses would be spikes, so all get nearly the same size instead.
        corners *= length / max(1.2 * float(np.linalg.norm(photo.tan_half_fov)), 0.6)
        shape[:] = photo.centre
        shape[1:] += corners @ photo.world_from_cam.T
    return shapes


def draw_oblique(cloud: Cloud) -> Canvas:
    """The oblique view, H x W x 3."""
    return _draw(cloud, oblique(cloud, TAN_HALF_FOV), _MAIN_SIZE, TAN_HALF_FOV)


def draw_picture(cloud: Cloud, main: Canvas, lines: Sequence[str]) -> Image.Image:
    """The whole picture: oblique view, view from above, and caption.

    Args:
        cloud: points with colours, and cameras.
        main: the oblique view.
        lines: of the caption.
    """
    above = _draw(cloud, from_above(cloud, _TAN_ABOVE), _ABOVE_SIZE, _TAN_ABOVE)
    left = _MAIN_SIZE[0] + 2 * _GAP
    size = (left + _ABOVE_SIZE[0] + _GAP, _MAIN_SIZE[1] + 2 * _GAP)
    picture = Image.new("RGB", size, "white")
    pen = ImageDraw.Draw(picture)
    picture.paste(Image.fromarray(main), (_GAP, _GAP))
    picture.paste(Image.fromarray(above), (left, _GAP))
    border = (left, _GAP, left + _ABOVE_SIZE[0] - 1, _GAP + _ABOVE_SIZE[1] - 1)
    pen.rectangle(border, outline=_LINE)
    font = ImageFont.load_default(_TEXT_SIZE)
    small = ImageFont.load_default(0.8 * _TEXT_SIZE)
    label_at = (left + _GAP, 2 * _GAP)
    x0, y0, x1, y1 = pen.textbbox(label_at, "from above", small)
    pen.rectangle((x0 - 6, y0 - 6, x1 + 6, y1 + 6), fill="white")
    pen.text(label_at, "from above", _QUIET, small)
    top = 3.0 * _GAP + _ABOVE_SIZE[1]
    note = "Each blue pyramid is a camera; it opens in the direction of view."
    for texts, own, ink in ((lines, font, _INK), ([note], small, _QUIET)):
        for row in (row for text in texts for row in textwrap.wrap(text, _MAX_LETTERS)):
            pen.text((left, top), row, ink, own)
            top += 1.45 * _TEXT_SIZE
    return picture


def _draw(cloud: Cloud, look: Look, size: tuple[int, int], tan_half_fov: Array) -> Canvas:
    """A view of points and cameras."""
    distance = look.distance(_MARGIN * tan_half_fov)
    half_width = float(look.extent.max())
    focal = size[0] / 2 / tan_half_fov[0]

    def project(points: Array) -> tuple[Array, Array]:
        """Pixels of the picture, and depths over the distance to the target."""
        seen = (points - look.target) @ look.view_from_world.T
        depth = seen[..., 2] + distance
        with np.errstate(divide="ignore", invalid="ignore"):
            pixels = focal * seen[..., :2] / depth[..., None]
        return pixels + (np.array(size) - 1) / 2, depth / distance

    rows = kept_points(cloud)
    pixels, depth = project(cloud.points[rows])
    reach = 2 * sum(size)
    visible = (depth > _MIN_DEPTH) & (np.abs(pixels) < reach).all(axis=1)
    rows, pixels, depth = rows[visible], pixels[visible], depth[visible]
    radii = point_radii(cloud, half_width)[rows] * focal / distance
    radii = np.maximum(radii * np.clip(1 / depth, *_RADIUS_LIMITS), 0.5)
    shapes, shape_depth = project(frustums(cloud, half_width))
    drawable = (shape_depth > _MIN_DEPTH).all(axis=1) & (np.abs(shapes) < reach).all(axis=(1, 2))
    shapes, shape_depth = shapes[drawable], shape_depth[drawable].mean(axis=1)

    image = np.full((size[1] * _SUPERSAMPLING, size[0] * _SUPERSAMPLING, 3), 255, np.uint8)
    centres, widths = (
        _samples(pixels).tolist(),
        np.rint(radii * _SUPERSAMPLING).astype(int).tolist(),
    )
    colours = cloud.colours[rows].tolist()
    rims = (_RIM_BRIGHTNESS * cloud.colours[rows]).astype(int).tolist()
    frames = _samples(shapes)
    n = len(rows)
    order = np.argsort(-np.concatenate([depth, _RIM_DEPTH * depth, shape_depth]), kind="stable")
    for item in order.tolist():
        if item < n:
            cv2.circle(image, centres[item], widths[item], colours[item], -1)
        elif item < 2 * n:
            row = item - n
            cv2.circle(image, centres[row], widths[row] + 1, rims[row], -1)
        else:
            _draw_frustum(image, frames[item - 2 * n])
    overlay = image.copy()
    for frame in frames:
        _draw_frustum(overlay, frame)
    blended = cv2.addWeighted(overlay, _HIDDEN_OPACITY, image, 1 - _HIDDEN_OPACITY, 0)
    return cv2.resize(blended, size, interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def _samples(pixels: Array) -> NDArray[np.int32]:
    """Positions in the supersampled picture."""
    return np.rint((pixels + 0.5) * _SUPERSAMPLING - 0.5).astype(np.int32)


def _draw_frustum(image: Canvas, frame: NDArray[np.int32]) -> None:
    """Draw 5 x 2 corners (the centre first) as a pyramid of lines."""
    width = max(1, round(_LINE_WIDTH * _SUPERSAMPLING))
    faces = [frame[1:], *(frame[[0, corner]] for corner in range(1, 5))]
    cv2.polylines(image, faces, True, CAMERA_COLOUR, width, cv2.LINE_AA)
