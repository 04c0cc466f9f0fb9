"""FAISS flat: exact inner product over one matrix in memory, rows overwritten in place."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.core import keys
from orchestrator.errors import UnreachableError
from orchestrator.index import IndexOptions, Mask, Rows, Vectors

try:
    import faiss
except ImportError as missing:
    raise UnreachableError(
        "faiss is not installed: pip install 'hotrefresh[cpu]' (or 'hotrefresh[gpu]' on a CUDA machine, never both)."
    ) from missing

# The default scan is several times slower than BLAS for batches of 20 queries and more.
faiss.cvar.distance_compute_blas_threshold = 20
# Fewer queries are compared with one row after the other.
_ROW_BY_ROW_BELOW = 4


class FaissFlat:
    """FAISS's exact search over a matrix of ours: replacing 1,024 rows is a copy, not remove and add.

    The matrix is numpy's and not an index's, because numpy asks for huge pages: rows at random places are written
    1.4 times as fast.
    """

    exact = True

    def __init__(self, vectors: Vectors, options: IndexOptions | None = None) -> None:
        del options
        self.dim = vectors.shape[1]
        self._hold(np.array(vectors, np.float32, order="C"))

    def _hold(self, matrix: Vectors) -> None:
        self._matrix = matrix
        # A row as one value: one copy a row, where float32 rows are copied by a loop over the row.
        self._whole = _whole(matrix)

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        if vectors.shape != (len(rows), self._matrix.shape[1]):
            raise ValueError(f"{vectors.shape} are not {len(rows)} rows of {self._matrix.shape[1]}")
        if len(rows):
            self._whole[rows] = _whole(np.ascontiguousarray(vectors, np.float32))

    def grow(self, n: int) -> None:
        if n > len(self._matrix):
            grown = np.zeros((n, self._matrix.shape[1]), np.float32)
            grown[: len(self._matrix)] = self._matrix
            self._hold(grown)

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """Equal scores by the lower row, as everywhere; FAISS leaves them to chance.

        In batches of _ROW_BY_ROW_BELOW queries and more two equal vectors may score apart by a rounding.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        found = self._ask(queries, k + 1, allowed)
        found.sort(axis=1)
        # As good as the last answer, and left out: which of them is answered was chance.
        cut = np.flatnonzero(keys.scores_of(found[:, k - 1]) == keys.scores_of(found[:, k]))
        for at in cut:
            found[at, :k] = self._look(queries[at : at + 1], k, allowed)
        best = found[:, :k]
        there = best != keys.EMPTY
        scores = np.where(there, keys.scores_of(best), np.float32(-np.inf))
        return scores, np.where(there, keys.rows_of(best).astype(np.int64), -1)

    def _ask(self, queries: Vectors, k: int, allowed: Mask | None) -> keys.Keys:
        """FAISS's answers as keys (q, k), EMPTY where there are fewer."""
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        bits = self._bits(len(queries), allowed)  # FAISS keeps a pointer to them
        n, dim = self._matrix.shape
        faiss.knn_inner_product(
            faiss.swig_ptr(queries), faiss.swig_ptr(self._matrix), dim, len(queries), n, k,
            faiss.swig_ptr(scores), faiss.swig_ptr(rows), None if bits is None else faiss.IDSelectorBitmap(bits),
        )  # fmt: skip
        packed = keys.pack(scores, np.maximum(rows, 0))
        packed[rows < 0] = keys.EMPTY
        return packed

    def _bits(self, queries: int, allowed: Mask | None) -> npt.NDArray[np.uint8] | None:
        """The rows that FAISS is to look at, a bit each; None for all of them, without looking at bits.

        FAISS sums up row by row where it looks at bits. For few queries that is the quicker way, and a score has the same
        bits whichever rows are there.
        """
        if allowed is not None:
            return np.packbits(allowed, bitorder="little")
        return np.full((len(self._matrix) + 7) // 8, 255, np.uint8) if queries < _ROW_BY_ROW_BELOW else None

    def _look(self, query: Vectors, k: int, allowed: Mask | None) -> keys.Keys:
        """The exact answers of one query (1, dim) as keys (k,), ties by row: every row that is as good as the last answer.

        By the sums of the first pass, so that a score has the same bits wherever k cuts.
        """
        edge = keys.scores_of(self._ask(query, k, allowed)).min()
        bits = self._bits(1, allowed)
        result = faiss.RangeSearchResult(1)
        n, dim = self._matrix.shape
        faiss.range_search_inner_product(
            faiss.swig_ptr(query), faiss.swig_ptr(self._matrix), dim, 1, n, float(np.nextafter(edge, np.float32(-np.inf))),
            result, faiss.IDSelectorBitmap(bits),
        )  # fmt: skip
        count = int(faiss.rev_swig_ptr(result.lims, 2)[1])
        scores, rows = faiss.rev_swig_ptr(result.distances, count), faiss.rev_swig_ptr(result.labels, count)
        return np.sort(keys.pack(scores, rows))[:k]

    def vectors(self) -> Vectors:
        return self._matrix

    def read(self, rows: Rows) -> Vectors:
        return self._matrix[rows]

    def close(self) -> None:
        """It holds memory alone."""


def _whole(matrix: Vectors) -> Any:
    """A contiguous matrix (n, dim) as n values of dim floats each."""
    return matrix.view(np.dtype((np.void, matrix.shape[1] * matrix.itemsize)))[:, 0]
