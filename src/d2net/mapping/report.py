"""The report of a map: a JSON document, a picture, and a page to turn the map around in a browser.

Equal maps give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from d2net.io.atomic import replacing, write_text
from d2net.mapping.cloud import Cloud, read_cloud
from d2net.mapping.picture.album import Album, colour
from d2net.mapping.picture.drawing import draw_picture
from d2net.mapping.picture.page import make_page
from d2net.mapping.summary import MapSummary, count, figure_lines, sentence

if TYPE_CHECKING:
    import pycolmap


def write_report(
    reconstruction: pycolmap.Reconstruction,
    folder: Path,
    summary: MapSummary,
    photos: Sequence[Path] = (),
) -> None:
    """Write `report.json`, `map.png` and `map.html` into a folder, which exists.

    Args:
        reconstruction: the map, which is left as it is.
        folder: where to write.
        summary: of the map.
        photos: the folders of the photos, for thumbnails and for the colours of points that have
            none; photos that are gone are told in the picture and on the page.

    Raises:
        OutputError: a file cannot be written.
    """
    write_json(folder / "report.json", summary)
    cloud, album = _dressed(reconstruction, photos, summary)
    _save_picture(folder / "map.png", cloud, album, summary)
    _save_page(folder / "map.html", cloud, album, summary, photos)


def write_json(path: Path, summary: MapSummary) -> None:
    """Write the summary as JSON.

    Raises:
        OutputError: the file cannot be written.
    """
    _write(path, json.dumps(summary.to_dict(), indent=2, ensure_ascii=False) + "\n")


def write_picture(
    reconstruction: pycolmap.Reconstruction,
    path: Path,
    summary: MapSummary,
    photos: Sequence[Path] = (),
) -> None:
    """Write a PNG of the points and cameras, obliquely and from above, with figures.

    The arguments and errors are those of `write_report`.
    """
    cloud, album = _dressed(reconstruction, photos, summary)
    _save_picture(path, cloud, album, summary)


def write_html(
    reconstruction: pycolmap.Reconstruction,
    path: Path,
    summary: MapSummary,
    photos: Sequence[Path] = (),
) -> None:
    """Write a page that shows the map from all sides, and what became of each photo.

    It is one file that needs no network. The arguments and errors are those of `write_report`.
    """
    cloud, album = _dressed(reconstruction, photos, summary)
    _save_page(path, cloud, album, summary, photos)


def _dressed(
    reconstruction: pycolmap.Reconstruction, photos: Sequence[Path], summary: MapSummary
) -> tuple[Cloud, Album]:
    return colour(read_cloud(reconstruction), photos, [photo.name for photo in summary.failed])


def _save_picture(path: Path, cloud: Cloud, album: Album, summary: MapSummary) -> None:
    lines = [*figure_lines(summary), *_missing(album)]
    picture = draw_picture(cloud, [sentence(line) for line in lines])
    with replacing(path) as temporary:
        picture.save(temporary, "PNG", optimize=True)


def _save_page(
    path: Path, cloud: Cloud, album: Album, summary: MapSummary, photos: Sequence[Path]
) -> None:
    title = ", ".join(_name(folder.resolve()) for folder in photos)
    _write(path, make_page(cloud, album, summary, title, _missing(album)))


def _name(photos: Path) -> str:
    """What a folder of photos is of; COLMAP's layout has them in `images` of the scene's folder."""
    return photos.parent.name if photos.name == "images" else photos.name


def _missing(album: Album) -> list[str]:
    """What the pictures lack because photos could not be read."""
    notes = []
    if album.unreadable:
        notes.append(f"{count(len(album.unreadable), 'photo')} of the map could not be read")
    if album.uncoloured:
        notes.append(f"{count(album.uncoloured, 'point')} of unknown colour in grey")
    return notes


def _write(path: Path, text: str) -> None:
    write_text(path, text)
