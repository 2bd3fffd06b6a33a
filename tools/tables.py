"""The tables of ACCURACY.md, measured and written by one command.

usage: python tools/tables.py TRAIN EVAL OUTPUT [--tables NAME,...] [--methods METHOD ...]

EVAL holds the folders oxford, webcam, wxbs, strecha, reichstag and sacre_coeur, TRAIN scenes with
photos in `images` and COLMAP's models of them in `sparse` (other folders are passed over). A METHOD
is what `d2net evaluate --features` takes; without any, each table has those named in this file.
OUTPUT/TABLE.json is written for each table, and the queries' simulated nights below OUTPUT/night.
Features, matches and maps are kept (D2NET_CACHE), so that the same command goes on where it was
stopped. A table enters ACCURACY.md when all its methods have been measured.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import accuracy
import numpy as np

from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.epipolar import evaluate_epipolar
from d2net.evaluation.homography import evaluate_homography
from d2net.evaluation.localization import LocalizationSettings, evaluate_localization
from d2net.evaluation.pose import evaluate_pose
from d2net.evaluation.reconstruction import evaluate_reconstruction
from d2net.evaluation.results import Result, save_json
from d2net.evaluation.sources import open_source
from d2net.io.colmap_model import find_model
from d2net.io.image_lists import find_images
from d2net.mapping.settings import MappingSettings

Evaluate = Callable[[CachedFeatures], Result]

DEEP = "detector=deep,descriptor=plain"
OURS = ("seasons", "seasons:detector=corner", f"seasons:{DEEP}")
MATCHING = (
    *OURS,
    "seasons:descriptor=fused",
    f"ots:{DEEP}",
    "ots:original",
    "rootsift",
    "aliked:weights=aliked-n16.pth",
)
KINDS = (
    *(f"ots:detector=deep,descriptor={form}" for form in ("plain", "root", "fused")),
    *(
        f"ots:detector=corner,descriptor={form},max_keypoints=2000"
        for form in ("plain", "root", "fused")
    ),
    *(f"ots:detector=both,descriptor={form},max_keypoints=4000" for form in ("root", "fused")),
)
MAPS = ("seasons:max_keypoints=2000", "seasons:detector=corner,max_keypoints=2000")
LOCALIZATION = ":1 %, 1°,5 %, 5°,median position error,inliers"


@dataclass(frozen=True)
class Table:
    """What is measured.

    Attributes:
        evaluate: a source's result.
        methods: the sources.
        figures: shown and, after a colon, shown by group; see tools/accuracy.py.
        settings: of every source.
    """

    evaluate: Evaluate
    methods: tuple[str, ...] = MATCHING
    figures: str = ""
    settings: str = ""

    def source(self, method: str) -> CachedFeatures:
        """A method's features with the table's settings."""
        joint = "," if ":" in method else ":"
        return CachedFeatures(
            open_source(f"{method}{joint}{self.settings}" if self.settings else method)
        )


def tables(train: Path, evaluation: Path, nights: Path) -> dict[str, Table]:
    """All of them, in ACCURACY.md's order."""
    oxford, wxbs = evaluation / "oxford", evaluation / "wxbs"
    strecha, reichstag = evaluation / "strecha", evaluation / "reichstag"
    one_camera = MappingSettings(camera_mode="single")
    folders = scenes(train)
    planes = partial(evaluate_homography, folder=oxford)
    marks = Table(partial(evaluate_epipolar, folder=wxbs), settings="max_edge=1024")
    poses = "AUC@1 t=1,AUC@5 t=1,AUC@10 t=1,AUC@1 t=2,AUC@5 t=2,AUC@10 t=2,precision@3,features"

    def left_out(scene: Path, *methods: str) -> Table:
        settings = LocalizationSettings(night=nights / scene.name)
        evaluate = partial(evaluate_localization, folder=scene, settings=settings)
        return Table(evaluate, (*methods, "rootsift"), LOCALIZATION)

    return {
        "oxford": Table(planes),
        "webcam": Table(partial(evaluate_homography, folder=evaluation / "webcam")),
        "wxbs": marks,
        "strecha": Table(partial(evaluate_pose, folder=strecha)),
        "reichstag": Table(partial(evaluate_pose, folder=reichstag)),
        "kinds_oxford": Table(planes, KINDS),
        "kinds_wxbs": replace(marks, methods=KINDS),
        "kinds_reichstag": Table(partial(evaluate_pose, folder=reichstag), KINDS, poses),
        "kinds_strecha": Table(partial(evaluate_pose, folder=strecha), KINDS, poses),
        "sfm_strecha": Table(partial(evaluate_reconstruction, folder=strecha, settings=one_camera)),
        "sfm_strecha_known": Table(
            partial(evaluate_reconstruction, folder=strecha, known_cameras=True),
            figures=":position error,rotation error",
        ),
        "sfm_reichstag": Table(partial(evaluate_reconstruction, folder=reichstag)),
        "sfm_sacre_coeur": Table(
            partial(evaluate_reconstruction, folder=evaluation / "sacre_coeur")
        ),
        "localization_fountain": left_out(strecha / "fountain-P11", *OURS),
        "localization_herz_jesus": left_out(strecha / "Herz-Jesus-P8", *OURS),
        "localization_largest": left_out(folders[-1], *MAPS),
        "maps": Table(
            partial(all_maps, folders=folders, settings=one_camera),
            MAPS,
            "registered share,sparse points,track length,reprojection error"
            ":images registered,sparse points,position error,rotation error,mapping seconds",
        ),
    }


def scenes(train: Path) -> list[Path]:
    """The scenes of a folder, that with fewest photos first."""
    found = [path for path in train.iterdir() if path.is_dir() and find_model(path)]
    return sorted(found, key=lambda path: (len(find_images([path / "images"])), path.name))


def all_maps(source: CachedFeatures, folders: Sequence[Path], settings: MappingSettings) -> Result:
    """Every scene mapped, as one result with a group for each."""
    results = []
    for folder in folders:
        results.append(evaluate_reconstruction(source, folder, settings=settings))
        figures = results[-1].groups[folder.name]
        print(f"  {folder.name}: {figures['images registered']:.0f} images", flush=True)
    groups = {
        folder.name: r.groups[folder.name] for folder, r in zip(folders, results, strict=True)
    }
    names = [
        name for name in results[0].groups["overall"] if all(name in g for g in groups.values())
    ]
    overall = {name: float(np.mean([g[name] for g in groups.values()])) for name in names}
    return replace(
        results[0],
        folder=str(folders[0].parent),
        pairs=[pair for result in results for pair in result.pairs],
        groups={**groups, "overall": overall},
    )


def main() -> None:
    """Measure every table with every method."""
    parser = argparse.ArgumentParser(usage=__doc__)
    for name in ("train", "evaluation", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--tables", help="only these, separated by commas")
    parser.add_argument("--methods", nargs="+", help="in place of the tables' own")
    asked = parser.parse_args()
    output = asked.output
    known = tables(asked.train, asked.evaluation, output / "night")
    chosen = asked.tables.split(",") if asked.tables else list(known)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        parser.error(f"no table {unknown[0]}; there are {', '.join(known)}")
    output.mkdir(parents=True, exist_ok=True)
    for name in chosen:
        table = known[name]
        results = []
        for method in asked.methods or table.methods:
            print(f"{name}, {method}", flush=True)
            results.append(table.evaluate(table.source(method)))
            save_json(output / f"{name}.json", results)
        accuracy.write(name, output / f"{name}.json", *table.figures.partition(":")[::2])


if __name__ == "__main__":
    main()
