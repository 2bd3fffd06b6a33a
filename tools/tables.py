"""The tables of docs/accuracy.md, measured and written by one command.

usage: python tools/tables.py TRAIN EVAL OUTPUT [--tables NAME ...]
           [--methods METHOD ... | --new WEIGHTS] [--baselines DIR]

EVAL holds the folders oxford, webcam, wxbs, strecha, reichstag and sacre_coeur. TRAIN holds scenes
with photos in `images` and COLMAP models of them in `sparse` (other folders are ignored). METHOD is
what `d2net evaluate --features` takes, perhaps with a matcher as in "light + learned"; by default
each table has the methods named in this file. `--new WEIGHTS` gives every table a row for new
weights, and one for each baseline that has none yet; their weights (aliked-n16.pth, xfeat.pt) are
in DIR. Rows of methods that are not measured stay in the page as they are.

All figures go into OUTPUT/TABLE.json, and the simulated night photos into OUTPUT/night. Features,
matches and maps are kept (D2NET_CACHE), so the same command resumes a run that was stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from d2net.evaluation.cache import CachedSource
from d2net.evaluation.epipolar import evaluate_epipolar
from d2net.evaluation.feature_sources import open_source
from d2net.evaluation.homography import evaluate_homography
from d2net.evaluation.localization import evaluate_localization
from d2net.evaluation.localization_dataset import LocalizationSettings
from d2net.evaluation.pose import evaluate_pose
from d2net.evaluation.reconstruction import evaluate_reconstruction
from d2net.evaluation.results import OVERALL, Figures, Result, mean_figures, save_json
from d2net.io.colmap_model import find_model, read_model
from d2net.io.image_lists import find_images
from d2net.mapping.settings import MappingSettings

PAGE = Path(__file__).parents[1] / "docs" / "accuracy.md"

BASELINES = ("rootsift", "aliked:weights=aliked-n16.pth", "xfeat:weights=xfeat.pt")
LEARNED = ("light + learned", "light+seasons + learned")
METHODS = ("light+seasons", "light", *LEARNED, "ots:original", *BASELINES)
MAPPED = ("light+seasons", "light", *LEARNED, "rootsift")
LARGE_MAPS = ("light+seasons:max_keypoints=2000",)

PLANES = ("MMA@1", "MMA@3", "MMA@5", "MMA@10", "corner@3", "features", "matches")
POSES = ("AUC@1 t=1", "AUC@5 t=1", "AUC@10 t=1", "precision@3", "features", "matches")
MAPS = (
    *("images registered", "sparse points", "track length", "reprojection error"),
    *("position error", "rotation error"),
)
QUERIES = tuple(
    f"{group}: {figure}"
    for group in ("day", "night")
    for figure in ("1 %, 1°", "5 %, 5°", "median position error", "inliers")
)
COUNTS = ("features", "matches", "inliers", "images registered", "true images")


@dataclass(frozen=True)
class Table:
    """A table of the page.

    Attributes:
        evaluate: gives a source's result.
        figures: columns; "night: inliers" is a figure of the group "night".
        methods: the sources, which are the rows.
        settings: of every source.
        rows_are_groups: a row for each group of the last method instead.
    """

    evaluate: Callable[[CachedSource], Result]
    figures: tuple[str, ...]
    methods: tuple[str, ...] = METHODS
    settings: str = ""
    rows_are_groups: bool = False

    def source(self, method: str) -> CachedSource:
        """A method's features with the table's settings, and its matcher."""
        features, _, matcher = method.partition(" + ")
        joint = "," if ":" in features else ":"
        return CachedSource(
            open_source(f"{features}{joint}{self.settings}" if self.settings else features),
            matcher=matcher or "nearest",
        )

    def chosen(self, new: str | None, measured: str) -> Sequence[str]:
        """The table's methods, or new weights and the baselines that are not measured yet."""
        if new is None:
            return self.methods
        if self.rows_are_groups:
            return [new]
        return [*(name for name in BASELINES if f"`{name}" not in measured), new]

    def rows(self, results: Sequence[Result]) -> dict[str, str]:
        """Markdown rows by their first cell."""
        if self.rows_are_groups:
            groups = dict(results[-1].groups)
            groups.pop(OVERALL)
            return {name: self._row(name, {OVERALL: f}) for name, f in groups.items()}
        return {f"`{r.method}`": self._row(f"`{r.method}`", r.groups) for r in results}

    def _row(self, label: str, groups: Mapping[str, Figures]) -> str:
        cells = [label]
        for figure in self.figures:
            group, _, name = figure.rpartition(": ")
            cells.append(_number(name, groups[group or OVERALL].get(name)))
        return f"| {' | '.join(cells)} |"


def _number(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    if name in ("images registered", "true images", "called good"):
        return f"{value:g}"
    return f"{value:,.0f}" if value >= 100 or name in COUNTS else f"{value:.3f}"


def old_rows(name: str) -> str:
    """The page between `<!-- NAME -->` and `<!-- end of NAME -->`."""
    _, found, rest = PAGE.read_text().partition(f"<!-- {name} -->\n")
    old, closed, _ = rest.partition(f"<!-- end of {name} -->")
    if not found or not closed:
        raise SystemExit(f"{PAGE.name} has no place for {name!r}")
    return old


def write(name: str, table: Table, results: Sequence[Result]) -> None:
    """Put rows into a table of the page."""
    rows = {line[2:].partition(" |")[0]: line for line in old_rows(name).splitlines()[2:]}
    rows |= table.rows(results)
    head = ["scene" if table.rows_are_groups else "features", *table.figures]
    write_rows(name, head, list(rows.values()))


def write_rows(name: str, head: Sequence[str], rows: Sequence[str]) -> None:
    """Replace a table of the page."""
    begin, lines = (
        f"<!-- {name} -->\n",
        [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows],
    )
    new = "\n".join(lines) + "\n"
    PAGE.write_text(PAGE.read_text().replace(begin + old_rows(name), begin + new))


def tables(train: Path, evaluation: Path, nights: Path) -> dict[str, Table]:
    """All of them, in the order of the page."""
    strecha, reichstag = evaluation / "strecha", evaluation / "reichstag"
    one_camera = MappingSettings(camera_mode="single")
    fountain = read_model(strecha / "fountain-P11" / "model")
    true_camera = next(iter(fountain.cameras.values()))
    known_camera = replace(
        one_camera,
        camera_model=true_camera.model_name,
        camera_params=tuple(true_camera.params),
    )
    scenes = scene_folders(train)

    def reconstruction(folder: Path, settings: MappingSettings | None = None) -> Table:
        evaluate = partial(evaluate_reconstruction, folder=folder, settings=settings)
        return Table(evaluate, MAPS, MAPPED)

    def localization(scene: Path, methods: tuple[str, ...] = MAPPED) -> Table:
        settings = LocalizationSettings(night=nights / scene.name)
        evaluate = partial(evaluate_localization, folder=scene, settings=settings)
        return Table(evaluate, QUERIES, methods)

    return {
        "oxford": Table(partial(evaluate_homography, folder=evaluation / "oxford"), PLANES),
        "webcam": Table(partial(evaluate_homography, folder=evaluation / "webcam"), PLANES),
        "wxbs": Table(
            partial(evaluate_epipolar, folder=evaluation / "wxbs"),
            ("mAA", "mAA spread", "within@3", "within@10", "features", "matches", "inliers"),
            settings="max_edge=1024",
        ),
        "strecha": Table(partial(evaluate_pose, folder=strecha), POSES),
        "reichstag": Table(partial(evaluate_pose, folder=reichstag), POSES),
        "sfm_strecha": reconstruction(strecha, one_camera),
        "sfm_strecha_known": reconstruction(strecha, known_camera),
        "sfm_reichstag": reconstruction(reichstag),
        "sfm_sacre_coeur": replace(
            reconstruction(evaluation / "sacre_coeur"), figures=MAPS[:4]
        ),
        "maps": Table(
            partial(all_maps, folders=scenes, settings=one_camera),
            ("images registered", "true images", "called good", "sparse points", "position error",
             "rotation error"),
            LARGE_MAPS,
            rows_are_groups=True,
        ),
        "localization_fountain": localization(strecha / "fountain-P11"),
        "localization_herz_jesus": localization(strecha / "Herz-Jesus-P8"),
        "localization_largest": localization(scenes[-1], (*LARGE_MAPS, "rootsift")),
    }  # fmt: skip


def scene_folders(train: Path) -> list[Path]:
    """The scenes in a folder, the one with the fewest photos first."""
    scenes = [path for path in train.iterdir() if path.is_dir() and find_model(path)]
    return sorted(scenes, key=lambda path: (len(find_images([path / "images"])), path.name))


def all_maps(source: CachedSource, folders: Sequence[Path], settings: MappingSettings) -> Result:
    """Every scene mapped, as one result with a group for each.

    The settings' camera mode is for scenes of one camera; the others have a camera for each photo.
    """
    results = []
    for folder in folders:
        num_cameras = len(read_model(find_model(folder) or folder).cameras)
        cameras = settings if num_cameras == 1 else replace(settings, camera_mode="auto")
        results.append(evaluate_reconstruction(source, folder, settings=cameras))
        figures = results[-1].groups[folder.name]
        print(f"  {folder.name}: {figures['images registered']:.0f} images", flush=True)
    groups = {f.name: r.groups[f.name] for f, r in zip(folders, results, strict=True)}
    return replace(
        results[0],
        folder=str(folders[0].parent),
        pairs=[pair for result in results for pair in result.pairs],
        groups={**groups, OVERALL: mean_figures(list(groups.values()))},
    )


def main() -> None:
    """Measure every table with every method."""
    parser = argparse.ArgumentParser(usage=__doc__)
    for name in ("train", "evaluation", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tables", nargs="+", help="these alone")
    methods = parser.add_mutually_exclusive_group()
    methods.add_argument("--methods", nargs="+", help="in place of the tables' own")
    methods.add_argument("--new", help="a weights file, measured beside the baselines")
    parser.add_argument("--baselines", type=Path, default=Path(), help="folder of their weights")
    given = parser.parse_args()
    output = given.output
    known = tables(given.train, given.evaluation, output / "night")
    unknown = sorted({*(given.tables or ())} - {*known})
    if unknown:
        parser.error(f"there is no table {unknown[0]}; there are {', '.join(known)}")
    output.mkdir(parents=True, exist_ok=True)
    for name in given.tables or known:
        table, results = known[name], []
        for method in given.methods or table.chosen(given.new, old_rows(name)):
            print(f"{name}, {method}", flush=True)
            in_folder = method.replace("weights=", f"weights={given.baselines}/")
            results.append(table.evaluate(table.source(in_folder)))
            save_json(output / f"{name}.json", results)
        if results:
            write(name, table, results)


if __name__ == "__main__":
    main()
