"""Drawing of a map: the viewpoint, points as discs, cameras as pyramids, colours, the picture.

The scene has axes of its own: x right, y forward (away from the viewer), z up. Yaw 0 is the mean
direction of the photos, positive yaw turns the viewer to the right, and positive pitch looks down.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from scipy.spatial import cKDTree

from d2net.errors import D2NetError
from d2net.geometry import coordinates
from d2net.geometry.coordinates import COLMAP_FROM_PIXELS, Array
from d2net.io.images import Pixels, for_screen, limited_size, resize
from d2net.mapping.georeference import common_up
from d2net.mapping.reconstruction_arrays import Cloud

MAX_POINTS = 200_000  # of larger clouds, the points with the longest tracks are drawn
CAMERA_COLOUR = (40, 120, 255)  # rare in photos
TAN_HALF_FOV = np.array([0.25, 0.1875])

_YAW, _PITCH = -0.44, 0.35  # beside and above the photos: exactly their direction would hide points
_POINTS_OUTSIDE, _CAMERAS_OUTSIDE = 0.012, 0.05  # shares that may lie beyond each edge
_ROOM = 1.4  # around points and cameras; near ones look larger
_SIZE, _TEXT_SIZE = (1200, 900), 25  # pixels
_MAX_EDGE, _TOTAL_EDGE = 240, 2400  # of a thumbnail, and over the root of their number
_GREY = 150  # of points whose colour is unknown
_MAX_LETTERS = 90  # of a line of the caption
_BACKGROUND = 45  # bright points and dark ones are visible
_MIN_DEPTH = 0.15  # over the distance to the target; nearer points would cover everything
_MIN_RADIUS, _MAX_RADIUS = 0.002, 0.0085  # of a point, over half the picture's width
_CAMERA_LENGTH = 0.12  # over half the picture's width


class Look(NamedTuple):
    """A viewing direction, and the part of the world that is visible.

    `target` is the point in the middle of the picture, and `extent` half the width and half the
    height of the visible part at its depth. `yaw` and `pitch` are angles in the scene's axes.
    """

    scene_from_world: Array
    yaw: float
    pitch: float
    target: Array
    extent: Array

    @property
    def view_from_world(self) -> Array:
        """3 x 3 rotation into the viewer's axes: x right, y down, z forward."""
        sy, cy, sp, cp = (f(a) for a in (self.yaw, self.pitch) for f in (np.sin, np.cos))
        rows = np.array([[cy, -sy, 0], [-sy * sp, -cy * sp, -cp], [sy * cp, cy * cp, -sp]])
        return np.asarray(rows @ self.scene_from_world)


def find_look(cloud: Cloud) -> Look:
    """Look at most points and the nearer cameras, from the photos' side and a little from above."""
    rotations = np.stack([photo.world_from_cam for photo in cloud.photos])
    up = common_up(rotations.transpose(0, 2, 1))
    ahead = rotations[:, :, 2].mean(axis=0)
    forwards = [ahead - up * (up @ ahead), *(np.cross(up, axis) for axis in np.eye(3))]
    # Photos from all sides, or from above, have no direction, so any direction will do.
    forward = next(f for f in forwards if np.linalg.norm(f) > 0.1)
    forward = forward / np.linalg.norm(forward)
    scene_from_world = np.stack([np.cross(forward, up), forward, up])
    look = Look(scene_from_world, _YAW, _PITCH, np.zeros(3), np.ones(2))
    view_from_world = look.view_from_world
    points, centres = cloud.points @ view_from_world.T, cloud.centres @ view_from_world.T
    outside = ((points, _POINTS_OUTSIDE), (centres, _CAMERAS_OUTSIDE))
    both = np.concatenate([np.quantile(part, [q, 1 - q], axis=0) for part, q in outside])
    target = (both.min(axis=0) + both.max(axis=0)) / 2
    extent = _ROOM * np.ptp(both, axis=0)[:2] / 2
    largest = float(extent.max())  # a single camera, or points on a line, have no extent
    extent = np.maximum(extent, 0.05 * largest if largest > 0 else 1.0)
    return look._replace(target=target @ view_from_world, extent=extent)


def kept_points(cloud: Cloud) -> NDArray[np.int64]:
    """Rows of the points that are drawn, sorted: the `MAX_POINTS` with the longest tracks."""
    longest = np.argsort(-cloud.track_lengths, kind="stable")[:MAX_POINTS]
    return np.sort(longest)


def point_radius(cloud: Cloud, half_width: float) -> float:
    """Radius of all points in the world's unit, with which dense points form surfaces."""
    radius = 0.38 * half_width / max(len(cloud.points), 1) ** 0.5
    return float(np.clip(radius, _MIN_RADIUS * half_width, _MAX_RADIUS * half_width))


def frustums(cloud: Cloud, half_width: float) -> Array:
    """M x 5 x 3 in the world: the centre of each camera, and the corners of its photo in order."""
    signs = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])
    centres = cloud.centres
    length = _CAMERA_LENGTH * half_width
    if len(centres) > 1:  # small beside the spacing of the cameras
        spacing = float(np.median(np.asarray(cKDTree(centres).query(centres, 2)[0])[:, 1]))
        length = float(np.clip(0.8 * spacing, 0.2 * length, length))
    shapes = np.zeros((len(centres), 5, 3))
    for shape, photo in zip(shapes, cloud.photos, strict=True):
        corners = np.concatenate([signs * photo.tan_half_fov, np.ones((4, 1))], axis=1)
        # Cameras with long lenses would be spikes, so all get nearly the same size instead.
        corners *= length / max(1.2 * float(np.linalg.norm(photo.tan_half_fov)), 0.6)
        shape[:] = photo.centre
        shape[1:] += corners @ photo.world_from_cam.T
    return shapes


def draw_picture(cloud: Cloud, lines: Sequence[str]) -> Image.Image:
    """The map obliquely, above a caption of these lines."""
    lines = [*lines, "Each blue pyramid is a camera."]
    text = "\n".join(row for line in lines for row in textwrap.wrap(line, _MAX_LETTERS))
    font, corner = ImageFont.load_default(_TEXT_SIZE), (_TEXT_SIZE, _SIZE[1])
    box = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox(corner, text, font, spacing=12)
    picture = Image.new("RGB", (_SIZE[0], int(box[3]) + _TEXT_SIZE), "white")
    picture.paste(_draw(cloud), (0, 0))
    ImageDraw.Draw(picture).multiline_text(corner, text, "black", font, spacing=12)
    return picture


def _draw(cloud: Cloud) -> Image.Image:
    """Points as discs, from far to near, and cameras as pyramids of lines."""
    look = find_look(cloud)
    distance = float(np.max(look.extent / TAN_HALF_FOV))
    focal = _SIZE[0] / 2 / TAN_HALF_FOV[0]

    def project(points: Array) -> tuple[NDArray[np.int32], Array, NDArray[np.bool_]]:
        """Pixels, depths over the distance to the target, and which can be drawn."""
        seen = (points - look.target) @ look.view_from_world.T
        depth = np.maximum(seen[..., 2] / distance + 1, _MIN_DEPTH)
        pixels = focal / distance * seen[..., :2] / depth[..., None] + np.array(_SIZE) / 2
        drawable = (depth > _MIN_DEPTH) & (np.abs(pixels) < 2 * sum(_SIZE)).all(axis=-1)
        return np.clip(pixels, -1e5, 1e5).astype(np.int32), depth, drawable

    rows = kept_points(cloud)
    pixels, depth, drawable = project(cloud.points[rows])
    half_width = float(look.extent.max())
    radii = np.rint(point_radius(cloud, half_width) * focal / distance / depth).astype(int)
    colours = cloud.colours[rows].astype(float)
    image = np.full((_SIZE[1], _SIZE[0], 3), _BACKGROUND, np.uint8)
    for row in np.argsort(-depth, kind="stable"):
        if drawable[row]:
            colour = colours[row].tolist()
            cv2.circle(
                image, pixels[row].tolist(), max(int(radii[row]), 1), colour, -1, cv2.LINE_AA
            )
    shapes, _, drawable = project(frustums(cloud, half_width))
    for shape in shapes[drawable.all(axis=1)]:
        faces = [shape[1:], *(shape[[0, corner]] for corner in range(1, 5))]
        cv2.polylines(image, faces, True, CAMERA_COLOUR, 1, cv2.LINE_AA)
    return Image.fromarray(image)


def add_colours(
    cloud: Cloud, read: Callable[[str], Pixels], failed: Iterable[str] = ()
) -> tuple[Cloud, dict[str, bytes]]:
    """Colour the points with the mean colours of the photos that observe them, or else grey.

    `read` gives a photo's pixels by its name.

    Returns:
        The coloured cloud, and a small JPEG of each photo that can be read, by name; photos that
        `failed` to be registered get one, too.
    """
    posed = {photo.name: photo for photo in cloud.photos}
    names = sorted({*posed, *failed})
    edge = int(min(_MAX_EDGE, _TOTAL_EDGE / max(len(names), 1) ** 0.5))
    sums, counts = np.zeros(cloud.colours.shape), np.zeros(len(cloud.points))
    thumbnails = {}
    for name in names:
        photo = posed.get(name)
        try:
            pixels = read(name)
        except D2NetError:
            continue
        thumbnails[name] = small_jpeg(pixels, edge, 72)
        if photo is not None:
            height, width = pixels.shape[:2]
            photo_from_camera = coordinates.resize(photo.size, (width, height))
            positions = photo_from_camera(COLMAP_FROM_PIXELS.inverse()(photo.pixels))
            x, y = np.rint(positions).astype(np.int64).T
            seen = pixels[np.clip(y, 0, height - 1), np.clip(x, 0, width - 1)]
            np.add.at(sums, photo.point_rows, seen)
            np.add.at(counts, photo.point_rows, 1)
    colours = cloud.colours.copy()
    colours[~colours.any(axis=1)] = _GREY
    known = counts > 0
    colours[known] = np.rint(sums[known] / counts[known, None]).astype(np.uint8)
    return replace(cloud, colours=colours), thumbnails


def small_jpeg(pixels: Pixels, edge: int, quality: int) -> bytes:
    """The photo as JPEG, reduced to this longer edge in pixels if it is larger."""
    height, width = pixels.shape[:2]
    small = resize(pixels, limited_size((width, height), edge, None))
    buffer = io.BytesIO()
    Image.fromarray(for_screen(small)).save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
