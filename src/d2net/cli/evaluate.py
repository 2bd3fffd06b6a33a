"""`d2net evaluate`: the field's protocols on a folder of photos with truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from d2net.cli import console, options
from d2net.errors import InputError

if TYPE_CHECKING:
    from d2net.evaluation.cache import CachedFeatures
    from d2net.evaluation.results import Result

    Protocol = Callable[..., Result]

_features = partial(typer.Option, rich_help_panel="Features")

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", show_default=False, help="Photos with their truth.")
]


@dataclass(frozen=True)
class Evaluation:
    """Options that all protocols share."""

    features: Annotated[
        str,
        _features(
            metavar="SOURCE",
            help="Weights by name or path, rootsift, aliked, disk, xfeat, or a features file (h5); "
            "settings after a colon, as ots:original,max_edge=1024.",
        ),
    ] = "default"
    compare: Annotated[
        list[str] | None,
        _features(metavar="SOURCE", help="Another source; repeatable.", show_default="none"),
    ] = None
    max_keypoints: Annotated[
        int | None, _features(metavar="N", help="Use the N best by score.", show_default="all")
    ] = None
    device: Annotated[str, _features(metavar="NAME", help="Where networks run.")] = "cpu"
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", metavar="FILE", help="All figures, json.", show_default="none"
        ),
    ] = None
    html: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A page with plots and pairs.", show_default="none"),
    ] = None

    def run(self, evaluate: Protocol, folder: Path, printing: options.Printing) -> None:
        """Evaluate every source, print the table, write what was asked for."""
        if self.max_keypoints is not None and self.max_keypoints < 1:
            raise InputError(f"--max-keypoints must be at least 1, not {self.max_keypoints}")

        from d2net.cli import progress
        from d2net.evaluation import report
        from d2net.evaluation.cache import CachedFeatures
        from d2net.evaluation.results import save_json
        from d2net.evaluation.sources import open_source

        results = []
        for specification in (self.features, *(self.compare or ())):
            source: CachedFeatures = CachedFeatures(open_source(specification, self.device))
            with progress.things(specification, printing) as advance:
                results.append(
                    evaluate(source, folder, max_keypoints=self.max_keypoints, report=advance)
                )
        if self.output is not None:
            save_json(self.output, results)
        if self.html is not None:
            report.write_html(self.html, results, folder)
        if printing.json:
            console.print_json([result.to_dict() for result in results])
        elif not printing.quiet:
            for table in report.terminal_tables(results):
                console.out.print(table)


app = typer.Typer(help="Measure features on the field's protocols.", rich_markup_mode="markdown")


def homography(*, folder: Folder, evaluation: Evaluation, printing: options.Printing) -> None:
    """Matching accuracy on planar sequences: HPatches, Oxford.

    DIR holds folders with images 1, 2, ... and homographies H_1_2 ... (or H1to2p ...).
    """
    from d2net.evaluation.homography import evaluate_homography

    evaluation.run(evaluate_homography, folder, printing)


def epipolar(*, folder: Folder, evaluation: Evaluation, printing: options.Printing) -> None:
    """Fundamental matrices against hand-marked points: WxBS, day against night, seasons.

    DIR holds folders with images 01 and 02 and corrs.txt (x1 y1 x2 y2).
    """
    from d2net.evaluation.epipolar import evaluate_epipolar

    evaluation.run(evaluate_epipolar, folder, printing)


def pose(
    *,
    folder: Folder,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="COLMAP model.", show_default="found in DIR"),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Pairs, or SuperGlue's pairs with poses."),
    ] = None,
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Relative poses against a COLMAP model.

    DIR holds the photos, and the model if --model does not name it.
    """
    from d2net.evaluation.pose import evaluate_pose

    arguments: dict[str, Any] = {"model": model, "pairs": pairs}
    evaluation.run(partial(evaluate_pose, **arguments), folder, printing)


for _command in (homography, epipolar, pose):
    app.command()(options.spread(_command))
