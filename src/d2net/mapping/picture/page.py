"""A page to turn a map around in a browser: its data, packed small, in a template."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image

from d2net.mapping.cloud import Array, Cloud
from d2net.mapping.picture.album import Album
from d2net.mapping.picture.drawing import CAMERA_COLOUR, SLOPE, draw_oblique
from d2net.mapping.picture.glyphs import frustums, point_radii
from d2net.mapping.picture.viewpoint import Look, from_above, oblique
from d2net.mapping.summary import MapSummary, count, duration, sentence

MAX_POINTS = 200_000
_LEVELS = 65535  # of a position along an axis
_REACH = 3.0  # extents of the middle nine tenths that the page reaches to on each side of them
_STILL_WIDTH = 900  # pixels of the picture for browsers without WebGL
_STILL_QUALITY = 80


def make_page(
    cloud: Cloud, album: Album, summary: MapSummary, title: str, notes: Sequence[str] = ()
) -> str:
    """The page as HTML.

    Args:
        cloud: points with colours, and cameras.
        album: thumbnails.
        summary: figures, and what became of each photo.
        title: what the map is of.
        notes: what else the reader should know about the picture.
    """
    environment = Environment(
        loader=PackageLoader("d2net.mapping.picture"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    kept = kept_points(cloud)
    return environment.get_template("map.html.j2").render(
        title=title,
        summary=summary,
        figures=_figures(summary),
        notes=[sentence(note) for note in [*_left_out(cloud, kept), *notes]],
        thumbnails={name: _uri(jpeg) for name, jpeg in album.thumbnails.items()},
        stages=_stages(summary),
        settings=list(_flat("", summary.settings)),
        still=_still(cloud),
        data=page_data(cloud, kept, summary),
    )


def page_data(cloud: Cloud, kept: NDArray[np.int64], summary: MapSummary) -> dict[str, Any]:
    """What the page's script draws, as JSON.

    Positions are `offset` + `span` * (16-bit integer) / 65535 per axis, in the world of the map;
    `looks` holds red, green, blue and size of each point in 8 bits, sizes as a share of `radius`.
    Both are base64. Thumbnails are in the page already.

    Args:
        cloud: the map.
        kept: rows of the points that are shown.
        summary: for the photos' figures.
    """
    look = oblique(cloud, SLOPE)
    half_width = float(look.frame.extent.max())
    points = cloud.points[kept]
    offset = points.min(axis=0) if len(points) else np.zeros(3)
    span = np.maximum(np.ptp(points, axis=0), 1e-9 * half_width) if len(points) else np.ones(3)
    positions = np.rint((points - offset) / span * _LEVELS).astype("<u2")
    radii = point_radii(cloud, half_width)[kept]
    radius = float(radii.max()) if len(radii) else half_width
    sizes = np.rint(255 * radii / radius).astype(np.uint8)
    photos = {photo.name: photo for photo in summary.photos}
    shapes = frustums(cloud, half_width)
    return {
        "count": len(kept),
        "offset": _numbers(offset),
        "span": _numbers(span),
        "radius": radius,
        "positions": _base64(positions.tobytes()),
        "looks": _base64(np.concatenate([cloud.colours[kept], sizes[:, None]], axis=1).tobytes()),
        "cameras": [
            {
                "name": view.name,
                "shape": _numbers(shape.ravel()),
                "points": photos[view.name].num_points if view.name in photos else 0,
                "error": photos[view.name].error if view.name in photos else None,
            }
            for view, shape in zip(cloud.views, shapes, strict=True)
        ],
        "camera_colour": list(CAMERA_COLOUR),
        "scene_from_world": _numbers(look.scene_from_world.ravel()),
        "slope": _numbers(SLOPE),
        "oblique": _look(look),
        "above": _look(from_above(cloud, SLOPE)),
    }


def _look(look: Look) -> dict[str, Any]:
    return {
        "yaw": look.yaw,
        "pitch": look.pitch,
        "target": _numbers(look.frame.target),
        "extent": _numbers(look.frame.extent),
    }


def kept_points(cloud: Cloud) -> NDArray[np.int64]:
    """Rows of the points that the page holds, in order: no far ones, and the best seen of many.

    One point far away would take all 16 bits of the positions.
    """
    if not len(cloud.points):
        return np.zeros(0, np.int64)
    low, high = np.quantile(cloud.points, [0.05, 0.95], axis=0)
    reach = _REACH * max(float((high - low).max()), 1e-12)
    near = ((cloud.points >= low - reach) & (cloud.points <= high + reach)).all(axis=1)
    rows = np.flatnonzero(near)
    best = rows[np.argsort(-cloud.track_lengths[rows], kind="stable")[:MAX_POINTS]]
    return np.sort(best)


def _left_out(cloud: Cloud, kept: NDArray[np.int64]) -> list[str]:
    number = len(cloud.points) - len(kept)
    if not number:
        return []
    if len(kept) == MAX_POINTS:
        return [f"shown are the {MAX_POINTS:,} points that most photos see"]
    return [f"{count(number, 'point')} far from all others left out"]


def _figures(summary: MapSummary) -> list[tuple[str, str]]:
    return [
        ("photos registered", f"{summary.num_registered:,} of {len(summary.photos):,}"),
        ("points", f"{summary.num_points:,}"),
        ("observations", f"{summary.num_observations:,}"),
        ("photos that see a point, mean", decimal(summary.mean_track_length, 1)),
        ("reprojection error, mean", decimal(summary.mean_error, 2, " px")),
        ("photos of each model found", ", ".join(f"{size:,}" for size in summary.models)),
    ]


def _stages(summary: MapSummary) -> list[tuple[str, str, float]]:
    """Name, time in words, and share in percent of each stage."""
    total = sum(summary.seconds.values())
    return [
        (stage, duration(seconds), round(100 * seconds / total, 1) if total else 0.0)
        for stage, seconds in summary.seconds.items()
    ]


def decimal(value: float | None, digits: int, unit: str = "") -> str:
    """A number in words, or a dash."""
    return "–" if value is None else f"{value:.{digits}f}{unit}"


def _still(cloud: Cloud) -> str:
    """The oblique view for browsers that cannot turn it."""
    image = Image.fromarray(draw_oblique(cloud))
    image = image.resize((_STILL_WIDTH, round(_STILL_WIDTH * image.height / image.width)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_STILL_QUALITY, optimize=True)
    return _uri(buffer.getvalue())


def _numbers(values: Array) -> list[float]:
    return [float(value) for value in values]


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _uri(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{_base64(jpeg)}"


def _flat(name: str, value: Any) -> Iterator[tuple[str, str]]:  # noqa: ANN401 (anything JSON has)
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(f"{name}.{key}" if name else key, inner)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
