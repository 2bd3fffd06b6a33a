"""`d2net data`: check training pairs, and prepare public data sets."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from d2net.cli import console, options
from d2net.cli.outputs import check_output
from d2net.text import count

app = options.app(help="Check training data, and prepare public data sets.")

_source = partial(typer.Option, rich_help_panel="Source")
_picture = partial(typer.Option, rich_help_panel="Picture")


def check(
    *,
    source: Annotated[
        Path, typer.Argument(metavar="DIR", help="A reconstruction, or a folder of photos.")
    ],
    kind: Annotated[
        str | None,
        _source(metavar="KIND", help="Kind of source.", show_default="by the files in DIR"),
    ] = None,
    setting: Annotated[
        list[str] | None,
        _source(
            "--set",
            metavar="NAME=VALUE",
            help="An option of the source, such as min_overlap=0.2; repeatable.",
        ),
    ] = None,
    crop: Annotated[int, _source(metavar="PIXELS", help="Edge length of the crops.")] = 256,
    pairs: Annotated[int, typer.Option(metavar="N", help="Number of pairs to check.")] = 100,
    seed: options.Seed = 0,
    output: Annotated[
        Path, _picture("--output", "-o", metavar="FILE", help="The picture, png or jpg.")
    ] = Path("pairs.png"),
    examples: Annotated[int, _picture(metavar="N", help="Number of pairs in the picture.")] = 8,
    weights: Annotated[
        str | None,
        _picture(
            metavar="NAME|FILE", help="Draw the score maps of these weights beside the pairs."
        ),
    ] = None,
    printing: options.Printing,
) -> None:
    """Draw training pairs with their correspondences, and print statistics.

    Shows wrong poses, depth maps or alignment before a night of training. The exit code is 1 if
    something looks wrong.
    """
    from d2net.cli import progress
    from d2net.training.check import check_source
    from d2net.training.pictures import draw_pairs
    from d2net.training.sources import detect_kind, open_source, parse_options
    from d2net.visualization import picture_path

    check_output(output)
    picture_path(output)
    kind = kind or detect_kind(source)
    values = parse_options(setting or ())
    opened = open_source(kind, source, crop, values)
    with progress.shown(printing) as report:
        checked = check_source(opened, pairs, seed, examples, report)
    draw_pairs(checked.examples, _score_map(weights), output)
    figures = {
        "kind": kind,
        **checked.figures,
        "remarks": list(checked.remarks),
        "warnings": list(checked.warnings),
        "picture": str(output),
    }
    printing.result(figures, *_lines(figures))
    if checked.warnings:
        raise typer.Exit(console.PARTLY_FAILED)


def _score_map(weights: str | None) -> Any:  # noqa: ANN401 (a function of a crop, or None)
    if weights is None:
        return None
    from d2net.extraction.d2net import D2Net

    model = D2Net.from_pretrained(weights)
    return lambda crop: model.score_map(crop).numpy()


def _lines(figures: dict[str, Any]) -> list[str]:
    """The figures as lines for people; lists are left out or printed as notes."""
    rows = [
        (name.replace("_", " "), _text(value))
        for name, value in figures.items()
        if not isinstance(value, list)
    ]
    notes = [f"note: {text}" for text in figures["remarks"]]
    warnings = [f"warning: {text}" for text in figures["warnings"]]
    return [*console.columns(rows), *notes, *warnings]


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def megadepth(
    *,
    root: Annotated[
        Path, typer.Argument(metavar="ROOT", help="Folder with phoenix and MegaDepth_v1_SfM.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Folder for the result.")
    ],
    scenes: Annotated[
        str,
        typer.Option(
            metavar="LIST|FILE",
            help="default (without scenes of common benchmarks), paper, paper-validation, all, "
            "or a text file.",
        ),
    ] = "default",
    printing: options.Printing,
) -> None:
    """Prepare MegaDepth for training: check the files, undistort the cameras, find pairs.

    COLMAP is not needed, and no photos are written. A run that was stopped continues when it is
    started again.
    """
    from d2net.cli import progress
    from d2net.training.sources.megadepth import prepare_megadepth

    with progress.shown(printing) as report:
        done = prepare_megadepth(root, output, scenes, report)
    rows = [
        (
            scene.name,
            count(scene.photos, "photo"),
            count(scene.pairs, "pair"),
            _left_out(scene.left_out),
        )
        for scene in done
        if not scene.error
    ]
    failed = [scene for scene in done if scene.error]
    printing.result(
        [asdict(scene) for scene in done],
        *console.columns(rows),
        *(f"warning: {scene.name}: {scene.error}" for scene in failed),
    )
    if failed:
        raise typer.Exit(console.PARTLY_FAILED)


def _left_out(reasons: dict[str, int]) -> str:
    counts = [f"{number} with {reason}" for reason, number in reasons.items()]
    return f"left out: {', '.join(counts)}" if counts else ""


options.add_command(app, check)
_prepare = options.app(help="Prepare a public data set.")
options.add_command(_prepare, megadepth)
_prepare.callback()(lambda: None)  # else typer would drop the name of the only command
app.add_typer(_prepare, name="prepare")
