"""`d2net reconstruct`: from a folder of photos to a map."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from d2net.cli import console, options
from d2net.cli.outputs import check_output
from d2net.errors import InputError

if TYPE_CHECKING:
    from d2net.matching.pair_selection import PairMethod


def reconstruct(
    *,
    photos: Annotated[Path, typer.Argument(metavar="PHOTOS", help="Folder of photos.")],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="MAP", help="Folder of the map.", show_default="map"
        ),
    ] = None,
    into: Annotated[
        Path | None, typer.Option(metavar="MAP", help="Add the photos to this map.")
    ] = None,
    pairs: Annotated[
        str,
        typer.Option(
            metavar="METHOD|FILE",
            help="auto (all pairs of up to 50 photos, retrieval for more), exhaustive, "
            "sequential (video), retrieval, gps, covisibility, or a text file with two names per "
            "line.",
        ),
    ] = "auto",
    pairing: options.Pairing,
    poses: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="COLMAP model with known cameras and poses: only triangulate points.",
        ),
    ] = None,
    masks: options.Masks = None,
    matcher: options.Matcher = "nearest",
    mapper: options.Mapper = "incremental",
    refine: Annotated[
        bool,
        typer.Option(
            "--refine", help="Align the patches around matched keypoints, and move the keypoints."
        ),
    ] = False,
    camera_model: Annotated[
        str, typer.Option(metavar="MODEL", help="COLMAP's camera model.")
    ] = "SIMPLE_RADIAL",
    camera_mode: options.CameraMode = "auto",
    camera_params: Annotated[
        str | None,
        typer.Option(
            metavar="F,CX,CY,...",
            help="Known parameters of the camera model.",
            show_default="from EXIF",
        ),
    ] = None,
    known_distance: Annotated[
        tuple[str, str, float] | None,
        typer.Option(
            metavar="A B METRES",
            help="Distance of the cameras of the photos A and B in metres, which sets the scale.",
            show_default="from GPS in EXIF",
        ),
    ] = None,
    seed: options.Seed = 0,
    extraction: options.Extraction,
    printing: options.Printing,
) -> None:
    """Make a map from photos of one place: COLMAP model, database, features and a picture.

    `d2net reconstruct PHOTOS --output MAP` makes a map. A run that was stopped continues when the
    same command is started again. `d2net reconstruct NEW_PHOTOS --into MAP` adds photos to a map.
    """
    if into is not None and (output or poses or known_distance or pairs != "auto"):
        raise InputError(
            "--into adds photos to a map: leave out --output, --pairs, --poses and --known-distance"
        )
    params = camera_params and options.numbers("--camera-params", camera_params, float)
    pair_file = Path(pairs) if Path(pairs).is_file() else None
    choice = pairing.choose("list" if pair_file else cast("PairMethod", pairs), pair_file)
    folder = into or output or Path("map")
    check_output(folder / "map.png")

    from d2net.cli import progress
    from d2net.mapping.reconstruct import add_photos
    from d2net.mapping.reconstruct import reconstruct as make_map
    from d2net.mapping.settings import MappingOptions
    from d2net.mapping.summary import text_lines

    mapping: MappingOptions = {
        "matcher": matcher,
        "mapper": mapper,
        "camera_model": camera_model,
        "camera_mode": camera_mode,
        "camera_params": params or None,
        "refine": refine,
        "seed": seed,
    }
    model = extraction.model(printing)
    with progress.shown(printing) as report:
        if into is not None:
            summary = add_photos(into, photos, model=model, progress=report, **mapping)
        else:
            summary = make_map(
                photos,
                folder,
                model=model,
                pairs=choice,
                masks=masks,
                poses=poses,
                known_distance=known_distance,
                progress=report,
                **mapping,
            )
    lines = [*text_lines(summary), f"{folder}: open map.html, or localize a photo in it"]
    printing.result({**summary.to_dict(), "map": str(folder)}, *lines)
    if summary.failed:
        raise typer.Exit(console.PARTLY_FAILED)
