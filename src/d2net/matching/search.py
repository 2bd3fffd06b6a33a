"""The nearest of many vectors: by comparing with all, or where they are too many, with some.

Many vectors are sorted into lists around centres, and kept a second time in few bytes each (product
quantization: Jégou et al., "Product quantization for nearest neighbor search", PAMI 2011). A query
looks into the lists nearest to it, and the best by their bytes are compared exactly.
"""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import faiss

Array = NDArray[np.float32]

EXACT_UP_TO = 100_000
"""Vectors that are compared one by one."""

_BYTES = 64
"""Of a vector's code."""

_LISTS_LOOKED_INTO = 256
_COMPARED_AGAIN = 50
"""So many times the neighbours asked for are compared exactly."""

_LEARN_PER_LIST = 40
_BATCH = 65_536


class Search:
    """Finds those of some vectors that have the largest cosine with others.

    Args:
        vectors: N x D float16, of unit length.
    """

    def __init__(self, vectors: NDArray[np.float16]) -> None:
        self._vectors = vectors

    def nearest(self, queries: Array, k: int) -> tuple[Array, NDArray[np.int64]]:
        """The k best of each query, best first.

        Args:
            queries: Q x D float32.
            k: at least 1, at most N.

        Returns:
            Q x k cosines and rows; where an inexact search finds fewer, the last rows are -1.
        """
        if len(self._vectors) <= EXACT_UP_TO:
            cosines, rows = self._all.search(queries, k)
            return cosines, rows
        _, rows = self._some.search(queries, k * _COMPARED_AGAIN)
        cosines = np.full((len(queries), k), -np.inf, np.float32)
        best = np.full((len(queries), k), -1, np.int64)
        for i, query in enumerate(queries):
            candidates = np.sort(rows[i][rows[i] >= 0])
            exact = self._vectors[candidates].astype(np.float32) @ query
            order = (-exact).argsort(kind="stable")[:k]
            cosines[i, : len(order)], best[i, : len(order)] = exact[order], candidates[order]
        return cosines, best

    @cached_property
    def _all(self) -> faiss.IndexFlatIP:
        import faiss

        index = faiss.IndexFlatIP(self._vectors.shape[1])
        index.add(self._vectors.astype(np.float32))
        return index

    @cached_property
    def _some(self) -> faiss.Index:
        import faiss

        count, dimension = self._vectors.shape
        lists = 1 << round(np.log2(4 * np.sqrt(count)))
        index = faiss.index_factory(
            dimension, f"RR{dimension},IVF{lists},PQ{_BYTES}", faiss.METRIC_INNER_PRODUCT
        )
        inner: Any = faiss.downcast_index(faiss.extract_index_ivf(index))
        inner.nprobe = _LISTS_LOOKED_INTO
        inner.do_polysemous_training = False  # slow, and for a search that is not made here
        rows = np.linspace(0, count - 1, min(count, _LEARN_PER_LIST * lists)).astype(np.int64)
        index.train(self._vectors[rows].astype(np.float32))
        for first in range(0, count, _BATCH):
            index.add(self._vectors[first : first + _BATCH].astype(np.float32))
        return index
