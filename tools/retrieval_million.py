"""Retrieval in a million photos: recall against exact search, memory and time per query.

usage: python tools/retrieval_million.py draw FEATURES FOLDER [COUNT]
       python tools/retrieval_million.py measure FOLDER

There are no million photos here, so vectors are drawn. FEATURES/*.h5 are features of real photos
(see tools/retrieval.py). The sums of each photo's VLAD are taken over eight random parts of its
keypoints. A place is eight of all these parts; a photo of it has six in ten of them, and others in
place of the rest; its vector is made of their sum as the package does it. Ten photos show each
place. `draw` tells how alike they are, to be compared with real photos, finds the nearest of 200
photos among all by their whole vectors, and keeps all vectors projected, as the package does above
`MAX_UNPROJECTED` photos.
"""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from d2net import FeatureFile
from d2net.matching import search
from d2net.matching.projection import Projection
from d2net.matching.retrieval import PROJECTED_DIMENSION, Codebook
from d2net.matching.search import VectorSearch

PARTS, VIEWS, KEPT = 8, 10, 0.6
QUERIES, NEAREST, LEARN = 200, 101, 4096
BATCH = 500
K = 10


def part_sums(features: Path) -> Tensor:
    """(photos x PARTS) x (K D): the sums of each part of each photo's keypoints."""
    photos = {}
    for path in sorted(features.glob("*.h5")):
        with FeatureFile(path) as file:
            photos.update({f"{path.stem}/{name}": file[name] for name in file})
    centres = Codebook.learn(photos, list(photos)).centres
    chance = np.random.default_rng(0)
    sums = np.empty((len(photos), PARTS, centres.size), np.float32)
    for photo, rows in zip(photos.values(), sums, strict=True):
        local, scores = photo.descriptors.float().numpy(), photo.scores.numpy()
        nearest = (local @ centres.T - (centres**2).sum(axis=1) / 2).argmax(axis=1)
        part_of = chance.permutation(len(local)) % PARTS
        for part, row in enumerate(rows):
            members = np.zeros((len(centres), len(local)), np.float32)
            members[nearest, np.arange(len(local))] = scores / scores.max() * (part_of == part)
            row[:] = (members @ local - members.sum(axis=1, keepdims=True) * centres).ravel()
    return torch.from_numpy(sums.reshape(-1, centres.size))


def photos(sums: Tensor, first: int, count: int) -> Tensor:
    """The vectors of photos first .. first + count, of unit length; each depends on its number."""
    rows = np.empty((count, PARTS), np.int64)
    for row, i in zip(rows, range(first, first + count), strict=True):
        place, view = (np.random.default_rng(seed) for seed in ((1, i // VIEWS), (2, i)))
        own, other = (chance.integers(0, len(sums), PARTS) for chance in (place, view))
        row[:] = np.where(view.random(PARTS) < KEPT, own, other)
    added = torch.nn.functional.embedding_bag(torch.from_numpy(rows), sums, mode="sum")
    return torch.nn.functional.normalize(added.abs().sqrt_().copysign_(added), dim=1)


def draw(features: Path, folder: Path, count: int) -> None:
    """Draw all photos; write what `measure` reads."""
    folder.mkdir(exist_ok=True)
    sums = part_sums(features)
    elsewhere = 10**9  # places that are not among the photos
    learned = [photos(sums, elsewhere + i * VIEWS, 1) for i in range(LEARN)]
    projection = Projection.learn(torch.cat(learned).numpy(), PROJECTED_DIMENSION)
    axes, offset = torch.from_numpy(projection.axes), torch.from_numpy(projection.offset)
    some = photos(sums, 0, 40 * VIEWS)
    cosines, place = (some @ some.T).numpy(), np.arange(len(some)) // VIEWS
    same = (place[:, None] == place) & ~np.eye(len(some), dtype=bool)
    for name, mask in (("of one place", same), ("of two", place[:, None] != place)):
        quantiles = np.percentile(cosines[mask], [5, 25, 50, 75, 95]).round(3)
        print(f"cosines of two photos {name}, 5, 25, 50, 75, 95 %: {quantiles}")
    asked = np.linspace(0, count - 1, QUERIES).astype(np.int64)
    queries = torch.cat([photos(sums, int(i), 1) for i in asked])
    vectors = np.lib.format.open_memmap(
        folder / "vectors.npy", "w+", np.float16, (count, PROJECTED_DIMENSION)
    )
    best, where = torch.empty(QUERIES, 0), torch.empty(QUERIES, 0, dtype=torch.int64)
    for first in range(0, count, BATCH):
        batch = photos(sums, first, min(BATCH, count - first))
        short = torch.nn.functional.normalize(batch @ axes - offset, dim=1)
        vectors[first : first + len(batch)] = short.numpy()
        numbers = torch.arange(first, first + len(batch)).expand(QUERIES, -1)
        best, where = torch.cat([best, queries @ batch.T], 1), torch.cat([where, numbers], 1)
        best, order = best.topk(min(NEAREST, best.shape[1]), dim=1)
        where = where.gather(1, order)
    np.savez(folder / "nearest.npz", asked=asked, cosines=best.numpy(), rows=where.numpy())


def recall(found: NDArray[Any], true: NDArray[Any], asked: NDArray[Any]) -> float:
    """Share of the K truly nearest others among the K found ones."""
    shares = []
    for rows, expected, own in zip(found, true, asked, strict=True):
        others = [row for row in rows.tolist() if row != own][:K]
        shares.append(len({*others} & {*[i for i in expected.tolist() if i != own][:K]}) / K)
    return float(np.mean(shares))


def resident() -> float:
    """GB that the process takes at the moment."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e9


def measure(folder: Path) -> None:
    """Print the table."""
    vectors = np.load(folder / "vectors.npy")
    truth = np.load(folder / "nearest.npz")
    asked, true = truth["asked"], truth["rows"]
    queries = vectors[asked].astype(np.float32)
    print(f"{len(vectors):,} photos, {vectors.nbytes / 1e9:.2f} GB; {resident():.2f} GB resident")
    print(f"recall@{K} against exact search of whole vectors:")
    for dimension in (PROJECTED_DIMENSION,):
        cosines = np.empty((QUERIES, len(vectors)), np.float32)
        for first in range(0, len(vectors), 50_000):
            part = vectors[first : first + 50_000, :dimension].astype(np.float32)
            part /= np.linalg.norm(part, axis=1, keepdims=True)
            cosines[:, first : first + len(part)] = queries[:, :dimension] @ part.T
        exact = np.argpartition(-cosines, K, axis=1)[:, : K + 1]
        print(f"| exact, {dimension} dimensions | {recall(exact, true, asked):.3f} |", flush=True)
    del cosines
    many = VectorSearch(vectors)
    start, before = time.perf_counter(), resident()
    index = many._approximate
    size = faiss.serialize_index(index).nbytes / 1e6
    print(f"index built in {time.perf_counter() - start:.0f} s, {size:.0f} MB")
    print(f"resident {before:.2f} GB before, {resident():.2f} GB after")
    for looked_into in (64, 256, 1024):
        faiss.extract_index_ivf(index).nprobe = looked_into
        for again in (10, 50, 100):
            search._CANDIDATES = again
            start = time.perf_counter()
            found = [many.nearest(query[None], K + 1)[1][0] for query in queries]
            seconds = (time.perf_counter() - start) / QUERIES
            a, b = recall(np.stack(found), true, asked), recall(np.stack(found), exact, asked)
            print(
                f"| {looked_into} lists, {again} x compared | {a:.3f} | {b:.3f} "
                f"| {seconds * 1000:.1f} ms |",
                flush=True,
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    if sys.argv[1:2] == ["draw"]:
        count = int(sys.argv[4]) if len(sys.argv) > 4 else 1_000_000
        draw(Path(sys.argv[2]), Path(sys.argv[3]), count)
    else:
        measure(Path(sys.argv[2]))
