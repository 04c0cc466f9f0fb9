"""FAISS flat: exact inner product over one matrix in memory, rows overwritten in place."""

from __future__ import annotations

import numpy as np

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


class FaissFlat:
    """An IndexFlatIP whose storage is written directly: replacing 1,024 rows is a copy, not remove and add."""

    exact = True

    def __init__(self, vectors: Vectors, options: IndexOptions | None = None) -> None:
        del options
        self.dim = vectors.shape[1]
        self._index = faiss.IndexFlatIP(vectors.shape[1])
        self._add(np.ascontiguousarray(vectors, np.float32))

    def _add(self, vectors: Vectors) -> None:
        self._index.add(vectors)
        # The view stays valid as long as nothing is added.
        n, dim = self._index.ntotal, self._index.d
        self._storage: Vectors = faiss.rev_swig_ptr(self._index.get_xb(), n * dim).reshape(n, dim)

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        self._storage[rows] = vectors

    def grow(self, n: int) -> None:
        if n > self._index.ntotal:
            self._add(np.zeros((n - self._index.ntotal, self._index.d), np.float32))

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        queries = np.ascontiguousarray(queries, np.float32)
        chosen = None
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")  # FAISS keeps a pointer to it
            chosen = faiss.SearchParameters(sel=faiss.IDSelectorBitmap(bits))
        scores, rows = self._index.search(queries, k, params=chosen)
        return scores, rows

    def vectors(self) -> Vectors:
        return self._storage

    def close(self) -> None:
        """It holds memory alone."""
