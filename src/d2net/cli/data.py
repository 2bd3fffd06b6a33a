"""`d2net data`: check training pairs, and prepare public data sets."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import typer

from d2net.cli import console, options
from d2net.cli.outputs import check_output
from d2net.wording import count

app = options.app("Check training data, and prepare public data sets.")


def check(
    source: Path,
    *,
    set_: list[str] | None = None,
    crop: int = 256,
    pairs: int = 100,
    seed: int = 0,
    output: Path = Path("pairs.png"),
    printing: options.Printing,
) -> None:
    """Draw training pairs with their correspondences, and print statistics.

    This finds wrong poses, depth maps or alignment before training; the exit code is 1 if it does.

    Options:
        source DIR: A reconstruction, or a folder of photos.
        set_ NAME=VALUE: An option of the source, such as min_overlap=0.2; repeatable.
        crop PIXELS: Edge length of the crops.
        pairs N: Number of pairs to check.
        output FILE: The picture, png or jpg.
    """
    from d2net.cli import progress
    from d2net.settings import parse_settings
    from d2net.training.check_pairs import check_source, draw_pairs
    from d2net.training.sources import detect_kind, open_source

    check_output(output)
    kind = detect_kind(source)
    opened = open_source(kind, source, crop, parse_settings(set_ or ()))
    with progress.shown(printing) as report:
        checked = check_source(opened, pairs, seed, progress=report)
    draw_pairs(checked.examples, output)
    figures = {"kind": kind, **checked.figures, "picture": str(output)}
    rows = [
        (name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else str(value))
        for name, value in figures.items()
    ]
    printing.result(
        {**figures, "remarks": list(checked.remarks), "warnings": list(checked.warnings)},
        *console.columns(rows),
        *(f"note: {remark}" for remark in checked.remarks),
        *(f"warning: {warning}" for warning in checked.warnings),
    )
    if checked.warnings:
        raise typer.Exit(console.PARTLY_FAILED)


def megadepth(
    root: Path, *, output: Path, scenes: str = "default", printing: options.Printing
) -> None:
    """Prepare MegaDepth for training: check the files, undistort the cameras, find pairs.

    Needs no COLMAP and writes no photos. Run the same command again to resume an interrupted run.

    Options:
        root ROOT: Folder with phoenix and MegaDepth_v1_SfM.
        output DIR: Folder for the result.
        scenes LIST: default (without scenes of common benchmarks), paper or all.
    """
    from d2net.cli import progress
    from d2net.training.sources.megadepth import prepare_megadepth

    with progress.shown(printing) as report:
        prepared = prepare_megadepth(root, output, scenes, report)
    rows = []
    for scene in prepared:
        counts = [f"{number} with {reason}" for reason, number in scene.left_out.items()]
        left_out = f"left out: {', '.join(counts)}" if counts else ""
        rows += [(scene.name, count(scene.photos, "photo"), count(scene.pairs, "pair"), left_out)]
    failed = [scene for scene in prepared if scene.error]
    printing.result(
        [asdict(scene) for scene in prepared],
        *console.columns(row for row, scene in zip(rows, prepared, strict=True) if not scene.error),
        *(f"warning: {scene.name}: {scene.error}" for scene in failed),
    )
    if failed:
        raise typer.Exit(console.PARTLY_FAILED)


options.add_command(app, check)
_prepare = options.app("Prepare a public data set.")
options.add_command(_prepare, megadepth)
_prepare.callback()(lambda: None)  # else typer would drop the name of the only command
app.add_typer(_prepare, name="prepare")
