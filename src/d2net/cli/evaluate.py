"""`d2net evaluate`: standard benchmarks on a folder of photos with ground truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from d2net.cli import console, options
from d2net.cli.outputs import check_output
from d2net.errors import InputError

if TYPE_CHECKING:
    from d2net.evaluation.results import Result
    from d2net.progress import Progress

    Protocol = Callable[..., Result]

_features = partial(typer.Option, rich_help_panel="Features")

_ransac = partial(typer.Option, rich_help_panel="RANSAC")

Seeds = Annotated[
    str, _ransac(metavar="N,...", help="Seeds of RANSAC; results are means over them.")
]
Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Photos with ground truth.")]


def _with_source(progress: Progress, source: str) -> Progress:
    """A callback that shows the name of the source before the stage."""
    return lambda stage, done, total: progress(f"{source}, {stage}", done, total)


@dataclass(frozen=True)
class Evaluation:
    """Options that all benchmarks share."""

    features: Annotated[
        str,
        _features(
            metavar="SOURCE",
            help="Weights by name or file, rootsift, aliked, disk, xfeat, or a features file (h5). "
            "Settings follow a colon: ots:original,max_edge=1024.",
        ),
    ] = "default"
    compare: Annotated[
        list[str] | None, _features(metavar="SOURCE", help="Another source; repeatable.")
    ] = None
    matcher: Annotated[
        str,
        _features(
            metavar="nearest|FILE",
            help="Matcher of the features, see `d2net match`; those to compare get nearest.",
        ),
    ] = "nearest"
    max_keypoints: Annotated[
        int | None, _features(metavar="N", help="Use the N highest scores.", show_default="all")
    ] = None
    device: options.Device = "auto"
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="All results, json.")
    ] = None
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Report with plots and pairs.")
    ] = None

    def run(self, evaluate: Protocol, folder: Path, printing: options.Printing) -> None:
        """Evaluate every source, print the table, and write the files."""
        if self.max_keypoints is not None and self.max_keypoints < 1:
            raise InputError(f"--max-keypoints must be at least 1, not {self.max_keypoints}")
        for output in (self.output, self.html):
            if output is not None:
                check_output(output)
        device = options.find_device(self.device, printing)

        from d2net.cli import progress
        from d2net.evaluation import report
        from d2net.evaluation.cache import CachedFeatures
        from d2net.evaluation.plots import check_matplotlib
        from d2net.evaluation.results import save_json
        from d2net.evaluation.sources import open_source

        if self.html is not None:
            check_matplotlib()
        results = []
        compared = [(specification, "nearest") for specification in self.compare or ()]
        for specification, matcher in [(self.features, self.matcher), *compared]:
            source = CachedFeatures(
                open_source(specification, device),
                max_keypoints=self.max_keypoints,
                device=device,
                matcher=matcher,
            )
            with progress.shown(printing) as report_progress:
                shown = _with_source(report_progress, source.name)
                results.append(evaluate(source, folder, progress=shown))
        if self.output is not None:
            save_json(self.output, results)
        if self.html is not None:
            report.write_html(self.html, results, folder)
        if printing.json:
            console.print_json([result.to_dict() for result in results])
        elif not printing.quiet:
            for table in report.terminal_tables(results):
                console.out.print(table)


app = options.app(help="Run standard benchmarks.")


def homography(
    *,
    folder: Folder,
    refine: Annotated[
        bool, typer.Option("--refine", help="Refine verified matches as d2net match --refine does.")
    ] = False,
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Matching accuracy on planar sequences (HPatches, Oxford).

    DIR holds folders with images 1, 2, ... and homographies H_1_2 ... (or H1to2p ...).
    """
    from d2net.evaluation.homography import evaluate_homography

    evaluation.run(partial(evaluate_homography, refined=refine), folder, printing)


def epipolar(
    *,
    folder: Folder,
    threshold: Annotated[
        float, _ransac(metavar="PIXELS", help="Inlier threshold of MAGSAC.")
    ] = 1.0,
    seeds: Seeds = "0,1,2",
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Fundamental matrices against hand-marked points (WxBS, day and night, seasons).

    DIR holds folders with images 01 and 02 and corrs.txt (x1 y1 x2 y2).
    """
    from d2net.evaluation.epipolar import evaluate_epipolar

    arguments: dict[str, Any] = {
        "threshold": threshold,
        "seeds": options.numbers("--seeds", seeds, int),
    }
    evaluation.run(partial(evaluate_epipolar, **arguments), folder, printing)


def pose(
    *,
    folder: Folder,
    model: Annotated[
        Path | None,
        typer.Option(metavar="MODEL", help="COLMAP model.", show_default="found in DIR"),
    ] = None,
    pairs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Pairs to match; SuperGlue's lists with poses are read, too.",
            show_default="all pairs of the model",
        ),
    ] = None,
    min_overlap: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE", help="Only pairs with at least this share of common points, 0 to 1."
        ),
    ] = None,
    max_angle: Annotated[
        float | None,
        typer.Option(
            metavar="DEGREES", help="Only pairs with at most this angle between the optical axes."
        ),
    ] = None,
    solver: Annotated[
        Literal["poselib", "pycolmap", "magsac"],
        _ransac(metavar="NAME", help="poselib, pycolmap (slower) or magsac (OpenCV)."),
    ] = "poselib",
    thresholds: Annotated[
        str, _ransac(metavar="PIXELS,...", help="Inlier thresholds; results for each are reported.")
    ] = "0.5,1,2,4,8",
    seeds: Seeds = "0,1,2",
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Relative poses against a COLMAP model.

    DIR holds the photos, and the model unless --model is given.
    """
    from d2net.evaluation.pose import evaluate_pose
    from d2net.evaluation.pose_pairs import PairFilter

    arguments: dict[str, Any] = {
        "pairs": PairFilter(model, pairs, min_overlap, max_angle),
        "solver": solver,
        "thresholds": options.numbers("--thresholds", thresholds, float),
        "seeds": options.numbers("--seeds", seeds, int),
    }
    evaluation.run(partial(evaluate_pose, **arguments), folder, printing)


def reconstruction(
    *,
    folder: Folder,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="MODEL", help="COLMAP model of the true cameras.", show_default="found in DIR"
        ),
    ] = None,
    camera_mode: options.CameraMode = "auto",
    mapper: options.Mapper = "incremental",
    refine: Annotated[
        bool, typer.Option("--refine", help="Adjust keypoints as d2net reconstruct --refine does.")
    ] = False,
    seed: options.Seed = 0,
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Structure from motion (Local Feature Evaluation Benchmark, ETH3D).

    DIR holds photos of one place, or one folder per place. Pose errors are reported if a COLMAP
    model of the true cameras is found.
    """
    from d2net.evaluation.reconstruction import evaluate_reconstruction
    from d2net.mapping.settings import MappingSettings

    arguments: dict[str, Any] = {
        "model": model,
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
            help="Pairs of queries and map photos; repeatable.",
            show_default="pairs-query-*.txt in DIR",
        ),
    ] = None,
    queries: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Lists of queries with intrinsics; repeatable.",
            show_default="queries/*_time_queries_with_intrinsics.txt in DIR",
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Folder of the map's COLMAP model.",
            show_default="found in DIR/3D-models",
        ),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="True poses of the queries: name qw qx qy qz tx ty tz."),
    ] = None,
    night: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Scenes: also localize the queries darkened as if at night, and write them there.",
        ),
    ] = None,
    submission: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the poses in the format of visuallocalization.net."
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="PIXELS",
            help="Largest reprojection error of an inlier.",
            show_default="Aachen 12, InLoc 48, scenes by the keypoints' uncertainty",
        ),
    ] = None,
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Poses of queries in a map: Aachen Day-Night, InLoc, or a scene with a COLMAP model.

    DIR has the layout of Aachen or InLoc (docs/localization-benchmarks.md), or it is a scene with
    photos and a COLMAP model. Of a scene every third photo is left out of the map and localized.
    """
    if submission is not None and evaluation.compare:
        raise InputError("--submission writes the poses of one source: leave out --compare")
    if submission is not None:
        check_output(submission)
    from d2net.evaluation.localization import LocalizationSettings, evaluate_localization

    settings = LocalizationSettings(
        pairs=tuple(pairs or ()),
        queries=tuple(queries or ()),
        model=model,
        truth=truth,
        night=night,
        threshold=threshold,
    )
    evaluate = partial(evaluate_localization, settings=settings, submission=submission)
    evaluation.run(evaluate, folder, printing)


for _command in (homography, epipolar, pose, reconstruction, localization):
    options.add_command(app, _command)
