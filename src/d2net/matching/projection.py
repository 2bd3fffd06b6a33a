"""Projection of long vectors to their principal components.

Source: Jégou and Chum, "Negative evidences and co-occurrences in image retrieval: the benefit of
PCA and whitening", ECCV 2012. The whitening is partial here: each component is divided by the
square root of its standard deviation. Without whitening the few largest components dominate;
docs/experiments.md has the figures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

_TINY = float(np.finfo(np.float32).tiny)


@dataclass(frozen=True, eq=False)
class Projection:
    """Projects D-dimensional vectors to D' dimensions.

    Attributes:
        axes: D x D' float32, orthogonal columns by falling variance, scaled for the whitening.
            Their values are rounded to half precision, in which they are stored.
        offset: D' float32, the projected mean.
    """

    axes: Array
    offset: Array

    @classmethod
    def learn(cls, vectors: Array, dimension: int) -> Projection:
        """The principal components of some vectors; the same vectors give the same projection.

        Args:
            vectors: N x D.
            dimension: number of components; there are fewer if the vectors vary in fewer
                directions.
        """
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        # N is smaller than D, and the N x N products have the same variances.
        variances, rows = np.linalg.eigh((centred @ centred.T).astype(np.float64))
        largest = variances.argsort()[::-1][:dimension]
        largest = largest[variances[largest] > 1e-6 * variances.max(initial=0)]
        relative = variances[largest] / variances.max(initial=0)
        scaled = rows[:, largest] / np.sqrt(variances[largest]) / relative**0.25
        axes = (centred.T @ scaled.astype(np.float32)).astype(np.float16).astype(np.float32)
        return cls(axes, mean @ axes)

    def __call__(self, vector: Array) -> Array:
        """The projected vector, D' float32 of unit length; zero for a zero vector."""
        if not vector.any():
            return np.zeros_like(self.offset)
        projected = vector @ self.axes - self.offset
        unit: Array = projected / max(float(np.linalg.norm(projected)), _TINY)
        return unit
