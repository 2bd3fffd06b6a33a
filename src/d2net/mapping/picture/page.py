"""The page that shows a map in 3D in a browser: a template and the map's data, packed small."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from d2net.mapping.cloud import Cloud
from d2net.mapping.picture.album import Album
from d2net.mapping.picture.drawing import (
    CAMERA_COLOUR,
    TAN_HALF_FOV,
    Canvas,
    frustums,
    kept_points,
    point_radii,
)
from d2net.mapping.picture.viewpoint import Look, from_above, oblique
from d2net.mapping.summary import MapSummary, duration, figure_lines, sentence

_MAX_POSITION = 65535  # along each axis, as 16-bit integer
_STILL_WIDTH = 900  # pixels of the picture for browsers without WebGL
_STILL_QUALITY = 80


def make_page(
    cloud: Cloud,
    still: Canvas,
    album: Album,
    summary: MapSummary,
    title: str,
    notes: Sequence[str] = (),
) -> str:
    """The page as HTML.

    Args:
        cloud: points with colours, and cameras.
        still: the oblique view, for browsers without WebGL.
        album: thumbnails.
        summary: figures, and the status of each photo.
        title: name of the scene.
        notes: what the reader should know about the picture.
    """
    image = Image.fromarray(still)
    image = image.resize((_STILL_WIDTH, round(_STILL_WIDTH * image.height / image.width)))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_STILL_QUALITY, optimize=True)
    total = sum(summary.seconds.values()) or 1.0
    environment = Environment(
        loader=PackageLoader("d2net.mapping.picture"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("map.html.j2").render(
        title=title,
        summary=summary,
        figures=[sentence(line) for line in figure_lines(summary)],
        notes=[sentence(note) for note in notes],
        thumbnails={name: _data_url(jpeg) for name, jpeg in album.thumbnails.items()},
        stages=[
            (stage, duration(seconds), round(100 * seconds / total, 1))
            for stage, seconds in summary.seconds.items()
        ],
        settings=json.dumps(summary.settings, indent=2, ensure_ascii=False),
        still=_data_url(buffer.getvalue()),
        data=page_data(cloud),
    )


def page_data(cloud: Cloud) -> dict[str, Any]:
    """The data that `map.js` draws, as JSON.

    Positions are `offset` + `span` * (16-bit integer) / 65535 per axis, in the map's frame. `looks`
    holds red, green, blue and size of each point in 8 bits, sizes as a share of `radius`. Both are
    base64.
    """
    look = oblique(cloud, TAN_HALF_FOV)
    half_width = float(look.extent.max())
    kept = kept_points(cloud)
    points = cloud.points[kept]
    offset = points.min(axis=0) if len(points) else np.zeros(3)
    span = np.maximum(np.ptp(points, axis=0), 1e-9 * half_width) if len(points) else np.ones(3)
    positions = np.rint((points - offset) / span * _MAX_POSITION).astype("<u2")
    radii = point_radii(cloud, half_width)[kept]
    radius = float(radii.max()) if len(radii) else half_width
    sizes = np.rint(255 * radii / radius).astype(np.uint8)
    return {
        "count": len(kept),
        "offset": offset.tolist(),
        "span": span.tolist(),
        "radius": radius,
        "positions": _base64(positions.tobytes()),
        "looks": _base64(np.concatenate([cloud.colours[kept], sizes[:, None]], axis=1).tobytes()),
        "cameras": [
            {
                "name": photo.name,
                "shape": shape.ravel().tolist(),
                "points": len(set(photo.point_rows.tolist())),
                "error": photo.error if np.isfinite(photo.error) else None,
            }
            for photo, shape in zip(cloud.photos, frustums(cloud, half_width), strict=True)
        ],
        "camera_colour": list(CAMERA_COLOUR),
        "scene_from_world": look.scene_from_world.ravel().tolist(),
        "tan_half_fov": TAN_HALF_FOV.tolist(),
        "oblique": _look(look),
        "above": _look(from_above(cloud, TAN_HALF_FOV)),
    }


def _look(look: Look) -> dict[str, Any]:
    return {
        "yaw": look.yaw,
        "pitch": look.pitch,
        "target": look.target.tolist(),
        "extent": look.extent.tolist(),
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _data_url(jpeg: bytes) -> str:
    return f"data:image/jpeg;base64,{_base64(jpeg)}"
