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

import numpy as np
from numpy.typing import NDArray

from d2net.errors import InputError
from d2net.features import Features
from d2net.io.arrays import as_numpy, evenly_spaced
from d2net.io.drawn_pictures import check_replaceable
from d2net.io.global_descriptors import GlobalDescriptorFile, write_global_descriptors

Array = NDArray[np.float32]
Hit = tuple[str, float]

NUM_CENTRES = 64
_TRAINING_PHOTOS = 256  # that the codebook is learned from
_TRAINING_DESCRIPTORS = 256 * NUM_CENTRES
_MIN_PER_CENTRE = 39  # a centre of a single descriptor carries no information
_ROUNDS = 25  # of k-means
_BATCH = 1024  # photos whose neighbours are searched at a time
_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Codebook:
    """Turns the local features of a photo into one vector.

    Attributes:
        centres: K x D float32, typical local descriptors.
        descriptor_id: weights and type of the local descriptors, see `Features`; None if unknown.
    """

    centres: Array
    descriptor_id: str | None = None

    @classmethod
    def learn(cls, features: Mapping[str, Features], names: Sequence[str]) -> Codebook:
        """Learn a codebook by k-means; the same photos give the same codebook."""
        sampled = [features[names[row]] for row in evenly_spaced(len(names), _TRAINING_PHOTOS)]
        share = -(-_TRAINING_DESCRIPTORS // max(1, len(sampled)))
        # Evenly: a codebook from the descriptors with the highest scores retrieves worse.
        parts = [as_numpy(f.descriptors[evenly_spaced(len(f), share)].float()) for f in sampled]
        descriptors = np.concatenate(parts) if parts else np.empty((0, 0), np.float32)
        if not len(descriptors):
            raise InputError(
                "retrieval compares photos by their local features, but these photos have none"
            )
        k = max(1, min(NUM_CENTRES, len(descriptors) // _MIN_PER_CENTRE))
        centres = descriptors[evenly_spaced(len(descriptors), k)]
        for _ in range(_ROUNDS):
            members = _members(descriptors, centres)
            counts = members.sum(axis=1, keepdims=True)
            centres = np.where(counts > 0, members @ descriptors / np.maximum(counts, 1), centres)
        return cls(centres, sampled[-1].descriptor_id)

    def describe(self, features: Features) -> Array:
        """The photo's vector: float32 of unit length, or zero for a photo without features."""
        descriptors, scores = as_numpy(features.descriptors.float()), as_numpy(features.scores)
        ids = {self.descriptor_id, features.descriptor_id} - {None}
        if descriptors.shape[1] != self.centres.shape[1] or len(ids) > 1:
            raise InputError(
                f"the features have {descriptors.shape[1]}-D descriptors "
                f"({features.descriptor_id or 'of unknown type'}), but the codebook was learned "
                f"from {self.centres.shape[1]}-D ones ({self.descriptor_id or 'of unknown type'}); "
                "extract the photo as the others were extracted"
            )
        members = _members(descriptors, self.centres)
        if len(scores) and scores.min() >= 0 and scores.max() > 0:  # not if they are logarithms
            members *= scores / scores.max()
        sums = members @ descriptors - members.sum(axis=1, keepdims=True) * self.centres
        rooted = (np.sign(sums) * np.sqrt(np.abs(sums))).ravel()
        return np.asarray(rooted / max(float(np.linalg.norm(rooted)), _TINY), np.float32)


def _members(descriptors: Array, centres: Array) -> Array:
    """K x N, 1 where a centre is the nearest one of a descriptor."""
    nearest = (descriptors @ centres.T - (centres**2).sum(axis=1) / 2).argmax(axis=1)
    return np.asarray(nearest == np.arange(len(centres))[:, None], np.float32)


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
    """

    names: tuple[str, ...]
    vectors: NDArray[np.float16]
    codebook: Codebook

    @classmethod
    def build(
        cls, features: Mapping[str, Features], names: Iterable[str] | None = None
    ) -> GlobalDescriptors:
        """Describe photos by their local features, with a codebook that is learned from them.

        `features` may be a `FeatureFile`. Without `names` all its photos are described.
        """
        names = tuple(features if names is None else names)
        codebook = Codebook.learn(features, names)
        vectors = np.empty((len(names), codebook.centres.size), np.float16)
        for name, row in zip(names, vectors, strict=True):
            with np.errstate(under="ignore"):  # callers may let NumPy raise
                row[:] = codebook.describe(features[name])
        return cls(names, vectors, codebook)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> GlobalDescriptors:
        """Read a file that `save` wrote; FormatError if it is damaged or of another kind."""
        with GlobalDescriptorFile(os.fspath(path)) as file:
            names, vectors = file.read()
            codebook = Codebook(file.read_codebook(), (file.settings or {}).get("descriptor_id"))
            return cls(names, vectors.astype(np.float16), codebook)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file for `open`, which hloc's `pairs_from_retrieval` reads as well."""
        check_replaceable(Path(path), GlobalDescriptors.open)
        settings = {"method": "vlad", "descriptor_id": self.codebook.descriptor_id}
        vectors = dict(zip(self.names, self.vectors, strict=True))
        write_global_descriptors(Path(path), vectors, self.codebook.centres, settings)

    def only(self, names: Iterable[str]) -> GlobalDescriptors:
        """The descriptors of some of the photos; unknown names are ignored."""
        row_of = {name: row for row, name in enumerate(self.names)}
        names = tuple(name for name in names if name in row_of)
        return replace(self, names=names, vectors=self.vectors[[row_of[name] for name in names]])

    def query(self, features: Features, k: int) -> list[Hit]:
        """The k photos that look most like the one with these local features: (name, cosine).

        The best is first. There are fewer than k if the collection is smaller, and none for a photo
        without features. Features that do not fit the codebook are an InputError.
        """
        if k < 1:
            raise InputError(f"the number of similar photos must be at least 1, not {k}")
        return self._search(self.codebook.describe(features)[None], k)[0]

    def neighbours(self, k: int) -> dict[str, list[Hit]]:
        """For each photo, the k other photos that look most like it, as in `query`."""
        neighbours = {}
        for first in range(0, len(self.names), _BATCH):
            batch = slice(first, first + _BATCH)
            found = self._search(self._float_vectors[batch], k + 1)  # each photo also finds itself
            for name, hits in zip(self.names[batch], found, strict=True):
                neighbours[name] = [hit for hit in hits if hit[0] != name][:k]
        return neighbours

    def _search(self, vectors: Array, k: int) -> list[list[Hit]]:
        cosines = vectors @ self._float_vectors.T
        cosines[:, ~self._float_vectors.any(axis=1)] = -np.inf  # photos without features
        cosines[~vectors.any(axis=1)] = -np.inf
        nearest = (-cosines).argsort(axis=1, kind="stable")[:, :k]
        return [
            [(self.names[i], float(row[i])) for i in rows if row[i] > -np.inf]
            for row, rows in zip(cosines, nearest.tolist(), strict=True)
        ]

    @cached_property
    def _float_vectors(self) -> Array:
        return self.vectors.astype(np.float32)
