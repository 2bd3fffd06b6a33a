"""Maps and localization measured on real scenes: the tables of ACCURACY.md, by one command.

usage: python tools/maps.py TRAIN EVAL OUTPUT METHOD [METHOD ...] [--tables NAME,...]

TRAIN holds scenes with photos in `images` and COLMAP's models of them in `sparse` (other folders
are passed over), EVAL the folders strecha, reichstag and sacre_coeur. A METHOD is what `d2net
evaluate --features` takes, as `ots:keypoints=corner,descriptor=fused,max_keypoints=2000`, or
rootsift. OUTPUT/TABLE.json is written for each table, and the queries' simulated nights below
OUTPUT/night. Features, matches and maps are kept (D2NET_CACHE), so that the same command goes on
where it was stopped. At the end the command is printed that puts the tables into ACCURACY.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.localization import evaluate_localization
from d2net.evaluation.reconstruction import evaluate_reconstruction
from d2net.evaluation.results import Result, save_json
from d2net.evaluation.sources import open_source
from d2net.formats.models import find_model
from d2net.image_lists import find_images

Evaluate = Callable[[CachedFeatures], Result]

FIGURES = {
    "maps": "images registered,true images,registered share,sparse points,track length,"
    "reprojection error,position error,rotation error,mapping seconds"
    ":images registered,sparse points,reprojection error,mapping seconds",
    "sfm_strecha_known": ":position error,rotation error",
    "sfm_reichstag_maps": "",
    "sfm_sacre_coeur_maps": "",
}
"""Figures of a table and, after a colon, those shown by scene; see tools/accuracy.py."""
LOCALIZATION = ":1 %, 1°,5 %, 5°,median position error,inliers"


def scenes(train: Path) -> list[Path]:
    """The scenes of a folder, that with fewest photos first."""
    found = [path for path in train.iterdir() if path.is_dir() and find_model(path)]
    return sorted(found, key=lambda path: (len(find_images([path / "images"])), path.name))


def all_maps(folders: list[Path], source: CachedFeatures) -> Result:
    """Every scene mapped, as one result with a group for each."""
    results = []
    for folder in folders:
        results.append(evaluate_reconstruction(source, folder))
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


def tables(train: Path, evaluation: Path, nights: Path) -> dict[str, Evaluate]:
    """What is measured, the quick first."""
    folders = scenes(train)

    def localization(scene: Path) -> Evaluate:
        return lambda source: evaluate_localization(source, scene, night=nights / scene.name)

    strecha = evaluation / "strecha"
    return {
        "sfm_strecha_known": lambda s: evaluate_reconstruction(s, strecha, known_cameras=True),
        "sfm_reichstag_maps": lambda s: evaluate_reconstruction(s, evaluation / "reichstag"),
        "sfm_sacre_coeur_maps": lambda s: evaluate_reconstruction(s, evaluation / "sacre_coeur"),
        "localization_fountain": localization(strecha / "fountain-P11"),
        "localization_herz_jesus": localization(strecha / "Herz-Jesus-P8"),
        "localization_largest": localization(folders[-1]),
        "maps": lambda source: all_maps(folders, source),
    }


def main() -> None:
    """Measure every table with every method."""
    parser = argparse.ArgumentParser(usage=__doc__)
    for name in ("train", "evaluation", "output"):
        parser.add_argument(name, type=Path)
    parser.add_argument("methods", nargs="+")
    parser.add_argument("--tables", help="only these, separated by commas")
    asked = parser.parse_args()
    output = asked.output
    sources = [CachedFeatures(open_source(method)) for method in asked.methods]
    known = tables(asked.train, asked.evaluation, output / "night")
    chosen = asked.tables.split(",") if asked.tables else list(known)
    unknown = sorted(set(chosen) - set(known))
    if unknown:
        parser.error(f"no table {unknown[0]}; there are {', '.join(known)}")
    output.mkdir(parents=True, exist_ok=True)
    arguments = []
    for table in chosen:
        evaluate = known[table]
        results = []
        for source in sources:
            print(f"{table}, {source.name}", flush=True)
            results.append(evaluate(source))
            save_json(output / f"{table}.json", results)
        arguments.append(f"'{table}={output / table}.json:{FIGURES.get(table, LOCALIZATION)}'")
    print("python tools/accuracy.py", *arguments)


if __name__ == "__main__":
    main()
