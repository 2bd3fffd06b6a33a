"""`d2net data`: a look at training pairs, and the preparation of public collections."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from d2net.cli import console, options

app = typer.Typer(
    help="Check training data, and prepare public collections.", rich_markup_mode="markdown"
)

_source = partial(typer.Option, rich_help_panel="Source")
_picture = partial(typer.Option, rich_help_panel="Picture")


def check(
    *,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", show_default=False, help="A reconstruction, or a folder of photos."
        ),
    ],
    kind: Annotated[
        str | None,
        _source(metavar="KIND", help="What DIR is.", show_default="by its files"),
    ] = None,
    setting: Annotated[
        list[str] | None,
        _source(
            "--set",
            metavar="NAME=VALUE",
            help="An option of the kind, as min_overlap=0.2; repeatable.",
            show_default="none",
        ),
    ] = None,
    crop: Annotated[int, _source(metavar="PIXELS", help="Edge of the crops.")] = 256,
    pairs: Annotated[int, typer.Option(metavar="N", help="How many pairs to draw.")] = 100,
    seed: Annotated[int, typer.Option(metavar="N", help="Which pairs.")] = 0,
    output: Annotated[
        Path, _picture("--output", "-o", metavar="FILE", help="The picture, png or jpg.")
    ] = Path("pairs.png"),
    examples: Annotated[int, _picture(metavar="N", help="How many pairs it shows.")] = 8,
    weights: Annotated[
        str | None,
        _picture(
            metavar="NAME|FILE",
            help="Draw the score maps of these weights as well.",
            show_default="none",
        ),
    ] = None,
    printing: options.Printing,
) -> None:
    """Draw pairs with their correspondences, and print what they are like.

    Wrong poses, depth or alignment show here, before a night of training. Exit code 1 if something
    looks wrong.
    """
    from d2net.cli import progress
    from d2net.training.check import check_source
    from d2net.training.pictures import draw_pairs
    from d2net.training.sources import detect_kind, open_source, parse_options
    from d2net.visualization import picture_path

    picture_path(output)
    kind = kind or detect_kind(source)
    values = parse_options(kind, setting or ())
    opened = open_source({"kind": kind, "path": source, **values}, crop)
    with progress.shown(printing) as report:
        checked = check_source(opened, pairs, seed, examples, report)
    draw_pairs(checked.examples, _score_map(weights), output)
    figures: dict[str, Any] = {"kind": kind, **checked.to_dict(), "picture": str(output)}
    warnings = figures["warnings"]
    printing.result(figures, *_lines(figures))
    if warnings:
        raise typer.Exit(console.PARTLY_FAILED)


def _score_map(weights: str | None) -> Any:  # noqa: ANN401 (a function of a crop, or None)
    if weights is None:
        return None
    from d2net.extraction.d2net import D2Net

    model = D2Net.from_pretrained(weights)
    return lambda crop: model.score_map(crop).numpy()


def _lines(figures: dict[str, Any]) -> list[str]:
    """The figures as lines for people, what is not known left out."""
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
        Path,
        typer.Argument(
            metavar="ROOT", show_default=False, help="Where phoenix and MegaDepth_v1_SfM lie."
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="DIR", show_default=False, help="Folder for the result."
        ),
    ],
    scenes: Annotated[
        str,
        typer.Option(
            metavar="LIST|FILE",
            help="default (no scenes of common tests), paper, paper-validation, all, or a file.",
        ),
    ] = "default",
    scene_info: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Read the scene_info files of the 2019 release instead of models.",
            show_default="none",
        ),
    ] = None,
    jobs: Annotated[int, typer.Option(metavar="N", help="Processes.")] = 1,
    printing: options.Printing,
) -> None:
    """Prepare MegaDepth for training: check it, undistort its cameras, find pairs.

    Reads the published download, or the undistorted form of the 2019 release. Needs no COLMAP, and
    writes no photo. Started again, it goes on where it was stopped.
    """
    from d2net.cli import progress
    from d2net.training.sources.megadepth_preparation import prepare_megadepth

    with progress.shown(printing) as report:
        done = prepare_megadepth(root, output, scenes, scene_info, jobs, report)
    rows = [
        (scene.name, f"{scene.photos} photos", f"{scene.pairs} pairs", _left_out(scene.left_out))
        for scene in done
        if not scene.error
    ]
    failed = [scene for scene in done if scene.error]
    printing.result(
        [{**scene.to_dict(), "error": scene.error} for scene in done],
        *console.columns(rows),
        *(f"warning: {scene.name}: {scene.error}" for scene in failed),
    )
    if failed:
        raise typer.Exit(console.PARTLY_FAILED)


def _left_out(reasons: dict[str, int]) -> str:
    counts = [f"{count} with {reason}" for reason, count in reasons.items()]
    return f"left out: {', '.join(counts)}" if counts else ""


app.command()(options.spread(check))
_prepare = typer.Typer(help="Prepare a public collection.", rich_markup_mode="markdown")
_prepare.command()(options.spread(megadepth))
_prepare.callback()(lambda: None)  # else typer would drop the name of the only command
app.add_typer(_prepare, name="prepare")
