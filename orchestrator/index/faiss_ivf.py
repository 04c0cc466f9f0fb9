"""FAISS inverted lists: a search looks into the lists whose centroids are nearest to the query, not into all vectors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from orchestrator.errors import UnreachableError
from orchestrator.index import IndexOptions, Mask, Rows, Vectors
from orchestrator.index.rows import among

try:
    import faiss
except ImportError as missing:
    raise UnreachableError(
        "faiss is not installed: pip install 'hotrefresh[cpu]' (or 'hotrefresh[gpu]' on a CUDA machine, never both)."
    ) from missing

# Vectors that a centroid is trained on: FAISS's least, and a quarter of its most, which takes a quarter of the time.
_POINTS_LEAST, _POINTS_MOST = 39, 64
_ITERATIONS = 10
# Vectors assigned to lists together: 16 MiB of codes at 64 dimensions.
_BLOCK = 65_536


class FaissIvf:
    """An IndexIVFFlat whose rows are moved between lists in place.

    Approximate: a neighbour in a list that is not looked into is missed. Its recall is measured in
    docs/INDEX-BACKENDS.md, not promised. Never fewer answers than there are: queries with too few look into every list.

    The lists are made from a sample when the index is made. Rows of another model move between them but their centroids
    stay, so lists grow uneven: `stale` says when to make an index anew, `rebuilt` makes it.
    """

    exact = False

    def __init__(self, vectors: Vectors, options: IndexOptions | None = None) -> None:
        self._options = options or IndexOptions()
        vectors = np.ascontiguousarray(vectors, np.float32)
        self.dim = vectors.shape[1]
        self._quantizer = faiss.IndexFlatIP(self.dim)
        trained_on = sample(vectors, self._options.seed)
        self.lists = lists_for(len(vectors), len(trained_on))
        self._index = faiss.IndexIVFFlat(self._quantizer, self.dim, self.lists, faiss.METRIC_INNER_PRODUCT)
        self._index.cp.seed = self._options.seed
        self._index.cp.niter = _ITERATIONS
        self._index.cp.min_points_per_centroid = 1  # it would warn on stderr; `lists_for` keeps to the bound
        self._index.train(trained_on)
        self._index.set_direct_map_type(faiss.DirectMap.Array)
        self._append(vectors)
        self._replaced = np.zeros(len(vectors), np.bool_)
        self._n_replaced = 0
        self._imbalance = self.imbalance

    @property
    def imbalance(self) -> float:
        """Vectors that a search compares, over those of equally long lists: 1 is even (FAISS's imbalance factor)."""
        return float(self._index.invlists.imbalance_factor()) if self._index.ntotal else 1.0

    @property
    def nprobe(self) -> int:
        """Lists that a search looks into."""
        return min(self.lists, self._options.nprobe or max(8, math.ceil(self.lists / 16)))

    @property
    def replaced_ratio(self) -> float:
        """Share of rows replaced since the lists were made, 0..1."""
        return self._n_replaced / max(1, len(self._replaced))

    def stale(self) -> bool:
        """Whether so many rows were replaced, or lists became so uneven, that new lists are worth their training."""
        if self.replaced_ratio >= self._options.rebuild_share:
            return True
        # Uneven lists make searches slower before they make them worse; a few moved rows do not count.
        return self.replaced_ratio >= 0.1 * self._options.rebuild_share and (
            self.imbalance > 2 * self._imbalance
        )

    def rebuilt(self, vectors: Vectors) -> FaissIvf:
        """An index of `vectors` with lists made from them; this one is not touched."""
        return FaissIvf(vectors, self._options)

    def _lists_of(self, vectors: Vectors, rows: Rows) -> Rows:
        """The list of each vector (m,). Zeros are equally near to every centroid: they are dealt out, not heaped in one."""
        lists: Rows = self._quantizer.search(vectors, 1)[1][:, 0]
        empty = ~vectors.any(axis=1)
        lists[empty] = rows[empty] % self.lists
        return lists

    def _append(self, vectors: Vectors) -> None:
        for at in range(0, len(vectors), _BLOCK):
            part = vectors[at : at + _BLOCK]
            first = self._index.ntotal
            lists = self._lists_of(part, np.arange(first, first + len(part)))
            self._index.add_core(len(part), faiss.swig_ptr(part), None, faiss.swig_ptr(lists))

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        # Not `update_vectors`: it would heap zeros in one list. This is what it does otherwise: take the code out of
        # its old list, the last code of that list fills the gap, and append it to the new list.
        rows = np.ascontiguousarray(rows, np.int64)
        vectors = np.ascontiguousarray(vectors, np.float32)
        lists = np.ascontiguousarray(self._lists_of(vectors, rows))
        self._index.direct_map.update_codes(
            self._index.invlists,
            len(rows),
            faiss.swig_ptr(rows),
            faiss.swig_ptr(lists),
            faiss.swig_ptr(vectors.view(np.uint8)),
        )
        fresh = np.unique(rows[~self._replaced[rows]])
        self._replaced[fresh] = True
        self._n_replaced += len(fresh)

    def grow(self, n: int) -> None:
        missing = n - self._index.ntotal
        if missing > 0:
            self._append(np.zeros((missing, self.dim), np.float32))
            self._replaced = np.append(self._replaced, np.zeros(missing, np.bool_))

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        queries = np.ascontiguousarray(queries, np.float32)
        there = self._index.ntotal if allowed is None else int(np.count_nonzero(allowed))
        if allowed is not None and there * self.lists <= self.nprobe * self._index.ntotal:
            # No more than a search would look at: comparing with each of them costs no more, and misses none.
            rows = np.flatnonzero(allowed)
            held = self._index.reconstruct_batch(rows) if len(rows) else np.zeros((0, self.dim), np.float32)
            return among(queries, held, rows, k)
        scores, found = self._probe(queries, k, allowed, self.nprobe)
        short = np.flatnonzero((found[:, : min(k, there)] < 0).any(axis=1))
        if len(short):
            scores[short], found[short] = self._probe(queries[short], k, allowed, self.lists)
        return scores, found

    def _probe(self, queries: Vectors, k: int, allowed: Mask | None, nprobe: int) -> tuple[Vectors, Rows]:
        chosen: dict[str, Any] = {}
        if allowed is not None:
            bits = np.packbits(allowed, bitorder="little")  # FAISS keeps a pointer to it
            chosen["sel"] = faiss.IDSelectorBitmap(bits)
        params = faiss.SearchParametersIVF(nprobe=nprobe, **chosen)
        scores, rows = self._index.search(queries, k, params=params)
        return scores, rows

    def vectors(self) -> Vectors:
        """A copy, read back out of the lists: they are stored there alone."""
        n = self._index.ntotal
        return self._index.reconstruct_n(0, n) if n else np.zeros((0, self.dim), np.float32)

    def read(self, rows: Rows) -> Vectors:
        return self._index.reconstruct_batch(rows) if len(rows) else np.zeros((0, self.dim), np.float32)

    def close(self) -> None:
        """It holds memory alone."""


def lists_for(n: int, sampled: int) -> int:
    """How many lists `n` vectors get: 4 sqrt(n), as FAISS's guide advises, and no more than the sample can train."""
    return max(1, min(round(4 * math.sqrt(n)), sampled // _POINTS_LEAST))


def centroids(trained_on: Vectors, lists: int, seed: int) -> Any:
    """A flat FAISS index of the centroids of so many lists, found by k-means on unit vectors."""
    found = faiss.Kmeans(
        trained_on.shape[1], lists, niter=_ITERATIONS, seed=seed, spherical=True, min_points_per_centroid=1
    )
    found.train(trained_on)
    return found.index


def sample(vectors: Vectors, seed: int) -> Vectors:
    """Rows that have a vector, as many as k-means makes use of, drawn by `seed`; one row of zeros where none has."""
    rows = np.flatnonzero(vectors.any(axis=1))
    if not len(rows):
        return np.zeros((1, vectors.shape[1]), np.float32)
    most = _POINTS_MOST * lists_for(len(rows), len(rows))
    if len(rows) > most:
        rows = np.sort(np.random.default_rng(seed).choice(rows, most, replace=False))
    return np.ascontiguousarray(vectors[rows])
