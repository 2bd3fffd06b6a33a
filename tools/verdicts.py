"""How often the verdicts on pairs and queries are right: two tables of docs/accuracy.md.

usage: python tools/verdicts.py TRAIN OUTPUT [--tables pairs queries] [--baselines DIR]

TRAIN holds scenes with photos in `images` and COLMAP models with points in `sparse`; views of
fixed cameras in `aligned_webcam` and `aligned_daynight` (VIEW/images); `aligned_msrs/visible` and
`thermal` with equal names; and photos of other places in folders `singles_*`. DIR holds
aliked-n16.pth. Photos are reduced to 640 px.

Features of pairs are kept (D2NET_CACHE), and maps in OUTPUT/WEIGHTS, so the same command resumes
an interrupted run. All figures go into OUTPUT/TABLE.json.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tables import write_rows

from d2net import D2Net, Map, reconstruct
from d2net.evaluation.cache import CachedPhotos, CachedSource
from d2net.evaluation.feature_sources import open_source
from d2net.evaluation.localization_dataset import read_held_out
from d2net.features import Features
from d2net.geometry.alignment import rotation_angle, spread_of
from d2net.geometry.cameras import known_camera
from d2net.io.colmap_model import find_model, read_model, write_model
from d2net.io.image_lists import find_images
from d2net.io.images import to_pixels
from d2net.matching import create_matcher
from d2net.matching.retrieval import GlobalDescriptors
from d2net.matching.verification import verify
from d2net.progress import no_progress

PAIR_METHODS = (
    "light+seasons:max_keypoints=2048,max_edge=640",
    "light+seasons:max_keypoints=2048,max_edge=640 + learned",
    "light:max_keypoints=2048,max_edge=640",
    "light:max_keypoints=2048,max_edge=640 + learned",
    "aliked:weights=aliked-n16.pth,max_keypoints=2048,max_edge=640",
    "rootsift:max_edge=640",
)
QUERY_WEIGHTS = ("light+seasons", "light")

LEFT_OUT = ("singles_paris",)  # shows buildings of the scenes paris_*
PAIRS_PER_SCENE = 6
PLACES_PER_FOLDER = 10  # photos of a folder that take part in pairs of different places
MIN_COMMON = 15  # points that the two photos of a true pair share at least
NUM_DIFFERENT = 1000  # two thirds are similar, the others drawn at random
HELD_OUT = 3  # every third photo of a scene is a query
NUM_FOREIGN = 30  # queries of other places, for each map

Pair = tuple[Path, Path]


def scenes(train: Path) -> list[Path]:
    """The folders with a COLMAP model."""
    return sorted(path for path in train.iterdir() if path.is_dir() and find_model(path))


def places(train: Path) -> dict[str, list[Path]]:
    """Photos by place. A folder counts as one place, because its photos may show the same thing.

    So do the three cameras of aligned_webcam/panorama, whose views overlap.
    """
    views = [v / "images" for kind in ("webcam", "daynight") for v in views_of(train, kind)]
    singles = sorted(p for p in train.glob("singles_*") if p.name not in LEFT_OUT)
    folders = [*(s / "images" for s in scenes(train)), *views, *singles]
    found: dict[str, list[Path]] = {}
    for folder in folders:
        place = re.sub(r"panorama\d", "panorama", str(folder.relative_to(train)))
        found.setdefault(place, []).extend(photo.path for photo in find_images([folder]))
    return found


def views_of(train: Path, kind: str) -> list[Path]:
    """The fixed cameras of a kind."""
    return sorted(v for v in (train / f"aligned_{kind}").iterdir() if (v / "images").is_dir())


def true_pairs(train: Path, rng: random.Random) -> dict[str, list[Pair]]:
    """Pairs of the same place by their kind."""
    found: dict[str, list[Pair]] = {"scenes": [], "day and night": [], "infrared": []}
    for scene in scenes(train):
        images = read_model(find_model(scene) or scene).images.values()
        points = {
            image.name: {p.point3D_id for p in image.points2D if p.has_point3D()}
            for image in images
        }
        common = [
            (scene / "images" / a, scene / "images" / b)
            for a, b in itertools.combinations(sorted(points), 2)
            if len(points[a] & points[b]) >= MIN_COMMON
        ]
        found["scenes"] += rng.sample(common, min(PAIRS_PER_SCENE, len(common)))
    for view in [*views_of(train, "webcam"), *views_of(train, "daynight")]:
        photos = [photo.path for photo in find_images([view / "images"])]
        by_brightness = sorted(photos, key=lambda path: float(to_pixels(path).mean()))
        found["day and night"].append((by_brightness[-1], by_brightness[0]))
    for photo in sorted((train / "aligned_msrs" / "visible").iterdir()):
        found["infrared"].append((photo, train / "aligned_msrs" / "thermal" / photo.name))
    return found


def different_pairs(photos_of: Mapping[str, Sequence[Path]], rng: random.Random) -> list[Pair]:
    """Pairs of photos of different places; two thirds are similar by retrieval with `light`."""
    chosen = {
        place: rng.sample(list(photos), min(PLACES_PER_FOLDER, len(photos)))
        for place, photos in photos_of.items()
    }
    place_of = {str(path): place for place, paths in chosen.items() for path in paths}
    model = D2Net.from_pretrained("light", max_keypoints=2048, max_edge=640)
    features = {path: model.extract(path).half() for path in place_of}
    index = GlobalDescriptors.build(features)
    similar = {
        (min(path, name), max(path, name)): similarity
        for path, hits in index.neighbours(2 * PLACES_PER_FOLDER).items()
        for name, similarity in hits
        if place_of[name] != place_of[path]
    }
    pairs = dict.fromkeys(sorted(similar, key=lambda p: -similar[p])[: 2 * NUM_DIFFERENT // 3])
    while len(pairs) < NUM_DIFFERENT:
        a, b = rng.sample(sorted(place_of), 2)
        if place_of[a] != place_of[b]:
            pairs[min(a, b), max(a, b)] = None
    return [(Path(a), Path(b)) for a, b in pairs]


def judge_pairs(
    train: Path, method: str, kinds: Mapping[str, list[Pair]]
) -> dict[str, Counter[str]]:
    """Numbers of verdicts, and of pairs with 15 inliers, for each kind of pair."""
    features, _, matcher = method.partition(" + ")
    source, match = CachedSource(open_source(features)), create_matcher(matcher or "nearest")
    names = {
        kind: [tuple(str(p.relative_to(train)) for p in pair) for pair in pairs]
        for kind, pairs in kinds.items()
    }
    every = list(itertools.chain.from_iterable(names.values()))
    files = {name: train / name for name in sorted({name for pair in every for name in pair})}
    counts = {}
    with CachedPhotos(source, train, files, no_progress) as photos:
        for kind, pairs in names.items():
            counts[kind] = Counter({"pairs": len(pairs)})
            for a, b in pairs:
                both = photos.features(a), photos.features(b)
                found = verify(*both, match(*both))
                counts[kind][str(found.verdict)] += 1
                counts[kind]["15 inliers"] += found.num_inliers >= 15
                if kind == "different" and found.verdict != "none":
                    print(f"  {found.verdict} ({found.significance:.1f}): {a}, {b}", flush=True)
    return counts


def table_of_pairs(
    train: Path, baselines: Path
) -> Iterator[tuple[str, dict[str, Counter[str]], str]]:
    """Method, counts and row of each method."""
    rng = random.Random(0)
    kinds = {**true_pairs(train, rng), "different": different_pairs(places(train), rng)}
    for method in PAIR_METHODS:
        print(f"pairs, {method}", flush=True)
        in_folder = method.replace("weights=", f"weights={baselines}/")
        counts = judge_pairs(train, in_folder, kinds)
        true = [counts[kind] for kind in kinds if kind != "different"]
        different = counts["different"]
        cells = [
            f"`{method}`",
            *(f"{different[name]:,}" for name in ("pairs", "same", "doubtful", "15 inliers")),
            *(f"{c['same']} of {c['pairs']}" for c in true),
            f"{sum(c['15 inliers'] for c in true)} of {sum(c['pairs'] for c in true)}",
        ]
        yield method, counts, f"| {' | '.join(cells)} |"


def judge_queries(train: Path, weights: str, output: Path) -> dict[str, Counter[str]]:
    """Numbers of verdicts on queries for each kind of query, over maps of all scenes."""
    model = D2Net.from_pretrained(weights, max_keypoints=2048, max_edge=640)
    counts: dict[str, Counter[str]] = {}
    foreign: dict[Path, Features] = {}

    def judge(kind: str, verdict: str, num_inliers: int) -> None:
        counts.setdefault(kind, Counter()).update(
            {"queries": 1, verdict: 1, "30 inliers": num_inliers >= 30}
        )

    for scene in scenes(train):
        true = read_model(find_model(scene) or scene)
        images = sorted((i for i in true.images.values() if i.has_pose), key=lambda i: i.name)
        queries = images[1::HELD_OUT]
        if len(images) - len(queries) < 2:
            continue
        folder = output / weights / scene.name
        for image in images:
            if image not in queries:
                copy = folder / "photos" / image.name
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(scene / "images" / image.name, copy)
        known = folder / "known"  # without the queries
        if not find_model(known):
            write_model(read_held_out(scene, find_model(scene) or scene, None).model, known)
        reconstruct(folder / "photos", folder / "map", model=model, poses=known)
        place = Map.open(folder / "map")
        spread = spread_of(np.array([i.projection_center() for i in images]))
        for image in queries:
            camera = true.cameras[image.camera_id]
            answer = place.localize(scene / "images" / image.name, camera=camera)
            distance = angle = np.inf
            if answer.pose is not None:
                pose = image.cam_from_world()
                distance = np.linalg.norm(answer.pose.centre - image.projection_center()) / spread
                estimate = answer.pose.cam_from_world.rotation.matrix()
                angle = rotation_angle(estimate, pose.rotation.matrix())
            kind = "less accurate, or none"
            for name, limit in (("right within 1 %, 1°", 1), ("right within 5 %, 5°", 5)):
                if distance <= limit / 100 and angle <= limit:
                    kind = name
                    break
            judge(f"of the place, pose {kind}", answer.verdict, answer.num_inliers)
            if answer.verdict == "localized" and kind == "less accurate, or none":
                print(f"  {scene.name}/{image.name}: {distance:.1%}, {angle:.1f}°", flush=True)
        others = [p for name, photos in places(train).items() for p in photos[:PLACES_PER_FOLDER]
                  if scene.name not in name]  # fmt: skip
        for path in random.Random(0).sample(others, NUM_FOREIGN):
            if path not in foreign:
                foreign[path] = model.extract(path).half()
            features = foreign[path]
            wrong = [0.7 * max(features.image_size), *(edge / 2 for edge in features.image_size)]
            for kind, is_known in (
                ("focal length estimated", False),
                ("a wrong focal length given", True),
            ):
                camera = known_camera("SIMPLE_PINHOLE", features.image_size, wrong, is_known)
                answer = place.localize_features(features, camera)
                judge(f"of other places, {kind}", answer.verdict, answer.num_inliers)
                if answer.verdict != "lost":
                    print(f"  {answer.verdict} in {scene.name}: {path}, {kind}", flush=True)
    return counts


def table_of_queries(
    train: Path, output: Path
) -> Iterator[tuple[str, dict[str, Counter[str]], str]]:
    """Weights, counts and rows of all weights."""
    for weights in QUERY_WEIGHTS:
        print(f"queries, {weights}", flush=True)
        counts = judge_queries(train, weights, output)
        columns = ("queries", "localized", "doubtful", "lost", "30 inliers")
        rows = [
            f"| `{weights}` | {kind} | {' | '.join(f'{of_kind[name]:,}' for name in columns)} |"
            for kind, of_kind in sorted(counts.items())
        ]
        yield weights, counts, "\n".join(rows)


def main() -> None:
    """Measure the tables and write them into the page."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("train", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--tables", nargs="+", choices=("pairs", "queries"), default=["pairs", "queries"]
    )
    parser.add_argument("--baselines", type=Path, default=Path())
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    heads = {
        "pairs": (
            *("features", "pairs of different places", "called same", "doubtful", "15 inliers"),
            *("true pairs: same, of scenes", "day and night", "infrared", "all: 15 inliers"),
        ),
        "queries": (
            *("features", "queries", "number", "localized", "doubtful", "lost"),
            "at least 30 inliers",
        ),
    }
    for name in given.tables:
        measured = (
            table_of_pairs(given.train, given.baselines)
            if name == "pairs"
            else table_of_queries(given.train, given.output)
        )
        figures, rows = {}, []
        for method, counts, row in measured:
            figures[method] = counts
            rows.append(row)
            (given.output / f"{name}.json").write_text(json.dumps(figures, indent=1) + "\n")
            write_rows(f"verdicts_{name}", heads[name], rows)


if __name__ == "__main__":
    main()
