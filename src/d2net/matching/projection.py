"""Long vectors made short: their principal components.

Source: Jégou and Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of
PCA and whitening", ECCV 2012. Whitened is half here: a component is divided by the root of its
deviation. Left as they are, the few largest decide alone; EXPERIMENTS.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Projection:
    """Takes vectors to the directions in which some others vary most.

    Attributes:
        axes: D x D' float32, orthogonal columns, that of the largest variance first, longer where
            the variance is smaller; their values are those of half precision, in which they are
            stored.
        offset: D' float32, the others' mean along the axes.
    """

    axes: Array
    offset: Array

    @classmethod
    def learn(cls, vectors: Array, dimension: int) -> Projection:
        """The principal components of some vectors.

        Args:
            vectors: N x D; the same give the same components.
            dimension: how many components, fewer where the vectors vary in fewer directions.
        """
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        # N is smaller than D: the N x N products have the same variances.
        variances, rows = np.linalg.eigh((centred @ centred.T).astype(np.float64))
        strongest = variances.argsort()[::-1][:dimension]
        strongest = strongest[variances[strongest] > 1e-6 * variances.max(initial=0)]
        relative = variances[strongest] / variances.max(initial=0)
        scaled = rows[:, strongest] / np.sqrt(variances[strongest]) / relative**0.25
        axes = (centred.T @ scaled.astype(np.float32)).astype(np.float16).astype(np.float32)
        return cls(axes, mean @ axes)

    def __call__(self, vector: Array) -> Array:
        """D' float32 of unit length; zero for zero."""
        if not vector.any():
            return np.zeros_like(self.offset)
        short = vector @ self.axes - self.offset
        unit: Array = short / max(float(np.linalg.norm(short)), _TINY)
        return unit
