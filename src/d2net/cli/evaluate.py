"""`d2net evaluate`: standard benchmarks on a folder of photos with ground truth."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from d2net.cli import console, options
from d2net.cli.outputs import check_output
from d2net.errors import InputError
from d2net.settings import CameraMode, Mapper

if TYPE_CHECKING:
    from d2net.evaluation.results import Result

    Protocol = Callable[..., Result]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Options that all benchmarks share.

    Features:
        features SOURCE: Weights (name or file), rootsift, aliked, xfeat, or a features file
            (h5). Settings follow a colon: ots:original,max_edge=1024.
        compare SOURCE: Another source to compare with; repeatable.
        matcher nearest|learned|FILE: As in `d2net match`, for --features; --compare uses nearest.
        max_keypoints N: Use the N keypoints with the highest scores. Default: all.

    Options:
        folder DIR: Photos with ground truth.
        output FILE: Write all results (json).
        html FILE: Write a page with tables, plots and matches.
    """

    features: str = "default"
    compare: list[str] | None = None
    matcher: str = "nearest"
    max_keypoints: int | None = None
    device: str = "auto"
    output: Path | None = None
    html: Path | None = None

    def run(
        self,
        evaluate: Protocol,
        folder: Path,
        printing: options.Printing,
        *inputs: Path | None,
        submission: Path | None = None,
    ) -> None:
        """Evaluate every source, print the table, and write the files."""
        if self.max_keypoints is not None and self.max_keypoints < 1:
            raise InputError(f"--max-keypoints must be at least 1, not {self.max_keypoints}")

        from d2net.cli import progress
        from d2net.evaluation import report
        from d2net.evaluation.cache import CachedSource
        from d2net.evaluation.feature_sources import open_source
        from d2net.evaluation.plots import check_matplotlib
        from d2net.evaluation.results import MARK, save_json
        from d2net.io.poses import read_poses

        for output, mark in ((self.output, MARK), (self.html, report.MARK)):
            if output is not None:
                check_output(output, *inputs, is_own=mark)
        if submission is not None:  # a file of poses in the folder may hold the true poses
            check_output(submission, folder, *inputs, is_own=read_poses)
        outputs = [path for path in (self.output, self.html, submission) if path is not None]
        if len({os.path.realpath(output) for output in outputs}) < len(outputs):
            raise InputError("two of --output, --html and --submission name the same file")
        if not folder.is_dir():
            raise InputError(f"there is no folder {folder}")
        device = options.find_device(self.device, printing)
        if self.html is not None:
            check_matplotlib()
        results = []
        specifications = [self.features, *(self.compare or ())]
        names = [Path(specification).stem for specification in specifications]
        sources = [open_source(specification, device) for specification in specifications]
        for number, features in enumerate(sources):
            if names.count(names[number]) > 1:  # files in two folders
                features.name = specifications[number]
            source = CachedSource(
                features,
                max_keypoints=self.max_keypoints,
                device=device,
                matcher="nearest" if number else self.matcher,
            )
            with progress.shown(printing, prefix=f"{source.name}, ") as report_progress:
                results.append(evaluate(source, folder, progress=report_progress))
        if self.output is not None:
            save_json(self.output, results)
        if self.html is not None:
            report.write_html(self.html, results, folder)
        if printing.json:
            console.print_json([result.to_dict() for result in results])
        elif not printing.quiet:
            for table in report.terminal_tables(results):
                console.out.print(table)


app = options.app("Run standard benchmarks.")


def homography(
    folder: Path, *, refine: bool = False, evaluation: Evaluation, printing: options.Printing
) -> None:
    """Measure matches on planar sequences (HPatches, Oxford).

    DIR holds folders with images 1, 2, ... and homographies H_1_2 ... (or H1to2p ...).

    Options:
        refine: Refine verified matches as d2net match --refine does.
    """
    from d2net.evaluation.homography import evaluate_homography

    evaluation.run(partial(evaluate_homography, refined=refine), folder, printing)


def epipolar(folder: Path, *, evaluation: Evaluation, printing: options.Printing) -> None:
    """Compare fundamental matrices with hand-marked points (WxBS, day and night, seasons).

    DIR holds folders with images 01 and 02 and corrs.txt (x1 y1 x2 y2).
    """
    from d2net.evaluation.epipolar import evaluate_epipolar

    evaluation.run(evaluate_epipolar, folder, printing)


def pose(
    folder: Path,
    *,
    model: Path | None = None,
    pairs: Path | None = None,
    solver: Literal["poselib", "magsac"] = "poselib",
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Compare relative poses with a COLMAP model.

    DIR holds the photos, and the model unless --model is given.

    Options:
        model MODEL: COLMAP model. Default: found in DIR.
        pairs FILE: Pairs to match; SuperGlue's lists with poses are read, too. Default: all.
        solver: RANSAC of poselib, or of OpenCV (magsac).
    """
    from d2net.evaluation.pose import evaluate_pose

    evaluate = partial(evaluate_pose, model=model, pairs=pairs, solver=solver)
    evaluation.run(evaluate, folder, printing, model, pairs)


def reconstruction(
    folder: Path,
    *,
    model: Path | None = None,
    camera_mode: CameraMode = "auto",
    mapper: Mapper = "incremental",
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Measure structure from motion (Local Feature Evaluation Benchmark, ETH3D).

    DIR holds photos of one place, or one folder per place. Pose errors are reported if a COLMAP
    model of the true cameras is found.

    Options:
        model MODEL: COLMAP model of the true cameras. Default: found in DIR.
    """
    from d2net.evaluation.reconstruction import evaluate_reconstruction
    from d2net.mapping.settings import MappingSettings

    settings = MappingSettings(camera_mode=camera_mode, mapper=mapper)
    evaluate = partial(evaluate_reconstruction, model=model, settings=settings)
    evaluation.run(evaluate, folder, printing, model)


def localization(
    folder: Path,
    *,
    pairs: list[Path] | None = None,
    queries: list[Path] | None = None,
    model: Path | None = None,
    truth: Path | None = None,
    night: Path | None = None,
    submission: Path | None = None,
    threshold: float | None = None,
    evaluation: Evaluation,
    printing: options.Printing,
) -> None:
    """Localize queries in a map: Aachen Day-Night, or a scene with a COLMAP model.

    DIR has the layout of Aachen (docs/localization-benchmarks.md), or it is a scene with photos and
    a COLMAP model. In a scene, every third photo is left out of the map and localized.

    Options:
        pairs FILE: Pairs of queries and map photos; repeatable. Default: pairs-query-*.txt in DIR.
        queries FILE: Lists of queries with intrinsics; repeatable. Default:
            queries/*_time_queries_with_intrinsics.txt in DIR.
        model PATH: Folder of the map's COLMAP model. Default: found in DIR/3D-models.
        truth FILE: True poses of the queries: name qw qx qy qz tx ty tz.
        night DIR: Scenes: also localize the queries as simulated night photos, written to DIR.
        submission FILE: Write the poses in the format of visuallocalization.net.
        threshold PIXELS: Largest reprojection error of an inlier. Default: 12 for Aachen; for
            scenes it follows from the keypoints' uncertainty.
    """
    if submission is not None and evaluation.compare:
        raise InputError("--submission writes the poses of one source: leave out --compare")
    from d2net.evaluation.localization import evaluate_localization
    from d2net.evaluation.localization_dataset import LocalizationSettings

    settings = LocalizationSettings(
        pairs=tuple(pairs or ()),
        queries=tuple(queries or ()),
        model=model,
        truth=truth,
        night=night,
        threshold=threshold,
    )
    evaluate = partial(evaluate_localization, settings=settings, submission=submission)
    lists = (*settings.pairs, *settings.queries)
    evaluation.run(evaluate, folder, printing, model, truth, *lists, submission=submission)


for _command in (homography, epipolar, pose, reconstruction, localization):
    options.add_command(app, _command)
