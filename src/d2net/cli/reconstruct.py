"""`d2net reconstruct`: from a folder of photos to a map."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from d2net.cli import console, options
from d2net.errors import InputError


def reconstruct(
    *,
    photos: Annotated[
        Path, typer.Argument(metavar="PHOTOS", show_default=False, help="Folder of photos.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="MAP", help="Folder of the map.", show_default="map"
        ),
    ] = None,
    into: Annotated[
        Path | None,
        typer.Option(metavar="MAP", help="Add the photos to this map.", show_default=False),
    ] = None,
    pairs: Annotated[
        str,
        typer.Option(
            metavar="METHOD|FILE",
            help="auto (all of up to 50 photos, else retrieval), exhaustive, sequential (video), "
            "retrieval, gps, covisibility, or a text file with two names a line.",
        ),
    ] = "auto",
    choice: options.Pairing,
    poses: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="COLMAP model with known poses: triangulate only.",
            show_default=False,
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="NAME.png, 0 where keypoints are unwanted."),
    ] = None,
    mapper: Annotated[
        Literal["incremental", "global"],
        typer.Option(metavar="KIND", help="incremental, or global (GLOMAP)."),
    ] = "incremental",
    refine: Annotated[
        bool,
        typer.Option("--refine", help="Move keypoints along tracks to where the photos fit."),
    ] = False,
    camera_model: Annotated[
        str, typer.Option(metavar="MODEL", help="COLMAP's lens model.")
    ] = "SIMPLE_RADIAL",
    camera_mode: Annotated[
        Literal["auto", "single", "per-folder", "per-image"],
        typer.Option(metavar="MODE", help="Who shares one: auto, single, per-folder, per-image."),
    ] = "auto",
    camera_params: Annotated[
        str | None,
        typer.Option(metavar="F,CX,CY,...", help="Known parameters.", show_default="from EXIF"),
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of all random samples.")] = 0,
    extraction: options.Extraction,
    printing: options.Printing,
) -> None:
    """Make a map (COLMAP's model and database, features, a picture) from photos of one place.

    `d2net reconstruct PHOTOS --output MAP`. A run that was stopped goes on where it was when it is
    started again. `d2net reconstruct NEW_PHOTOS --into MAP` adds photos to a map.
    """
    if into is not None and (output is not None or poses is not None or pairs != "auto"):
        raise InputError("--into adds to a map as it is: leave out --output, --pairs and --poses")
    params = _numbers(camera_params)
    listed = Path(pairs) if Path(pairs).is_file() else None

    from d2net.cli import progress
    from d2net.mapping.reconstruct import add_photos
    from d2net.mapping.reconstruct import reconstruct as make
    from d2net.mapping.settings import MappingOptions
    from d2net.mapping.summary import text_lines

    mapping: MappingOptions = {
        "mapper": mapper,
        "camera_model": camera_model,
        "camera_mode": camera_mode,
        "camera_params": params,
        "refine": refine,
        "seed": seed,
    }
    chosen = choice.of("list" if listed else pairs, listed)
    model = extraction.model(printing)
    folder = into or output or Path("map")
    with progress.shown(printing) as report:
        if into is not None:
            summary = add_photos(into, photos, model=model, progress=report, **mapping)
        else:
            summary = make(
                photos,
                folder,
                model=model,
                pairs=chosen,
                masks=masks,
                poses=poses,
                progress=report,
                **mapping,
            )
    lines = [*text_lines(summary), f"{folder}: open map.html, or localize a photo in it"]
    printing.result({**summary.to_dict(), "map": str(folder)}, *lines)
    if summary.failed:
        raise typer.Exit(console.PARTLY_FAILED)


def _numbers(text: str | None) -> tuple[float, ...] | None:
    try:
        return None if text is None else tuple(float(word) for word in text.split(","))
    except ValueError:
        raise InputError(
            f"--camera-params takes numbers separated by commas, not {text!r}"
        ) from None
