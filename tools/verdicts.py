"""How many inliers right and wrong queries have in a map: what the limits of verdicts rest on.

usage: python tools/verdicts.py SCENES METHOD [NAME ...]

SCENES holds folders with photos in `images` and COLMAP's models of them in `sparse`; NAME are
those that are used (all by default). METHOD is what `d2net evaluate --features` takes. Of each
scene a map is made without every third photo, as `d2net evaluate localization` makes it. Right
queries are the photos left out; wrong ones are photos of the other scenes, at most `WRONG` of each.
Both are placed as `d2net localize` places them, with their known camera and with its focal length
estimated. Printed is a table of EXPERIMENTS.md: by least number of inliers, the share of queries
that have as many. A right query that is placed neither within 5 % of the cameras' spread nor within
5 degrees of the truth has gone astray.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from d2net.evaluation.cache import CachedFeatures
from d2net.evaluation.held_out import held_out, pairs_by_looks, queries_by_looks
from d2net.evaluation.localization_data import LocalizationData, Query
from d2net.evaluation.localization_map import QueryMap, largest_error, open_map
from d2net.evaluation.photos import Photos
from d2net.evaluation.sources import open_source
from d2net.features import Matches
from d2net.geometry.absolute import AbsolutePoseOptions
from d2net.geometry.alignment import rotation_angle
from d2net.io.colmap_model import find_model
from d2net.mapping.localize import pose_threshold
from d2net.mapping.query_pose import estimate_query_pose

WRONG = 12
LEAST = (6, 8, 10, 12, 15, 20, 25, 30, 40, 60)
KINDS = ("right", "astray", "wrong")


@dataclass(frozen=True)
class Answer:
    """What became of a query.

    Attributes:
        kind: "right", "astray" (of this place, but put elsewhere) or "wrong" (of another place).
        known: whether its camera was known.
        inliers: keypoints that agree with its pose; 0 without one.
        deviation: of its rotation in degrees, by itself.
    """

    kind: str
    known: bool
    inliers: int
    deviation: float


def answers(source: CachedFeatures, folder: Path, others: list[LocalizationData]) -> list[Answer]:
    """Of all queries to the map of one scene."""
    data = scene(folder)
    strangers = {
        f"{number}/{query.name}": (query, other)
        for number, other in enumerate(others)
        for query in other.queries[:WRONG]
    }
    elsewhere = {name: other.photos / query.name for name, (query, other) in strangers.items()}
    queries = [*data.queries, *(replace(q, name=name) for name, (q, _) in strangers.items())]
    data = replace(data, queries=queries, elsewhere=elsewhere)
    photos = Photos(source, data.photos, None, "cpu", elsewhere)
    queries = queries_by_looks(data, photos)
    of_map = pairs_by_looks(data, photos)
    wanted = [*of_map, *((query.name, name) for query in queries for name in query.candidates)]
    photos.match(photos.unmatched(wanted), lambda _: None)
    map_ = open_map(data, photos, of_map, largest_error(data, photos))
    with photos.matches() as matches:
        return [
            answer for query in queries for answer in placed(query, data, photos, matches, map_)
        ]


def placed(
    query: Query,
    data: LocalizationData,
    photos: Photos,
    matches: Callable[[str, str], Matches],
    map_: QueryMap,
) -> Iterator[Answer]:
    """A query with its known camera, and with the focal length estimated."""
    features = photos.features(query.name)
    true = (data.truth or {}).get(query.name)
    for known in (True, False):
        options = AbsolutePoseOptions(
            threshold=pose_threshold(features), estimate_focal_length=not known
        )
        found = estimate_query_pose(
            features,
            query.camera(features.image_size),
            options,
            map_.groups(query.candidates),
            lambda name: matches(query.name, name),
            map_.places,
        )
        kind, pose = "wrong" if true is None else "astray", found.pose
        if pose is not None and true is not None:
            away = np.linalg.norm(pose.centre - true.inverse().translation) / data.unit
            turned = rotation_angle(
                np.asarray(pose.cam_from_world.rotation.matrix()),
                np.asarray(true.rotation.matrix()),
            )
            kind = "right" if away <= 5 and turned <= 5 else "astray"
        deviation = np.inf if pose is None else pose.rotation_deviation
        yield Answer(kind, known, found.num_inliers, deviation)


def scene(folder: Path) -> LocalizationData:
    """A scene with every third photo left out."""
    model = find_model(folder)
    if model is None:
        sys.exit(f"{folder} holds no COLMAP model")
    return held_out(folder, model, None, 0)


def table(found: list[Answer]) -> str:
    """By kind of query and least number of inliers, the percentage that has as many."""
    lines = ["| queries | camera | number | most | " + " | ".join(map(str, LEAST)) + " |"]
    lines.append("|---" * (4 + len(LEAST)) + "|")
    for kind in KINDS:
        for known in (True, False):
            inliers = np.array([a.inliers for a in found if (a.kind, a.known) == (kind, known)])
            if not len(inliers):
                continue
            shares = " | ".join(f"{100 * np.mean(inliers >= least):.1f}" for least in LEAST)
            camera = "known" if known else "estimated"
            lines.append(f"| {kind} | {camera} | {len(inliers)} | {inliers.max()} | {shares} |")
    return "\n".join(lines)


def main() -> None:
    """Print the table, and the wrong answers with most inliers."""
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    root = Path(sys.argv[1])
    names = sys.argv[3:] or sorted(p.name for p in root.iterdir() if p.is_dir() and find_model(p))
    source = CachedFeatures(open_source(sys.argv[2]))
    found: list[Answer] = []
    for name in names:
        others = [scene(root / other) for other in names if other != name]
        found += answers(source, root / name, others)
        print(name, len(found), flush=True)
    print(table(found))
    false = sorted((a for a in found if a.kind != "right"), key=lambda a: -a.inliers)[:8]
    for answer in false:
        print(answer)


if __name__ == "__main__":
    main()
