"""Which photos look alike: one vector per photo, pooled from its local features."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.features import Features
from d2net.formats.arrays import as_numpy

Array = NDArray[np.float32]

_NUM_CENTRES = 64
_SAMPLES = 256 * _NUM_CENTRES  # local descriptors that a codebook is learned from; faiss' own limit
_SEED = 0


@dataclass(frozen=True, eq=False)
class Codebook:
    """What turns the local features of a photo into one vector: VLAD.

    Jégou et al., "Aggregating local image descriptors into compact codes", PAMI 2012; Arandjelović
    and Zisserman, "All about VLAD", CVPR 2013 (intra-normalisation).

    Attributes:
        centres: K x D float32.
    """

    centres: Array

    @classmethod
    def learn(cls, features: Mapping[str, Features], names: Iterable[str]) -> Codebook:
        """Learn from photos; the same photos give the same codebook."""
        import faiss

        names = list(names)
        each = -(-_SAMPLES // max(1, len(names)))
        parts = [as_numpy(features[name].best(each).descriptors.float()) for name in names]
        samples = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
        if not len(samples):
            raise InputError(
                "the photos have no local features, from which a codebook could be learned"
            )
        k = min(_NUM_CENTRES, len(samples))
        means = faiss.Kmeans(samples.shape[1], k, seed=_SEED, min_points_per_centroid=1)
        means.train(samples)
        return cls(np.asarray(means.centroids, np.float32))

    def describe(self, features: Features) -> Array:
        """K D float32 of unit length, or zero for a photo without features."""
        descriptors = as_numpy(features.descriptors.float())
        if descriptors.shape[1] != self.centres.shape[1]:
            raise InputError(
                f"the features have {descriptors.shape[1]} dimensions but the codebook has "
                f"{self.centres.shape[1]}; use features of the same network"
            )
        nearest = (descriptors @ self.centres.T - (self.centres**2).sum(axis=1) / 2).argmax(axis=1)
        vlad = np.zeros_like(self.centres)
        np.add.at(vlad, nearest, descriptors - self.centres[nearest])
        vlad = _unit(vlad)
        whole: Array = _unit(vlad.reshape(1, -1))[0]
        return whole


class GlobalDescriptors:
    """One vector per photo, to be searched."""

    def __init__(self, codebook: Codebook, names: Iterable[str], vectors: Array) -> None:
        self.codebook = codebook
        self.names = tuple(names)
        self.vectors = vectors

    @classmethod
    def build(
        cls,
        features: Mapping[str, Features],
        names: Iterable[str] | None = None,
        codebook: Codebook | None = None,
    ) -> GlobalDescriptors:
        """Describe photos by their local features.

        Args:
            features: by photo, for example a `FeatureFile`.
            names: the photos; None for all.
            codebook: an earlier one; None learns one from these photos.
        """
        names = tuple(features if names is None else names)
        codebook = codebook or Codebook.learn(features, names)
        vectors = np.stack([codebook.describe(features[name]) for name in names])
        return cls(codebook, names, vectors)

    def query(self, features: Features, k: int) -> list[tuple[str, float]]:
        """The k photos most like one with these features, best first, with their cosine."""
        return self._search(self.codebook.describe(features)[None], k)[0]

    def neighbours(self, k: int) -> dict[str, list[tuple[str, float]]]:
        """For each photo the k others most like it, best first, with their cosine."""
        found = self._search(self.vectors, k + 1)
        return {
            name: [hit for hit in hits if hit[0] != name][:k]
            for name, hits in zip(self.names, found, strict=True)
        }

    def _search(self, vectors: Array, k: int) -> list[list[tuple[str, float]]]:
        import faiss

        there = np.flatnonzero(self.vectors.any(axis=1))
        index = faiss.IndexFlatIP(self.vectors.shape[1])
        index.add(self.vectors[there])
        similarity, rows = index.search(vectors, max(1, min(k, len(there))))
        return [
            [
                (self.names[there[row]], float(s))
                for row, s in zip(hits, cosines, strict=True)
                if row >= 0
            ]
            if vector.any()
            else []
            for vector, hits, cosines in zip(vectors, rows, similarity, strict=True)
        ]


def _unit(rows: Array) -> Array:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: Array = rows / np.maximum(lengths, np.finfo(np.float32).tiny)
    return scaled
