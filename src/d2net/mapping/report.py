"""The report of a map: figures as JSON, a picture, and a page that shows the map in 3D.

The same map gives the same bytes.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from d2net.io.atomic import write_text
from d2net.io.drawn_pictures import write_picture
from d2net.io.images import Pixels
from d2net.mapping.picture.drawing import (
    CAMERA_COLOUR,
    TAN_HALF_FOV,
    add_colours,
    draw_picture,
    find_look,
    frustums,
    kept_points,
    point_radius,
)
from d2net.mapping.reconstruction_arrays import Cloud
from d2net.mapping.summary import MapSummary, figure_lines, seconds_line, summarise


def write_report(
    clouds: Sequence[Cloud],
    folder: Path,
    summary: MapSummary,
    photo_folders: Sequence[Path],
    read: Callable[[str], Pixels],
) -> None:
    """Write `report.json`, `map.png` and `map.html` of maps into a folder.

    Maps after the first one get `map1.png`, `map1.html` and so on. Thumbnails and the points'
    colours come from the photos, whose pixels `read` gives.
    """
    text = json.dumps(summary.to_dict(), indent=2, ensure_ascii=False) + "\n"
    write_text(folder / "report.json", text)
    names = [photos.parent if photos.name == "images" else photos for photos in photo_folders]
    title = ", ".join(path.resolve().name for path in names)
    title = title.encode(errors="replace").decode()  # a folder's name may be no Unicode
    loader = PackageLoader("d2net.mapping.picture")
    pages = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    template = pages.get_template("map.html.j2")
    for number, cloud in enumerate(clouds):
        part = summary
        if number:
            part = replace(summarise([cloud], {}), maps=summary.maps[number : number + 1])
        failed = [photo.name for photo in part.failed]
        coloured, thumbnails = add_colours(cloud, read, failed)
        lines = [f"{line[0].upper()}{line[1:]}." for line in figure_lines(part)]
        stem = f"map{number or ''}"
        write_picture(folder / f"{stem}.png", draw_picture(coloured, lines))
        write_text(
            folder / f"{stem}.html",
            template.render(
                title=title,
                summary=part,
                figures=lines,
                thumbnails={name: _base64(jpeg) for name, jpeg in thumbnails.items()},
                time=seconds_line(part),
                data=page_data(coloured),
            ),
        )


def page_data(cloud: Cloud) -> dict[str, Any]:
    """The data that `map.js` draws, as JSON.

    `positions` are 3 float32 in the map's frame, `colours` 4 bytes (RGB and 255), in base64.
    """
    look = find_look(cloud)
    half_width = float(look.extent.max())
    kept = kept_points(cloud)
    return {
        "count": len(kept),
        "radius": point_radius(cloud, half_width),
        "positions": _base64(cloud.points[kept].astype("<f4").tobytes()),
        "colours": _base64(np.insert(cloud.colours[kept], 3, 255, axis=1).tobytes()),
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
        "oblique": {
            "yaw": look.yaw,
            "pitch": look.pitch,
            "target": look.target.tolist(),
            "extent": look.extent.tolist(),
        },
    }


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")
