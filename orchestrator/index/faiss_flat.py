"""FAISS flat: exact inner product over one matrix in memory, rows overwritten in place."""

from __future__ import annotations

from typing import Any

import numpy as np

from orchestrator.core import keys
from orchestrator.core.metrics import top_keys
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
# Rows looked through at once where FAISS's order is not ours.
_BLOCK = 65_536


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

        In batches of 20 queries and more two equal vectors may score apart by a rounding.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        found = self._ask(queries, k + 1, allowed)
        found.sort(axis=1)
        # As good as the last answer, and left out: which of them is answered was chance.
        cut = np.flatnonzero(keys.scores_of(found[:, k - 1]) == keys.scores_of(found[:, k]))
        if len(cut):
            found[cut, :k] = self._look(queries[cut], k, allowed)
        best = found[:, :k]
        there = best != keys.EMPTY
        scores = np.where(there, keys.scores_of(best), np.float32(-np.inf))
        return scores, np.where(there, keys.rows_of(best).astype(np.int64), -1)

    def _ask(self, queries: Vectors, k: int, allowed: Mask | None) -> keys.Keys:
        """FAISS's answers as keys (q, k), EMPTY where there are fewer."""
        scores = np.empty((len(queries), k), np.float32)
        rows = np.empty((len(queries), k), np.int64)
        # FAISS keeps a pointer to them.
        bits = None if allowed is None else np.packbits(allowed, bitorder="little")
        n, dim = self._matrix.shape
        faiss.knn_inner_product(
            faiss.swig_ptr(queries), faiss.swig_ptr(self._matrix), dim, len(queries), n, k,
            faiss.swig_ptr(scores), faiss.swig_ptr(rows), None if bits is None else faiss.IDSelectorBitmap(bits),
        )  # fmt: skip
        packed = keys.pack(scores, np.maximum(rows, 0))
        packed[rows < 0] = keys.EMPTY
        return packed

    def _look(self, queries: Vectors, k: int, allowed: Mask | None) -> keys.Keys:
        """The exact answers as keys (q, k), ties by row, in a second pass."""
        rows = np.arange(len(self._matrix)) if allowed is None else np.flatnonzero(allowed)
        best = np.full((len(queries), k), keys.EMPTY, np.uint64)
        for at in range(0, len(rows), _BLOCK):
            some = rows[at : at + _BLOCK]
            found = top_keys(queries, self._matrix[some], k)
            found = keys.pack(keys.scores_of(found), some[keys.rows_of(found)])
            best = np.sort(np.concatenate([best, found], axis=1), axis=1)[:, :k]
        return best

    def vectors(self) -> Vectors:
        return self._matrix

    def read(self, rows: Rows) -> Vectors:
        return self._matrix[rows]

    def close(self) -> None:
        """It holds memory alone."""


def _whole(matrix: Vectors) -> Any:
    """A contiguous matrix (n, dim) as n values of dim floats each."""
    return matrix.view(np.dtype((np.void, matrix.shape[1] * matrix.itemsize)))[:, 0]
