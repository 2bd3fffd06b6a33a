"""`d2net evaluate`: the field's protocols on a folder of photos with truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

import typer

from d2net.cli import console, options
from d2net.errors import InputError

if TYPE_CHECKING:
    from d2net.evaluation.results import Result
    from d2net.progress import Progress

    Protocol = Callable[..., Result]

Number = TypeVar("Number", int, float)

_features = partial(typer.Option, rich_help_panel="Features")

_ransac = partial(typer.Option, rich_help_panel="RANSAC")

Seeds = Annotated[
    str, _ransac(metavar="N,...", help="Of random samples; figures are means over them.")
]
Folder = Annotated[
    Path, typer.Argument(metavar="DIR", show_default=False, help="Photos with their truth.")
]


def _numbers(option: str, text: str, kind: type[Number]) -> tuple[Number, ...]:
    """What `0.5,1,2` says."""
    try:
        return tuple(kind(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"{option} must be numbers separated by commas, not {text!r}") from None


def _named(progress: Progress, source: str) -> Progress:
    """The same, with the name of the source before the stage."""
    return lambda stage, done, total: progress(f"{source}, {stage}", done, total)


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
        from d2net.evaluation.plots import check_matplotlib
        from d2net.evaluation.results import save_json
        from d2net.evaluation.sources import open_source

        if self.html is not None:
            check_matplotlib()
        results = []
        for specification in (self.features, *(self.compare or ())):
            source = CachedFeatures(
                open_source(specification, self.device),
                max_keypoints=self.max_keypoints,
                device=self.device,
            )
            with progress.shown(printing) as shown:
                results.append(evaluate(source, folder, progress=_named(shown, source.name)))
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


def homography(
    *,
    folder: Folder,
    refine: Annotated[
        bool, typer.Option("--refine", help="Refine verified matches, as d2net match does it.")
    ] = False,
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Matching accuracy on planar sequences: HPatches, Oxford.

    DIR holds folders with images 1, 2, ... and homographies H_1_2 ... (or H1to2p ...).
    """
    from d2net.evaluation.homography import evaluate_homography

    evaluation.run(partial(evaluate_homography, refined=refine), folder, printing)


def epipolar(
    *,
    folder: Folder,
    threshold: Annotated[float, _ransac(metavar="PIXELS", help="Largest error of MAGSAC.")] = 1.0,
    seeds: Seeds = "0,1,2",
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Fundamental matrices against hand-marked points: WxBS, day against night, seasons.

    DIR holds folders with images 01 and 02 and corrs.txt (x1 y1 x2 y2).
    """
    from d2net.evaluation.epipolar import evaluate_epipolar

    arguments: dict[str, Any] = {"threshold": threshold, "seeds": _numbers("--seeds", seeds, int)}
    evaluation.run(partial(evaluate_epipolar, **arguments), folder, printing)


def pose(
    *,
    folder: Folder,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="COLMAP model.", show_default="found in DIR"),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Pairs, or SuperGlue's pairs with poses.",
            show_default="all in the model",
        ),
    ] = None,
    min_overlap: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="Only pairs that both see this share of the points, 0 to 1.",
            show_default="none",
        ),
    ] = None,
    max_angle: Annotated[
        float | None,
        typer.Option(
            metavar="DEGREES",
            help="Only pairs whose optical axes differ by no more.",
            show_default="none",
        ),
    ] = None,
    solver: Annotated[
        Literal["poselib", "pycolmap", "magsac"],
        _ransac(metavar="NAME", help="poselib, pycolmap (slower) or magsac (OpenCV)."),
    ] = "poselib",
    thresholds: Annotated[
        str, _ransac(metavar="PIXELS,...", help="Largest errors, all of them reported.")
    ] = "0.5,1,2,4,8",
    seeds: Seeds = "0,1,2",
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Relative poses against a COLMAP model.

    DIR holds the photos, and the model if --model does not name it.
    """
    from d2net.evaluation.pose import evaluate_pose
    from d2net.evaluation.pose_pairs import PairFilter

    arguments: dict[str, Any] = {
        "pairs": PairFilter(model, pairs, min_overlap, max_angle),
        "solver": solver,
        "thresholds": _numbers("--thresholds", thresholds, float),
        "seeds": _numbers("--seeds", seeds, int),
    }
    evaluation.run(partial(evaluate_pose, **arguments), folder, printing)


def reconstruction(
    *,
    folder: Folder,
    model: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="True cameras (COLMAP).", show_default="found in DIR"),
    ] = None,
    camera_mode: Annotated[
        Literal["auto", "single", "per-folder", "per-image"],
        typer.Option(metavar="MODE", help="Who shares one: auto, single, per-folder, per-image."),
    ] = "auto",
    known_cameras: Annotated[
        bool,
        typer.Option(
            "--known-cameras", help="Take intrinsics from the true cameras, and keep them."
        ),
    ] = False,
    mapper: Annotated[
        Literal["incremental", "global"],
        typer.Option(metavar="KIND", help="incremental, or global (GLOMAP)."),
    ] = "incremental",
    refine: Annotated[
        bool, typer.Option("--refine", help="Keypoints moved along tracks, as d2net reconstruct.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of all random samples.")] = 0,
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Structure from motion: the columns of the Local Feature Evaluation Benchmark.

    DIR holds photos of one place, or folders that do; where a COLMAP model of the true cameras is
    there, their errors are told too.
    """
    from d2net.evaluation.reconstruction import evaluate_reconstruction
    from d2net.mapping.settings import MappingSettings

    arguments: dict[str, Any] = {
        "model": model,
        "known_cameras": known_cameras,
        "settings": MappingSettings(
            camera_mode=camera_mode, mapper=mapper, refine=refine, seed=seed
        ),
    }
    evaluation.run(partial(evaluate_reconstruction, **arguments), folder, printing)


def localization(
    *,
    folder: Folder,
    pairs: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Queries and photos of the map to match them with; repeatable.",
            show_default="pairs-query-*.txt in DIR",
        ),
    ] = None,
    queries: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Queries with intrinsics; repeatable.",
            show_default="queries/*_time_queries_with_intrinsics.txt in DIR",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="COLMAP model (a folder) or .nvm file of the map.",
            show_default="found in DIR/3D-models",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="True poses of the queries: name qw qx qy qz tx ty tz.",
            show_default="none",
        ),
    ] = None,
    night: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Place a scene's queries as they would look at night, too; written there.",
            show_default="none",
        ),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write poses as visuallocalization.net takes them.",
            show_default="none",
        ),
    ] = None,
    num_covisible: Annotated[
        int, typer.Option(metavar="N", help="Photos that each one of the map is matched with.")
    ] = 20,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="PIXELS",
            help="Largest reprojection error of an inlier.",
            show_default="12, InLoc 48, a scene's by the keypoints' uncertainty",
        ),
    ] = None,
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Photos placed in a map: Aachen Day-Night, InLoc, or a scene with a COLMAP model.

    DIR is in the layout of either, see docs/localization-benchmarks.md; or it holds photos and a
    COLMAP model of their cameras: every third is then left out of the map and placed in it.
    """
    if submission is not None and evaluation.compare:
        raise InputError("--submission is for the poses of one method; leave --compare out")
    from d2net.evaluation.localization import LocalizationSettings, evaluate_localization

    settings = LocalizationSettings(
        pairs=tuple(pairs or ()),
        queries=tuple(queries or ()),
        model=model,
        truth=truth,
        night=night,
        num_covisible=num_covisible,
        threshold=threshold,
    )
    evaluate = partial(evaluate_localization, settings=settings, submission=submission)
    evaluation.run(evaluate, folder, printing)


for _command in (homography, epipolar, pose, reconstruction, localization):
    app.command()(options.spread(_command))
