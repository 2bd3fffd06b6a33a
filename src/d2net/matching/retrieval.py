"""Image retrieval: which photos look most like each other, by one vector per photo.

The vector is pooled from the photo's local features, so it needs no second network and works with
the features of any method. It is VLAD (Jégou et al., "Aggregating local image descriptors into
compact codes", PAMI 2012): for each centre of a small codebook, the deviations of the descriptors
nearest to it are summed, and the signed square root of every sum is taken. In addition, descriptors
are weighted by their score. docs/experiments.md has the variants that were tried.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from d2net.cluster import connected
from d2net.errors import InputError
from d2net.features import Features
from d2net.io.arrays import as_numpy, evenly_spaced
from d2net.io.global_descriptors import GlobalDescriptorFile, write_global_descriptors
from d2net.io.h5 import FeatureFile
from d2net.matching.projection import Projection
from d2net.matching.search import VectorSearch

Array = NDArray[np.float32]
Hit = tuple[str, float]

NUM_CENTRES = 64
MAX_UNPROJECTED = 10_000
"""Collections with more photos get projected vectors; unprojected ones take 64 KB a photo."""
PROJECTED_DIMENSION = 512
"""Dimension of projected vectors, which take 1 KB a photo."""
_MAX_TRAINING_PHOTOS = 256  # that the codebook is learned from
_MAX_TRAINING_DESCRIPTORS = 256 * NUM_CENTRES  # faiss uses no more
_MIN_PER_CENTRE = 39  # faiss warns below; a centre of a single descriptor carries no information
_MAX_PROJECTION_PHOTOS = 4096  # that the projection is learned from
_QUERY_BATCH = 4096  # photos whose neighbours are searched at a time
_CLUSTER_BATCH = 64  # photos that a process of a cluster describes at a time
_SEED = 0
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Codebook:
    """Turns the local features of a photo into one vector.

    Attributes:
        centres: K x D float32, typical local descriptors.
        projection: from the K D sums to fewer dimensions; None to keep all of them.
        descriptor_id: weights and type of the local descriptors, see `Features`; None if unknown.
    """

    centres: Array
    projection: Projection | None = None
    descriptor_id: str | None = None

    @property
    def dimension(self) -> int:
        """Dimension of a photo's vector."""
        return self.centres.size if self.projection is None else len(self.projection.offset)

    @classmethod
    def learn(cls, features: Mapping[str, Features], names: Sequence[str]) -> Codebook:
        """Learn a codebook by k-means; the same photos give the same codebook.

        For more than `MAX_UNPROJECTED` photos, whose vectors would not fit in memory, a projection
        is learned, too.

        Args:
            features: features by photo.
            names: the photos; large collections are sampled evenly.

        Raises:
            InputError: the photos have no features at all.
        """
        import faiss

        sampled = evenly_spaced(len(names), _MAX_TRAINING_PHOTOS)
        share = -(-_MAX_TRAINING_DESCRIPTORS // max(1, len(sampled)))
        parts = []
        for row in sampled:
            photo = features[names[row]]
            # Evenly: a codebook from the descriptors with the highest scores retrieves worse.
            parts.append(as_numpy(photo.descriptors[evenly_spaced(len(photo), share)].float()))
        descriptors = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
        if not len(descriptors):
            raise InputError(
                "retrieval compares photos by their local features, but these photos have none"
            )
        k = max(1, min(NUM_CENTRES, len(descriptors) // _MIN_PER_CENTRE))
        kmeans = faiss.Kmeans(descriptors.shape[1], k, seed=_SEED, min_points_per_centroid=1)
        kmeans.train(descriptors)
        centres = np.array(kmeans.centroids, np.float32)
        codebook = cls(centres, descriptor_id=photo.descriptor_id)
        if len(names) <= MAX_UNPROJECTED:
            return codebook
        sampled = evenly_spaced(len(names), _MAX_PROJECTION_PHOTOS)
        vectors = np.stack([codebook.describe(features[names[row]]) for row in sampled])
        return replace(codebook, projection=Projection.learn(vectors, PROJECTED_DIMENSION))

    def describe(self, features: Features) -> Array:
        """The photo's vector: float32 of unit length, or zero for a photo without features.

        Raises:
            InputError: the features have descriptors of another type than the codebook.
        """
        descriptors = as_numpy(features.descriptors.float())
        centres = self.centres
        ids = {self.descriptor_id, features.descriptor_id} - {None}
        if descriptors.shape[1] != centres.shape[1] or len(ids) > 1:
            raise InputError(
                f"the features have {descriptors.shape[1]}-D descriptors "
                f"({features.descriptor_id or 'of unknown type'}), but the codebook was learned "
                f"from {centres.shape[1]}-D ones ({self.descriptor_id or 'of unknown type'}); "
                "extract the photo as the others were extracted"
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
    """One vector per photo, and the search for the photos that look most alike.

    ```python
    with d2net.FeatureFile("features.h5") as features:
        photos = GlobalDescriptors.build(features)
    photos.query(model.extract("new.jpg"), 10)  # [("day 1/a.jpg", 0.43), ...]
    ```

    Attributes:
        names: the photos.
        vectors: N x D float16 of unit length; zero for photos without features.
        codebook: the codebook that the vectors were made with.
        settings: how the local features were made; None if unknown.
    """

    names: tuple[str, ...]
    vectors: NDArray[np.float16]
    codebook: Codebook
    settings: dict[str, Any] | None = None

    @classmethod
    def build(
        cls,
        features: Mapping[str, Features],
        names: Iterable[str] | None = None,
        *,
        cluster: str | None = None,
    ) -> GlobalDescriptors:
        """Describe photos by their local features, with a codebook that is learned from them.

        Args:
            features: features by photo, for example a `FeatureFile`.
            names: the photos; None for all.
            cluster: the address of a Ray cluster that shares the work, for a `FeatureFile`.

        Raises:
            InputError: no photo has features, or their descriptors are of different types.
        """
        names = tuple(features if names is None else names)
        codebook = Codebook.learn(features, names)
        if cluster is None:
            vectors = _describe(codebook, features, names)
        else:
            vectors = _describe_on_cluster(cluster, codebook, features, names)
        return cls(names, vectors, codebook, getattr(features, "settings", None))

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GlobalDescriptors:
        """Read a file that `save` wrote.

        Raises:
            InputError: there is no such file.
            FormatError: the file is damaged or of another kind.
        """
        with GlobalDescriptorFile(os.fspath(path)) as file:
            names, vectors = file.read()
            stored = file.read_projection()
            settings = file.settings or {}
            codebook = Codebook(
                file.read_codebook(),
                None if stored is None else Projection(*stored),
                settings.get("descriptor_id"),
            )
            return cls(names, vectors.astype(np.float16), codebook, settings.get("features"))

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file for `open`, which hloc's `pairs_from_retrieval` reads as well.

        Raises:
            OutputError: the file cannot be written.
        """
        codebook, projection = self.codebook, self.codebook.projection
        write_global_descriptors(
            Path(path),
            dict(zip(self.names, self.vectors, strict=True)),
            codebook.centres,
            {
                "method": "vlad",
                "descriptor_id": codebook.descriptor_id,
                "features": self.settings,
            },
            None if projection is None else (projection.axes, projection.offset),
        )

    def only(self, names: Iterable[str]) -> GlobalDescriptors:
        """The descriptors of some of the photos; unknown names are ignored."""
        row_of = {name: row for row, name in enumerate(self.names)}
        names = tuple(name for name in names if name in row_of)
        return replace(self, names=names, vectors=self.vectors[[row_of[name] for name in names]])

    def query(self, features: Features, k: int) -> list[Hit]:
        """The k photos that look most like the one with these local features.

        Returns:
            (name, cosine), best first. There are fewer than k if the collection is smaller, and
            none for a photo without features.

        Raises:
            InputError: the features do not fit the codebook.
        """
        return self._search(self.codebook.describe(features)[None], k)[0]

    def neighbours(self, k: int) -> dict[str, list[Hit]]:
        """For each photo, the k other photos that look most like it, as from `query`."""
        neighbours = {}
        for first in range(0, len(self.names), _QUERY_BATCH):
            names = self.names[first : first + _QUERY_BATCH]
            vectors = self.vectors[first : first + _QUERY_BATCH].astype(np.float32)
            all_hits = self._search(vectors, k + 1)  # each photo also finds itself
            for name, hits in zip(names, all_hits, strict=True):
                neighbours[name] = [hit for hit in hits if hit[0] != name][:k]
        return neighbours

    def _search(self, vectors: Array, k: int) -> list[list[Hit]]:
        search, searched = self._index
        k = min(k, len(searched))
        if k < 1:
            return [[] for _ in vectors]
        hits = []
        for vector, cosines, rows in zip(vectors, *search.nearest(vectors, k), strict=True):
            found = zip(rows, cosines, strict=True) if vector.any() else ()
            hits.append([(self.names[searched[row]], float(c)) for row, c in found if row >= 0])
        return hits

    @cached_property
    def _index(self) -> tuple[VectorSearch, NDArray[np.int64]]:
        """The search over the photos that have features, and their rows in `vectors`."""
        rows = np.flatnonzero(self.vectors.any(axis=1))
        vectors = self.vectors if len(rows) == len(self.vectors) else self.vectors[rows]
        return VectorSearch(vectors), rows


def _describe(
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
        raise InputError("a cluster can only describe photos of a features file")
    vectors = np.empty((len(names), codebook.dimension), np.float16)
    size = _CLUSTER_BATCH
    batches = [(first, names[first : first + size]) for first in range(0, len(names), size)]
    with connected(address) as cluster:
        shared = (codebook, features.path.absolute())
        for first, described in cluster.run(_describe_batch, shared, batches):
            vectors[first : first + len(described)] = described
    return vectors


def _describe_batch(
    shared: tuple[Codebook, Path], batch: tuple[int, Sequence[str]]
) -> tuple[int, NDArray[np.float16]]:
    """Describe some of the photos, in a process of a cluster."""
    codebook, path = shared
    first, names = batch
    with FeatureFile(path) as features:
        return first, _describe(codebook, features, names)


def _weights(scores: Array) -> Array:
    """N weights of local features; equal if scores can be negative (logarithms) or are all zero."""
    if len(scores) == 0 or scores.min() < 0 or scores.max() == 0:
        return np.ones_like(scores)
    weights: Array = scores / scores.max()
    return weights
