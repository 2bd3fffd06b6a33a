"""Compare global descriptors on scenes with a COLMAP model: the tables of EXPERIMENTS.md.

usage: python tools/retrieval.py FEATURES SCENES [--dense]

FEATURES/NAME.h5 are the features of the photos in SCENES/NAME (or its folder `images`), made by
`d2net extract ... --max-edge 640 --max-keypoints 2000 --half`; the model is in SCENES/NAME/sparse.

Photos that share at least 15 points in the model belong together; without a model, those of one
subfolder. Photos without either only distract, and so do scenes in which nearly all belong
together. Of each photo's first k, searched among the photos of all scenes, counts how many belong
to it, of k or of all that do if those are fewer: recall@k, the mean over the photos of a scene.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from d2net import D2Net, FeatureFile, find_images, read_image
from d2net.extraction.d2net import prepare
from d2net.features import Features
from d2net.io.colmap_model import read_model
from d2net.matching.pairs import shared_points
from d2net.matching.retrieval import Codebook

Array = NDArray[np.float32]
KS = (5, 10, 20)
MIN_SHARED = 15
MOST = 0.75
"""Where a larger share of all pairs belong together, no method can be wrong."""


@dataclass(frozen=True)
class Scene:
    """Photos of one place; `shared` counts common points, None where that is not known."""

    name: str
    names: list[str]
    features: dict[str, Features]
    shared: NDArray[np.int64] | None


Describe = Callable[[Scene], Array]
"""N x D, a unit vector for each photo of the scene."""


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
    if shared is not None and (shared >= MIN_SHARED).mean() > MOST:
        shared = None
    return Scene(folder.name, names, photos, shared)


def recalls(scenes: list[Scene], describe: Describe) -> dict[str, list[float]]:
    """By scene, recall at each of KS, searched among the photos of all scenes; and `own`.

    `own` is the share of the first 5 that are of the same scene.
    """
    vectors = [describe(scene) for scene in scenes]
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


# --- Descriptors -----------------------------------------------------------------------------


def unit(rows: Array) -> Array:
    """Rows of unit length."""
    scaled: Array = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return scaled


def descriptors(scene: Scene) -> list[Array]:
    """The local descriptors of each photo."""
    return [scene.features[name].descriptors.float().numpy() for name in scene.names]


def gem(p: float, weighted: bool, scene: Scene) -> Array:
    """Generalized mean of the local descriptors (Radenović et al., PAMI 2019)."""
    pooled = []
    for name, local in zip(scene.names, descriptors(scene), strict=True):
        weights = scene.features[name].scores.numpy() if weighted else np.ones(len(local))
        pooled.append(np.average(np.maximum(local, 1e-6) ** p, axis=0, weights=weights) ** (1 / p))
    return unit(np.stack(pooled).astype(np.float32))


def dense_gem(p: float, photos: Path, model: D2Net, scene: Scene) -> Array:
    """Generalized mean of the dense map, which a features file does not hold."""
    pooled = []
    folder = photos / scene.name
    for photo in find_images([folder / "images" if (folder / "images").is_dir() else folder]):
        pixels = torch.from_numpy(prepare(read_image(photo.path), model.settings).pixels)
        with torch.no_grad():
            maps = model.network.compute_maps(pixels[None].float(), torch.float32)[0]
        pooled.append(maps[0].clamp(min=1e-6).pow(p).mean(dim=(0, 1)).pow(1 / p).numpy())
    return unit(np.stack(pooled))


@dataclass(frozen=True)
class Vlad:
    """VLAD with what the package's has and has not."""

    centres: Array
    mean: Array | None = None
    projection: Array | None = None
    intra: bool = True
    power: float = 1.0
    weight: float = 0.0
    """The power of the score that a residual is multiplied with."""

    def __call__(self, scene: Scene) -> Array:
        """N x (K D)."""
        return np.stack([self._pool(scene.features[name]) for name in scene.names])

    def _pool(self, features: Features) -> Array:
        local = features.descriptors.float().numpy()
        if self.projection is not None:
            local = (local - self.mean) @ self.projection
        nearest = (local @ self.centres.T - (self.centres**2).sum(axis=1) / 2).argmax(axis=1)
        members = np.zeros((len(self.centres), len(local)), np.float32)
        members[nearest, np.arange(len(local))] = features.scores.numpy() ** self.weight
        sums = members @ local - members.sum(axis=1, keepdims=True) * self.centres
        sums = np.sign(sums) * np.abs(sums) ** self.power
        whole: Array = unit((unit(sums) if self.intra else sums).reshape(1, -1))[0]
        return whole


def samples(scenes: list[Scene], each: int = 150) -> Array:
    """Local descriptors to learn from, spread evenly over each photo's."""
    photos = [photo for scene in scenes for photo in descriptors(scene)]
    return np.concatenate([photo[:: max(1, len(photo) // each)] for photo in photos])


def learn(scenes: list[Scene], k: int = 64, dimension: int | None = None, white: float = 0) -> Vlad:
    """Centres, and a projection by PCA, from the photos of some scenes."""
    local = samples(scenes)
    mean = projection = None
    if dimension is not None:
        mean = local.mean(axis=0)
        variances, axes = np.linalg.eigh(np.cov((local - mean).T))
        strongest = variances.argsort()[::-1][:dimension]
        projection = (axes[:, strongest] / variances[strongest] ** (white / 2)).astype(np.float32)
        local = (local - mean) @ projection
    means = faiss.Kmeans(local.shape[1], k, seed=0, min_points_per_centroid=1)
    means.train(np.ascontiguousarray(local))
    return Vlad(np.array(means.centroids), mean, projection)


def shipped(scenes: list[Scene], scene: Scene) -> Array:
    """What `GlobalDescriptors.build` makes of all scenes' photos together."""
    photos = {f"{s.name}/{name}": s.features[name] for s in scenes for name in s.names}
    codebook = Codebook.learn(photos, list(photos))
    return np.stack([codebook.describe(scene.features[name]) for name in scene.names])


def by_codebook(
    scenes: list[Scene], choose: Callable[[Scene], list[Scene]], alone: bool
) -> dict[str, list[float]]:
    """`recalls`, each scene with a codebook from the scenes that are chosen for it.

    The search is among the scene's own photos if `alone`.
    """
    return {
        scene.name: recalls([scene] if alone else scenes, best(learn(choose(scene))))[scene.name]
        for scene in scenes
        if scene.shared is not None
    }


def best(vlad: Vlad) -> Vlad:
    """As the package does it."""
    return replace(vlad, intra=False, power=0.5, weight=1)


def variants(scenes: list[Scene]) -> dict[str, Describe]:
    """What is compared, by name."""
    found: dict[str, Describe] = {}
    for p in (1, 2, 3, 4):
        found[f"GeM, p = {p}"] = partial(gem, p, False)
        found[f"GeM, p = {p}, by score"] = partial(gem, p, True)
    base = learn(scenes)
    found["VLAD, 64 centres, intra-normalised"] = base
    found["- and square root"] = replace(base, power=0.5)
    found["- and by score"] = replace(base, weight=1)
    found["- and both"] = replace(base, power=0.5, weight=1)
    plain = replace(base, intra=False)
    found["VLAD, 64 centres"] = plain
    found["- square root"] = replace(plain, power=0.5)
    for weight in (0.5, 1, 2):
        found[f"- square root, by score to the {weight}"] = replace(plain, power=0.5, weight=weight)
    for k in (8, 16, 32, 128, 256):
        found[f"- the same to the 1, {k} centres"] = best(learn(scenes, k))
    for dimension in (64, 128):
        for white in (0, 0.5, 1):
            name = f"- 64 centres, {dimension} dimensions, whitened {white}"
            found[name] = best(learn(scenes, 64, dimension, white))
    found["the package's"] = partial(shipped, scenes)
    return found


def row(name: str, found: dict[str, list[float]]) -> str:
    """A line of the table: means over the scenes, then recall@10 of each."""
    means = np.mean(list(found.values()), axis=0)
    cells = [*means, *(by_k[KS.index(10)] for by_k in found.values())]
    return f"| {name} | " + " | ".join(f"{cell:.3f}" for cell in cells) + " |"


PERMISSIVE = {"lund_door", "lund_opensfm", "plush", "rgbd_hololens_office"} | {
    f"singles_{name}" for name in ("kodak", "seneca_nir_drone", "popos", "opensfm_berlin")
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("features", type=Path)
    parser.add_argument("scenes", type=Path)
    parser.add_argument("--dense", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    files = sorted(path for path in given.features.glob("*.h5"))
    scenes = [read_scene(path, given.scenes / path.stem) for path in files]
    print(f"{sum(len(scene.names) for scene in scenes)} photos of {len(scenes)} folders")
    columns = ["", *(f"@{k}" for k in KS), "own", *(s.name for s in scenes if s.shared is not None)]
    print("| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|", flush=True)
    for name, describe in variants(scenes).items():
        print(row(name, recalls(scenes, describe)), flush=True)
    permissive = [scene for scene in scenes if scene.name in PERMISSIVE]
    sources: dict[str, Callable[[Scene], list[Scene]]] = {
        "codebook of all scenes": lambda _: scenes,
        "codebook of the scene itself": lambda scene: [scene],
        "codebook of all other scenes": lambda scene: [
            other for other in scenes if other is not scene
        ],
        "codebook of other scenes with a permissive licence": lambda scene: [
            other for other in permissive if other is not scene
        ],
    }
    for name, choose in sources.items():
        for alone in (False, True):
            label = f"{name}, {'scene' if alone else 'all'} searched"
            print(row(label, by_codebook(scenes, choose, alone)), flush=True)
    if given.dense:
        model = D2Net.from_pretrained(max_edge=640, max_sum_edges=None)
        found = recalls(scenes, partial(dense_gem, 3, given.scenes, model))
        print(row("GeM of the dense map, p = 3", found), flush=True)


if __name__ == "__main__":
    main()
