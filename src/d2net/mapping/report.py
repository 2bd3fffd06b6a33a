"""The report of a map: figures as JSON, a picture, and a page that shows the map in 3D.

The same map gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from d2net.io.atomic import write_text
from d2net.io.pictures import write_picture
from d2net.mapping.cloud import Cloud
from d2net.mapping.picture.album import add_colours
from d2net.mapping.picture.drawing import draw_oblique, draw_picture, kept_points
from d2net.mapping.picture.page import make_page
from d2net.mapping.summary import MapSummary, figure_lines, sentence
from d2net.text import count


def write_report(
    cloud: Cloud, folder: Path, summary: MapSummary, photo_folders: Sequence[Path] = ()
) -> None:
    """Write `report.json`, `map.png` and `map.html` into an existing folder.

    Args:
        cloud: the map's points and photos.
        folder: where to write.
        summary: of the map.
        photo_folders: where the photos are, for thumbnails and for the colours of points that
            have none. The picture and the page say which photos are missing.

    Raises:
        OutputError: a file cannot be written.
    """
    text = json.dumps(summary.to_dict(), indent=2, ensure_ascii=False) + "\n"
    write_text(folder / "report.json", text)
    failed = [photo.name for photo in summary.failed]
    cloud, album = add_colours(cloud, photo_folders, failed)
    notes = []
    shown, total = len(kept_points(cloud)), len(cloud.points)
    if shown < total:
        notes.append(
            f"{shown:,} of {count(total, 'point')} shown: those with the longest tracks, and none "
            "far from all others"
        )
    if album.unreadable:
        notes.append(f"{count(len(album.unreadable), 'photo')} of the map could not be read")
    if album.uncoloured:
        notes.append(f"{count(album.uncoloured, 'point')} of unknown colour shown in grey")
    oblique = draw_oblique(cloud)
    lines = [sentence(line) for line in [*figure_lines(summary), *notes]]
    write_picture(folder / "map.png", draw_picture(cloud, oblique, lines))
    title = ", ".join(_scene_name(photos.resolve()) for photos in photo_folders)
    write_text(folder / "map.html", make_page(cloud, oblique, album, summary, title, notes))


def _scene_name(photos: Path) -> str:
    """The name of a folder of photos; in COLMAP's layout this is the parent of `images`."""
    return photos.parent.name if photos.name == "images" else photos.name
