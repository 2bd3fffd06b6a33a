"""Recall of retrieval on scenes with a COLMAP model: the package's row in docs/experiments.md.

usage: python tools/retrieval.py FEATURES SCENES

FEATURES/NAME.h5 are the features of the photos in SCENES/NAME (or its folder `images`), made by
`d2net extract ... --max-edge 640 --max-keypoints 2000 --half`; the model is in SCENES/NAME/sparse.

Two photos belong together if they share at least 15 points of the model; without a model, if they
are in the same subfolder. Photos without either are distractors, and so are scenes in which nearly
all photos belong together. Recall@k is the share of a photo's k nearest photos, searched in all
scenes, that belong to it (of all its photos if there are fewer than k); means over the photos.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from d2net import FeatureFile
from d2net.features import Features
from d2net.io.colmap_model import read_model
from d2net.matching.pair_selection import shared_points
from d2net.matching.retrieval import GlobalDescriptors

Array = NDArray[np.float32]
KS = (5, 10, 20)
MIN_SHARED = 15
MAX_RELATED = 0.75
"""If a larger share of all pairs belong together, no method can be wrong."""


@dataclass(frozen=True)
class Scene:
    """Photos of one place; `shared` counts common points, None where that is not known."""

    name: str
    names: list[str]
    features: dict[str, Features]
    shared: NDArray[np.int64] | None


def read_scene(features: Path, folder: Path) -> Scene:
    """The scene of a folder and its features file."""
    with FeatureFile(features) as file:
        photos = {name: file[name] for name in file}
    names = list(photos)
    shared = None
    if (folder / "sparse").is_dir():
        in_model, counts = shared_points(read_model(folder / "sparse"))
        rows = [names.index(name) for name in in_model]
        shared = np.zeros((len(names), len(names)), np.int64)
        shared[np.ix_(rows, rows)] = counts
    elif "/" in names[0]:
        places = np.array([name.partition("/")[0] for name in names])
        shared = (places[:, None] == places) * MIN_SHARED
        np.fill_diagonal(shared, 0)
    if shared is not None and (shared >= MIN_SHARED).mean() > MAX_RELATED:
        shared = None
    return Scene(folder.name, names, photos, shared)


def recalls(scenes: list[Scene]) -> dict[str, list[float]]:
    """By scene, recall at each of KS, and the share of the first 5 that are of the same scene."""
    photos = {f"{s.name}/{name}": s.features[name] for s in scenes for name in s.names}
    codebook = GlobalDescriptors.build(photos).codebook
    vectors = [
        np.stack([codebook.describe(scene.features[name]) for name in scene.names])
        for scene in scenes
    ]
    every = np.concatenate(vectors)
    starts = np.cumsum([0] + [len(part) for part in vectors])
    found = {}
    for scene, part, start in zip(scenes, vectors, starts, strict=False):
        if scene.shared is None:
            continue
        belongs = scene.shared >= MIN_SHARED
        rows = np.flatnonzero(belongs.any(axis=1))
        cosines = part @ every.T
        cosines[np.arange(len(part)), start + np.arange(len(part))] = -np.inf
        right = np.zeros(cosines.shape, bool)
        right[:, start : start + len(part)] = belongs
        order = (-cosines).argsort(axis=1, kind="stable")[rows]
        ranked = np.take_along_axis(right[rows], order, axis=1)
        own = (order[:, :5] >= start) & (order[:, :5] < start + len(part))
        wanted = belongs[rows].sum(axis=1)
        found[scene.name] = [
            *(float((ranked[:, :k].sum(axis=1) / np.minimum(k, wanted)).mean()) for k in KS),
            float(own.mean()),
        ]
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("features", type=Path)
    parser.add_argument("scenes", type=Path)
    given = parser.parse_args()
    files = sorted(given.features.glob("*.h5"))
    scenes = [read_scene(path, given.scenes / path.stem) for path in files]
    print(f"{sum(len(scene.names) for scene in scenes)} photos of {len(scenes)} folders")
    found = recalls(scenes)
    found["mean"] = np.mean(list(found.values()), axis=0).tolist()
    print("| scene | @5 | @10 | @20 | same scene |\n|---|---|---|---|---|")
    for name, values in found.items():
        print(f"| {name} | " + " | ".join(f"{value:.3f}" for value in values) + " |")


if __name__ == "__main__":
    main()
