"""Codes, compared one by one with the query: exact, at what reading their bits takes."""

from __future__ import annotations

import numpy as np

from models.codecs.codes import Codes as CodeMatrix
from models.codecs.codes import CodeShape
from orchestrator.index import IndexOptions, Mask, Rows, Vectors
from orchestrator.index.code_blocks import CodeBlocks, answers, empty_heaps, mask
from orchestrator.index.code_index import CodeIndex, shape_of
from orchestrator.index.popcount import GONE, scan
from orchestrator.index.rows import padded


class Codes(CodeIndex):
    """(u + 1) m / 8 bytes of bits a row and 9 beside them. Scores are those of the unit vectors, from exact integers."""

    def __init__(self, vectors: Vectors, options: IndexOptions | None = None) -> None:
        shape = shape_of(options, vectors.shape[1])
        super().__init__(_Flat(shape, len(vectors)), shape, vectors)


class _Flat:
    """Slot i is row i."""

    exact = True

    def __init__(self, shape: CodeShape, n: int) -> None:
        self._n = 0
        self._blocks = CodeBlocks(shape, 0)
        self.grow(n)

    def put(self, rows: Rows, codes: CodeMatrix) -> None:
        self._blocks.put(rows, codes)

    def take(self, rows: Rows, answered: bool) -> None:
        self._blocks.put_nothing(rows, 0 if answered else GONE)

    def grow(self, n: int) -> None:
        self._blocks.grow(n)
        self._blocks.put_nothing(np.arange(self._n, n), 0)
        self._n = n

    def search(self, queries: CodeMatrix, there: Mask, k: int, allowed: Mask | None) -> tuple[Vectors, Rows]:
        held = self._blocks
        heaps = empty_heaps(len(queries), min(k, self._n))
        if heaps.size:
            scan(
                held.words, held.inverse, held.squares, held.words_of(queries).reshape(len(queries), -1),
                there * held.squares_of(queries).astype(np.float64), held.planes, held.most,
                mask(allowed, len(held.squares)), heaps,
            )  # fmt: skip
        return padded(*answers(heaps), k)

    def codes(self, rows: Rows) -> CodeMatrix:
        return self._blocks.codes(rows)
