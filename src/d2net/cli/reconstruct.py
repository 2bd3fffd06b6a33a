"""`d2net reconstruct`: from a folder of photos to a map."""

from __future__ import annotations

from pathlib import Path
from typing import cast, get_args

import typer

from d2net.cli import console, options
from d2net.cli.outputs import check_output
from d2net.errors import InputError
from d2net.settings import CameraMode, Mapper


def reconstruct(
    photos: Path,
    *,
    output: Path | None = None,
    into: Path | None = None,
    pairs: str = "auto",
    pairing: options.Pairing,
    poses: Path | None = None,
    masks: Path | None = None,
    matcher: str = "nearest",
    mapper: Mapper = "incremental",
    camera_model: str = "SIMPLE_RADIAL",
    camera_mode: CameraMode = "auto",
    camera_params: str | None = None,
    known_distance: tuple[str, str, float] | None = None,
    seed: int = 0,
    extraction: options.Extraction,
    printing: options.Printing,
) -> None:
    """Make a map from photos of one place.

    `d2net reconstruct PHOTOS --output MAP` makes a folder with a COLMAP model, a database, features
    and a page that shows the map. Run the same command again to resume an interrupted run.
    `d2net reconstruct NEW_PHOTOS --into MAP` adds photos to a map.

    Options:
        photos PHOTOS: Folder of photos.
        output MAP: Folder of the map. Default: map.
        into MAP: Add the photos to this map.
        pairs METHOD|FILE: How to pair photos: auto (all pairs of up to 50 photos, retrieval for
            more), exhaustive, sequential (for videos), retrieval, gps, covisibility, or a text file
            with two names per line.
        poses DIR: Keep the cameras and poses of the COLMAP model in this folder.
        camera_model MODEL: COLMAP's name of the camera model, such as PINHOLE or OPENCV.
        camera_params F,CX,CY,...: Known parameters of the camera model for photos of one size.
            Default: refine the focal length in EXIF, or a guess.
        known_distance A B METRES: Distance between the cameras of photos A and B, to set the scale.
            Default: from GPS positions in EXIF.
    """
    if into and any([output, poses, known_distance, pairs != "auto", pairing.num_matched]):
        raise InputError(
            "with --into, leave out --output, --pairs, --num-matched, --poses and --known-distance"
        )
    from d2net.io.pair_lists import read_pairs
    from d2net.matching.pair_selection import PairMethod

    pair_file = None if pairs in get_args(PairMethod) and pairs != "list" else Path(pairs)
    if pair_file is not None and not pair_file.is_file():
        raise InputError(
            f"--pairs takes a method or a file of pairs, and there is no file {pairs!r}"
        )
    choice = pairing.choose("list" if pair_file else cast(PairMethod, pairs), pair_file)
    try:
        params = tuple(map(float, camera_params.split(","))) if camera_params else None
    except ValueError:
        raise InputError(f"--camera-params takes F,CX,CY,..., not {camera_params!r}") from None
    folder = into or output or Path("map")
    if folder.exists():
        check_output(folder / "pairs.txt", pair_file, is_own=read_pairs)

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
        "camera_params": params,
        "seed": seed,
    }
    model = extraction.model(printing)
    with progress.shown(printing) as report:
        if into is not None:
            summary = add_photos(into, photos, model=model, masks=masks, progress=report, **mapping)
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
