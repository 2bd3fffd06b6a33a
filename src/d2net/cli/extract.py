"""`d2net extract`: features of many photos."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from d2net.cli import console, options
from d2net.errors import InputError


def extract(
    paths: Annotated[
        list[Path] | None,
        typer.Argument(help="Photos and folders of photos.", show_default=False),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            help="Features file (.h5); for npz and mat a folder.",
            show_default="beside the photos, for npz and mat",
        ),
    ] = None,
    format: Annotated[
        str, typer.Option(help="h5 (one file, hloc's layout), npz or mat (the release's files).")
    ] = "h5",
    image_list: Annotated[
        Path | None,
        typer.Option(help="Text file of names below --root, one a line, in place of PATHS."),
    ] = None,
    root: Annotated[
        Path | None,
        typer.Option(
            help="Folder that names are relative to.", show_default="the folder given in PATHS"
        ),
    ] = None,
    masks: Annotated[
        Path | None,
        typer.Option(help="Folder of masks, NAME.png: no keypoints where a mask is 0."),
    ] = None,
    half: Annotated[
        bool, typer.Option("--half", help="Store descriptors in half precision (h5).")
    ] = False,
    multiscale: options.Multiscale = False,
    max_keypoints: options.MaxKeypoints = None,
    score_threshold: options.ScoreThreshold = 0.0,
    original: options.Original = False,
    max_edge: options.MaxEdge = 1600,
    max_sum_edges: options.MaxSumEdges = 2800,
    full_resolution: options.FullResolution = False,
    stored_orientation: options.StoredOrientation = False,
    weights: options.Weights = "default",
    device: options.Device = "cpu",
    precision: options.Precision = "float32",
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> None:
    """Extract features of photos and folders.

    A run that is stopped goes on where it was when it is started again. A photo that cannot be read
    does not stop the others: the exit code is then 1.
    """
    from d2net.image_lists import find_images, read_image_list

    if image_list is not None and (paths or root is None):
        raise InputError("with --image-list, give --root (the photos' folder) and no paths")
    if image_list is None and not paths:
        raise InputError("give photos or folders: d2net extract PHOTOS --output features.h5")
    if image_list is not None and root is not None:
        photos = read_image_list(image_list, root)
    else:
        photos = find_images(paths or [], root)
    if not photos:
        raise InputError("there are no photos to extract: give files or folders that hold some")
    settings = options.extraction(
        original=original,
        multiscale=multiscale,
        max_keypoints=max_keypoints,
        score_threshold=score_threshold,
        max_edge=max_edge,
        max_sum_edges=max_sum_edges,
        full_resolution=full_resolution,
        stored_orientation=stored_orientation,
        precision=precision,
    )
    summary = _extract(
        photos, output, format, masks, half, weights, device, settings, quiet=quiet or json
    )
    if json:
        console.print_json(
            {
                "extracted": {o.name: o.num_keypoints for o in summary.extracted},
                "failed": {o.name: o.error for o in summary.failed},
                "skipped": summary.skipped,
                "output": None if output is None else str(output),
            }
        )
    else:
        keypoints = sum(outcome.num_keypoints or 0 for outcome in summary.extracted)
        line = f"{len(summary.extracted)} photos extracted, {keypoints:,} keypoints"
        if summary.skipped:
            line += f"; {len(summary.skipped)} were done before"
        if summary.failed:
            line += f"; {len(summary.failed)} failed"
        console.say(line + f": {output or 'beside the photos'}", quiet=quiet)
    if summary.failed:
        nothing = not summary.extracted and not summary.skipped
        raise typer.Exit(console.BAD_INPUT if nothing else console.PARTLY_FAILED)


def _extract(
    photos: list[Any],
    output: Path | None,
    format: Any,  # noqa: ANN401 (checked where it is used)
    masks: Path | None,
    half: bool,
    weights: str,
    device: str,
    settings: dict[str, Any],
    *,
    quiet: bool,
) -> Any:  # noqa: ANN401 (Summary, whose module imports torch)
    from d2net.extraction.d2net import D2Net
    from d2net.extraction.folder import Outcome, extract_folder

    model = D2Net.from_pretrained(weights, device=device, **settings)
    with console.progress("extracting", len(photos), quiet=quiet) as advance:

        def report(outcome: Outcome) -> None:
            advance(outcome.name)
            if outcome.error:
                console.warn(outcome.error)

        return extract_folder(
            model, photos, output, format=format, masks=masks, half=half, report=report
        )
