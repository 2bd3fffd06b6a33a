"""Which photos look alike: one vector per photo, pooled from its local features, and their search.

Nothing but local features is needed, so those of any method do. The vector is VLAD (Jégou et al.,
"Aggregating local image descriptors into compact codes", PAMI 2012): how the descriptors around
each centre of a small codebook deviate from it, summed, and the square root taken of each sum. What
is added here: descriptors count by their score. EXPERIMENTS.md says what else was tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2net.cluster import connected
from d2net.errors import InputError
from d2net.features import Features
from d2net.io.arrays import as_numpy
from d2net.io.global_descriptors import GlobalDescriptorFile, write_global_descriptors
from d2net.io.h5 import FeatureFile
from d2net.matching.projection import Projection
from d2net.matching.search import Search

Array = NDArray[np.float32]
Hit = tuple[str, float]

NUM_CENTRES = 64
WHOLE_UP_TO = 10_000
"""Photos whose vectors are kept whole, 64 KB each; those of more are projected."""
PROJECTED = 512
"""Dimensions of projected vectors, 1 KB a photo."""
_LEARN_PHOTOS = 256  # at most so many photos are read to learn from
_LEARN_DESCRIPTORS = 256 * NUM_CENTRES  # faiss uses no more either
_LEAST_PER_CENTRE = 39  # faiss warns below; a centre that is a descriptor tells nothing of it
_PROJECT_PHOTOS = 4096  # to learn a projection from, at most
_QUERIES = 4096  # photos whose neighbours are searched for at a time
_PART = 64  # photos that a process of a cluster describes at a time
_SEED = 0
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Codebook:
    """Turns the local features of a photo into one vector.

    Attributes:
        centres: K x D float32, typical local descriptors.
        projection: from the K D sums to fewer dimensions; None to keep them all.
    """

    centres: Array
    projection: Projection | None = None

    @property
    def dimension(self) -> int:
        """Of a photo's vector."""
        return self.centres.size if self.projection is None else len(self.projection.offset)

    @classmethod
    def learn(cls, features: Mapping[str, Features], names: Sequence[str]) -> Codebook:
        """Learn from photos; the same photos give the same codebook.

        The centres come by k-means. Where there are more than `WHOLE_UP_TO` photos, whose long
        vectors would not fit in memory, a projection is learned, too.

        Args:
            features: by photo.
            names: the photos; of many, some spread evenly over them are used.

        Raises:
            InputError: they have no features at all.
        """
        import faiss

        chosen = _some(names, _LEARN_PHOTOS)
        each = -(-_LEARN_DESCRIPTORS // max(1, len(chosen)))
        parts = [_spread(as_numpy(features[name].descriptors.float()), each) for name in chosen]
        samples = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
        if not len(samples):
            raise InputError(
                "the photos have no local features, so it cannot be told which look alike"
            )
        k = max(1, min(NUM_CENTRES, len(samples) // _LEAST_PER_CENTRE))
        means = faiss.Kmeans(samples.shape[1], k, seed=_SEED, min_points_per_centroid=1)
        means.train(samples)
        whole = cls(np.array(means.centroids, np.float32))
        if len(names) <= WHOLE_UP_TO:
            return whole
        long = np.stack([whole.describe(features[name]) for name in _some(names, _PROJECT_PHOTOS)])
        return cls(whole.centres, Projection.learn(long, PROJECTED))

    def describe(self, features: Features) -> Array:
        """The photo's vector: float32 of unit length, or zero for a photo without features.

        Raises:
            InputError: the features are of another network.
        """
        descriptors = as_numpy(features.descriptors.float())
        centres = self.centres
        if descriptors.shape[1] != centres.shape[1]:
            raise InputError(
                f"the features have {descriptors.shape[1]} dimensions but the codebook has "
                f"{centres.shape[1]}; describe photos with features of the same network"
            )
        nearest = (descriptors @ centres.T - (centres**2).sum(axis=1) / 2).argmax(axis=1)
        members = np.zeros((len(centres), len(descriptors)), np.float32)
        members[nearest, np.arange(len(descriptors))] = _weights(as_numpy(features.scores))
        sums = members @ descriptors - members.sum(axis=1, keepdims=True) * centres
        rooted = (np.sign(sums) * np.sqrt(np.abs(sums))).ravel()
        vector: Array = rooted / max(float(np.linalg.norm(rooted)), _TINY)
        return vector if self.projection is None else self.projection(vector)


@dataclass(frozen=True, eq=False)
class GlobalDescriptors:
    """One vector per photo, to be searched for the photos that look most alike.

    ```python
    with d2net.FeatureFile("features.h5") as features:
        photos = GlobalDescriptors.build(features)
    photos.query(model.extract("new.jpg"), 10)  # [("day 1/a.jpg", 0.43), ...]
    ```

    Attributes:
        names: the photos.
        vectors: N x D float16, of unit length; zero where a photo has no features.
        codebook: what they were made with.
        settings: how the local features were made, None if that is not known.
    """

    names: tuple[str, ...]
    vectors: NDArray[np.float16]
    codebook: Codebook
    settings: dict[str, Any] | None = field(default=None)

    @classmethod
    def build(
        cls,
        features: Mapping[str, Features],
        names: Iterable[str] | None = None,
        *,
        codebook: Codebook | None = None,
        cluster: str | None = None,
    ) -> GlobalDescriptors:
        """Describe photos by their local features.

        Args:
            features: by photo, for example a `FeatureFile`.
            names: the photos; None for all.
            codebook: an earlier one; None learns one from these photos.
            cluster: the address of a Ray cluster that shares the work, for a `FeatureFile`.

        Raises:
            InputError: no photo has features, or they do not fit the codebook.
        """
        names = tuple(features if names is None else names)
        codebook = codebook or Codebook.learn(features, names)
        if cluster is None:
            vectors = _describe_all(codebook, features, names)
        else:
            vectors = _describe_on_cluster(cluster, codebook, features, names)
        return cls(names, vectors, codebook, getattr(features, "settings", None))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GlobalDescriptors:
        """Read a file that `save` wrote.

        Raises:
            InputError: there is none.
            FormatError: it is damaged or something else.
        """
        with GlobalDescriptorFile(os.fspath(path)) as file:
            names, vectors = file.read()
            settings = (file.settings or {}).get("features")
            codebook = Codebook(file.read_codebook(), _projection(file.read_projection()))
            return cls(names, vectors.astype(np.float16), codebook, settings)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file that `open` and hloc's `pairs_from_retrieval` read.

        Raises:
            OutputError: it cannot be written.
        """
        vectors = dict(zip(self.names, self.vectors, strict=True))
        settings = {"method": "vlad", "features": self.settings}
        projection = self.codebook.projection
        write_global_descriptors(
            Path(path),
            vectors,
            self.codebook.centres,
            settings,
            None if projection is None else (projection.axes, projection.offset),
        )

    def only(self, names: Iterable[str]) -> GlobalDescriptors:
        """Those of some of the photos."""
        places = {name: row for row, name in enumerate(self.names)}
        names = tuple(name for name in names if name in places)
        rows = [places[name] for name in names]
        return type(self)(names, self.vectors[rows], self.codebook, self.settings)

    def query(self, features: Features, k: int) -> list[Hit]:
        """The k photos that look most like one with these local features.

        Returns:
            (name, cosine), best first; fewer than k if there are not as many, none for a photo
            without features.

        Raises:
            InputError: the features do not fit the codebook.
        """
        return self._search(self.codebook.describe(features)[None], k)[0]

    def neighbours(self, k: int) -> dict[str, list[Hit]]:
        """For each photo, the k others that look most like it; as `query`."""
        neighbours = {}
        for first in range(0, len(self.names), _QUERIES):
            names = self.names[first : first + _QUERIES]
            vectors = self.vectors[first : first + _QUERIES].astype(np.float32)
            found = self._search(vectors, k + 1)  # each finds itself, too
            for name, hits in zip(names, found, strict=True):
                neighbours[name] = [hit for hit in hits if hit[0] != name][:k]
        return neighbours

    def _search(self, vectors: Array, k: int) -> list[list[Hit]]:
        search, rows_of = self._searched
        k = min(k, len(rows_of))
        if k < 1:
            return [[] for _ in vectors]
        cosines, found = search.nearest(vectors, k)
        return [
            [
                (self.names[rows_of[i]], float(c))
                for i, c in zip(hits, similar, strict=True)
                if i >= 0
            ]
            if vector.any()
            else []
            for vector, hits, similar in zip(vectors, found, cosines, strict=True)
        ]

    @cached_property
    def _searched(self) -> tuple[Search, NDArray[np.int64]]:
        """The photos that have features: their search, and their places in `names`."""
        rows = np.flatnonzero(self.vectors.any(axis=1))
        return Search(self.vectors if len(rows) == len(self.vectors) else self.vectors[rows]), rows


def _describe_all(
    codebook: Codebook, features: Mapping[str, Features], names: Sequence[str]
) -> NDArray[np.float16]:
    vectors = np.empty((len(names), codebook.dimension), np.float16)
    for name, row in zip(names, vectors, strict=True):
        row[:] = codebook.describe(features[name])
    return vectors


def _describe_on_cluster(
    address: str, codebook: Codebook, features: Mapping[str, Features], names: Sequence[str]
) -> NDArray[np.float16]:
    if not isinstance(features, FeatureFile):
        raise InputError("a cluster describes photos of a features file")
    vectors = np.empty((len(names), codebook.dimension), np.float16)
    parts = [(first, names[first : first + _PART]) for first in range(0, len(names), _PART)]
    with connected(address) as cluster:
        shared = (codebook, features.path.absolute())
        for first, described in cluster.run(_describe_part, shared, parts):
            vectors[first : first + len(described)] = described
    return vectors


def _describe_part(
    shared: tuple[Codebook, Path], part: tuple[int, Sequence[str]]
) -> tuple[int, NDArray[np.float16]]:
    """Describe some of the photos, in a process of a cluster."""
    codebook, path = shared
    first, names = part
    with FeatureFile(path) as features:
        return first, _describe_all(codebook, features, names)


def _projection(stored: tuple[Array, Array] | None) -> Projection | None:
    return None if stored is None else Projection(*stored)


def _some(names: Sequence[str], most: int) -> Sequence[str]:
    """At most so many of the photos, evenly."""
    return names[:: -(-len(names) // most) or 1]


def _spread(rows: Array, most: int) -> Array:
    """At most so many of the rows, evenly: the best by score alone make a worse codebook."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(np.int64)]


def _weights(scores: Array) -> Array:
    """N, the share of each local feature; equal where scores are logarithms or of no sign."""
    if len(scores) == 0 or scores.min() < 0 or scores.max() == 0:
        return np.ones_like(scores)
    weights: Array = scores / scores.max()
    return weights
