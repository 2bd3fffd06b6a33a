"""Nearest neighbours among many vectors: exact, or approximate for very large collections.

Large collections are sorted into lists around centres and also stored in a few bytes a vector
(product quantization: Jégou et al., "Product quantization for nearest neighbor search", PAMI 2011).
A query searches the nearest lists by these codes, and the best candidates are compared exactly.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from d2net.io.arrays import evenly_spaced

if TYPE_CHECKING:
    import faiss

Array = NDArray[np.float32]

MAX_EXACT = 100_000
"""Collections with more vectors are searched approximately."""

_CODE_BYTES = 64
_SEARCHED_LISTS = 256
_CANDIDATES = 50
"""Candidates that are compared exactly, as a multiple of the neighbours asked for."""

_TRAINING_VECTORS_PER_LIST = 40
_BATCH = 65_536


class VectorSearch:
    """Search for the vectors with the largest cosine.

    Args:
        vectors: N x D float16 of unit length.
    """

    def __init__(self, vectors: NDArray[np.float16]) -> None:
        self._vectors = vectors

    def nearest(self, queries: Array, k: int) -> tuple[Array, NDArray[np.int64]]:
        """The k nearest vectors of each query, best first.

        Args:
            queries: Q x D float32.
            k: at least 1, at most N.

        Returns:
            Q x k cosines and rows. If an approximate search finds fewer, the last rows are -1.
        """
        if len(self._vectors) <= MAX_EXACT:
            cosines, rows = self._exact.search(queries, k)
            return cosines, rows
        _, rows = self._approximate.search(queries, k * _CANDIDATES)
        cosines = np.full((len(queries), k), -np.inf, np.float32)
        best = np.full((len(queries), k), -1, np.int64)
        for i, query in enumerate(queries):
            candidates = np.sort(rows[i][rows[i] >= 0])
            exact = self._vectors[candidates].astype(np.float32) @ query
            order = (-exact).argsort(kind="stable")[:k]
            cosines[i, : len(order)], best[i, : len(order)] = exact[order], candidates[order]
        return cosines, best

    @cached_property
    def _exact(self) -> faiss.IndexFlatIP:
        import faiss

        index = faiss.IndexFlatIP(self._vectors.shape[1])
        index.add(self._vectors.astype(np.float32))
        return index

    @cached_property
    def _approximate(self) -> faiss.Index:
        import faiss

        count, dimension = self._vectors.shape
        lists = 1 << round(np.log2(4 * np.sqrt(count)))
        index = faiss.index_factory(
            dimension, f"RR{dimension},IVF{lists},PQ{_CODE_BYTES}", faiss.METRIC_INNER_PRODUCT
        )
        inner: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
        inner.nprobe = _SEARCHED_LISTS
        inner.do_polysemous_training = False  # slow, and only used by another kind of search
        rows = evenly_spaced(count, _TRAINING_VECTORS_PER_LIST * lists)
        index.train(self._vectors[rows].astype(np.float32))
        for first in range(0, count, _BATCH):
            index.add(self._vectors[first : first + _BATCH].astype(np.float32))
        return index
