"""What both indexes of codes do: which rows are codes and which still floats, and one list of answers of both."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.codecs.codes import Codes, CodeShape
from orchestrator.core.merge import merge_top_k
from orchestrator.errors import UsageError
from orchestrator.index import IndexOptions, Mask, Rows, Vectors
from orchestrator.index.faiss_flat import FaissFlat
from orchestrator.index.rows import last_of_each

# Rows that are turned into codes, or back, together: 64 MiB of float32 at 256 dimensions.
BLOCK = 65_536
CODE, FLOAT, NOTHING = np.uint8(0), np.uint8(1), np.uint8(2)
"""What a row holds."""

Kinds = npt.NDArray[np.uint8]


class CodeStore(Protocol):
    """Codes by row, searched: what `codes` and `codes-ivf` do each in their own way."""

    exact: bool

    def put(self, rows: Rows, codes: Codes) -> None:
        """Rows (n,), each at most once, get codes (n, m)."""

    def take(self, rows: Rows, answered: bool) -> None:
        """Rows (n,) hold no code any more; `answered`: they may be answered with score 0."""

    def grow(self, n: int) -> None:
        """Hold `n` rows; the new ones hold no code and may be answered with score 0."""

    def search(self, queries: Codes, k: int, allowed: Mask | None) -> tuple[Vectors, Rows]:
        """As `VectorIndex.search`, of the rows that hold codes."""

    def codes(self, rows: Rows) -> Codes:
        """(n, m) of rows that hold codes."""


class CodeIndex:
    """Unit vectors that are codes, kept as codes; where rows are wider than a code, floats behind it, kept as floats.

    A row is a code, [code | 0], or a float [0 | float], or nothing (`orchestrator.core.joint`). The matrix of floats is as
    long as the gallery and is there only while a row is a float; its pages are the system's until they are written.
    """

    def __init__(self, store: CodeStore, shape: CodeShape, vectors: Vectors) -> None:
        self.exact = store.exact
        self.dim = vectors.shape[1]
        self._store = store
        self._shape = shape
        self._kinds: Kinds = np.full(len(vectors), NOTHING, np.uint8)
        self._floats: FaissFlat | None = None
        for at in range(0, len(vectors), BLOCK):
            self.replace(np.arange(at, min(at + BLOCK, len(vectors))), vectors[at : at + BLOCK])
        # The kernel is compiled now, where it never was: the first search shall not wait for that.
        store.search(np.zeros((1, shape.width), np.uint8), 1, None)

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        """Raises ValueError where a row is neither a code, nor a float beside zeros, nor zeros."""
        if vectors.shape != (len(rows), self.dim):
            raise ValueError(f"{vectors.shape} are not {len(rows)} rows of {self.dim}")
        rows, vectors = last_of_each(rows, vectors)
        if len(rows) and not (rows[0] >= 0 and rows[-1] < len(self._kinds)):
            raise IndexError(f"rows {rows[0]} to {rows[-1]} of {len(self._kinds)}")
        width = self._shape.width
        coded: Mask = np.asarray(vectors[:, :width].any(axis=1))
        floating: Mask = np.asarray(vectors[:, width:].any(axis=1))
        if (coded & floating).any():
            raise ValueError(f"{int((coded & floating).sum())} rows are codes and floats at once")
        codes = self._shape.of_unit(vectors[coded, :width])
        self._store.put(rows[coded], codes)
        self._store.take(rows[floating], answered=False)
        self._store.take(rows[~coded & ~floating], answered=True)
        self._write_floats(rows, vectors[:, width:], floating)
        self._kinds[rows] = np.where(coded, CODE, np.where(floating, FLOAT, NOTHING))
        if self._floats is not None and not (self._kinds == FLOAT).any():
            self._floats = None

    def _write_floats(self, rows: Rows, floats: Vectors, floating: Mask) -> None:
        if floating.any() and self._floats is None:
            self._floats = FaissFlat(np.zeros((0, self.dim - self._shape.width), np.float32))
            self._floats.grow(len(self._kinds))
        if self._floats is not None:
            changed = floating | (self._kinds[rows] == FLOAT)
            self._floats.replace(rows[changed], floats[changed])

    def grow(self, n: int) -> None:
        missing = n - len(self._kinds)
        if missing > 0:
            self._kinds = np.append(self._kinds, np.full(missing, NOTHING, np.uint8))
            self._store.grow(n)
            if self._floats is not None:
                self._floats.grow(n)

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """Raises UsageError for queries whose first part is not a code."""
        queries = np.ascontiguousarray(queries, np.float32)
        width = self._shape.width
        try:
            codes = self._shape.of_unit(queries[:, :width])
        except ValueError as error:
            raise UsageError(f"an index of codes compares codes, and of the queries {error}") from error
        scores, rows = self._store.search(codes, k, allowed)
        if self._floats is None or not len(queries):
            return scores, rows
        here = self._kinds == FLOAT
        others = self._floats.search(queries[:, width:], k, here if allowed is None else here & allowed)
        return merge_top_k([scores, others[0]], [rows, others[1]], k)

    def vectors(self) -> Vectors:
        """A copy, made of the codes: they are kept alone."""
        found = np.zeros((len(self._kinds), self.dim), np.float32)
        for at in range(0, len(found), BLOCK):
            found[at : at + BLOCK] = self.read(np.arange(at, min(at + BLOCK, len(found))))
        return found

    def read(self, rows: Rows) -> Vectors:
        rows = np.asarray(rows, np.int64)
        found = np.zeros((len(rows), self.dim), np.float32)
        coded = self._kinds[rows] == CODE
        found[coded, : self._shape.width] = self._shape.unit(self._store.codes(rows[coded]))
        if self._floats is not None:
            found[:, self._shape.width :] = self._floats.read(rows)
        return found

    def close(self) -> None:
        """It holds memory alone."""


def shape_of(options: IndexOptions | None, dim: int) -> CodeShape:
    """The shape of the codes that an index is to hold.

    Raises:
        UsageError: the vectors are no codes of it.
    """
    shape = options.code if options is not None else None
    if shape is None:
        raise UsageError(
            "this index backend holds codes: it needs a model whose embeddings are codes (a codec). "
            "Choose another index for other models, such as faiss-flat."
        )
    if dim < shape.width:
        raise UsageError(f"codes of {shape.width} dimensions do not fit into vectors of {dim}")
    return shape
