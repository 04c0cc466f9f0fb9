"""What both indexes of codes do: which rows are codes and which are floats, and one list of answers of both."""

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
CODE, FLOAT, WIDE, NOTHING = (np.uint8(kind) for kind in range(4))
"""What a row holds: a code; a float behind zeros; anything else, such as a code whose scores are calibrated; zeros."""

# Lengths of codes as float32, of what is not calibrated.
_OFF_UNIT = 1e-4
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

    def search(self, queries: Codes, there: Mask, k: int, allowed: Mask | None) -> tuple[Vectors, Rows]:
        """As `VectorIndex.search`, of the rows that hold codes; `there` (q,): queries that have one, others score 0."""

    def codes(self, rows: Rows) -> Codes:
        """(n, m) of rows that hold codes."""


class CodeIndex:
    """Unit vectors that are codes, kept as codes; where rows are wider than a code, other rows too, kept as floats.

    A row is a code, [code | 0], or a float, [0 | float], as floats become codes (`orchestrator.core.joint`), or another
    vector, as where scores are calibrated meanwhile, or nothing. A matrix of floats is as long as the gallery and is there
    only while it holds a row; its pages are the system's until they are written.
    """

    def __init__(self, store: CodeStore, shape: CodeShape, vectors: Vectors) -> None:
        self.exact = store.exact
        self.dim = vectors.shape[1]
        self._store = store
        self._shape = shape
        self._kinds: Kinds = np.full(len(vectors), NOTHING, np.uint8)
        self._floats: dict[np.uint8, FaissFlat] = {}
        for at in range(0, len(vectors), BLOCK):
            self.replace(np.arange(at, min(at + BLOCK, len(vectors))), vectors[at : at + BLOCK])
        # The kernel is compiled now, where it never was: the first search shall not wait for that.
        store.search(np.zeros((1, shape.width), np.uint8), np.ones(1, np.bool_), 1, None)

    def _first(self, kind: np.uint8) -> int:
        """The first column that is kept of rows of a kind."""
        return self._shape.width if kind == FLOAT else 0

    def replace(self, rows: Rows, vectors: Vectors) -> None:
        """Raises ValueError for what is no code where rows are as wide as a code."""
        if vectors.shape != (len(rows), self.dim):
            raise ValueError(f"{vectors.shape} are not {len(rows)} rows of {self.dim}")
        rows, vectors = last_of_each(rows, vectors)
        if len(rows) and not (rows[0] >= 0 and rows[-1] < len(self._kinds)):
            raise IndexError(f"rows {rows[0]} to {rows[-1]} of {len(self._kinds)}")
        codes, kinds = self._sorted(vectors)
        self._store.put(rows[kinds == CODE], codes)
        self._store.take(rows[(kinds == FLOAT) | (kinds == WIDE)], answered=False)
        self._store.take(rows[kinds == NOTHING], answered=True)
        for kind in (FLOAT, WIDE):
            self._write_floats(kind, rows, vectors, kinds == kind)
        self._kinds[rows] = kinds
        for kind in [each for each in self._floats if not (self._kinds == each).any()]:
            del self._floats[kind]

    def _sorted(self, vectors: Vectors) -> tuple[Codes, Kinds]:
        """The codes of those that are codes, and the kind of each (n,)."""
        width = self._shape.width
        coded: Mask = np.asarray(vectors[:, :width].any(axis=1))
        others: Mask = np.asarray(vectors[:, width:].any(axis=1))
        kinds = np.where(coded, WIDE, np.where(others, FLOAT, NOTHING))
        lengths = np.sqrt(np.einsum("ij,ij->i", vectors[:, :width], vectors[:, :width]))
        kinds[coded & ~others & (np.abs(lengths - 1) < _OFF_UNIT)] = CODE
        if self.dim == width and (kinds == WIDE).any():
            raise ValueError(f"{int((kinds == WIDE).sum())} vectors are no codes: they are not of length 1")
        return self._shape.of_unit(vectors[kinds == CODE, :width]), kinds

    def _write_floats(self, kind: np.uint8, rows: Rows, vectors: Vectors, new: Mask) -> None:
        """Rows that are of a kind of floats now, and zeros over those that no longer are."""
        first = self._first(kind)
        if new.any() and kind not in self._floats:
            self._floats[kind] = FaissFlat(np.zeros((0, self.dim - first), np.float32))
            self._floats[kind].grow(len(self._kinds))
        if kind in self._floats:
            changed = new | (self._kinds[rows] == kind)
            written = np.where(new[changed, None], vectors[changed, first:], np.float32(0))
            self._floats[kind].replace(rows[changed], written)

    def grow(self, n: int) -> None:
        missing = n - len(self._kinds)
        if missing > 0:
            self._kinds = np.append(self._kinds, np.full(missing, NOTHING, np.uint8))
            self._store.grow(n)
            for floats in self._floats.values():
                floats.grow(n)

    def search(self, queries: Vectors, k: int, allowed: Mask | None = None) -> tuple[Vectors, Rows]:
        """Raises UsageError for queries whose first part is neither a code nor zeros, which score 0 with every code."""
        queries = np.ascontiguousarray(queries, np.float32)
        found = [self._store.search(*self._asked(queries[:, : self._shape.width]), k, allowed)]
        for kind, floats in self._floats.items() if len(queries) else ():
            here = self._kinds == kind
            first = self._first(kind)
            found.append(floats.search(queries[:, first:], k, here if allowed is None else here & allowed))
        if len(found) == 1:
            return found[0]
        return merge_top_k([scores for scores, _ in found], [rows for _, rows in found], k)

    def _asked(self, queries: Vectors) -> tuple[Codes, Mask]:
        """Codes (q, m) of queries, and which of them have one."""
        there: Mask = np.asarray(queries.any(axis=1))
        lengths = np.sqrt(np.einsum("ij,ij->i", queries[there], queries[there]))
        codes: Codes = np.zeros(queries.shape, np.uint8)
        try:
            codes[there] = self._shape.of_unit(queries[there])
            if (np.abs(lengths - 1) >= _OFF_UNIT).any():
                raise ValueError("some are not of length 1")
        except ValueError as error:
            raise UsageError(f"an index of codes compares codes, and of the queries {error}") from error
        return codes, there

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
        for kind, floats in self._floats.items():
            found[:, self._first(kind) :] += floats.read(rows)  # zeros for rows of other kinds
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
