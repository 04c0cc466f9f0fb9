"""Codes in inverted lists: a search compares those whose centroids are nearest to the query."""

from __future__ import annotations

import math

import numpy as np

from models.codecs.codes import Codes, CodeShape
from orchestrator.index import IndexOptions, Mask, Rows, Vectors
from orchestrator.index.code_blocks import CodeBlocks, answers, empty_heaps, mask
from orchestrator.index.code_index import CodeIndex, shape_of
from orchestrator.index.faiss_ivf import centroids, lists_for, sample
from orchestrator.index.popcount import GONE, LANES, scan_lists
from orchestrator.index.rows import padded

_NONE = -1


class CodesIvf(CodeIndex):
    """Approximate: a code in a list that is not looked into is missed. Never fewer answers than there are codes.

    Centroids are trained on a sample of the codes as unit vectors when the index is made, and stay; `stale` says when to
    make an index anew, `rebuilt` makes it. Rows that are still floats are in no list: they are compared one by one, exactly.
    """

    def __init__(self, vectors: Vectors, options: IndexOptions | None = None) -> None:
        shape = shape_of(options, vectors.shape[1])
        self._options = options or IndexOptions()
        self._lists = _Lists(shape, vectors[:, : shape.width], self._options)
        super().__init__(self._lists, shape, vectors)
        self._made = self._lists.written
        self._imbalance = self._lists.imbalance

    @property
    def replaced_ratio(self) -> float:
        """Codes written since the lists were made, as a share of the rows."""
        return (self._lists.written - self._made) / max(1, len(self._kinds))

    def stale(self) -> bool:
        """Whether so many codes were written, or lists became so uneven, that new lists are worth their training."""
        if self.replaced_ratio >= self._options.rebuild_share:
            return True
        return self.replaced_ratio >= 0.1 * self._options.rebuild_share and (
            self._lists.imbalance > 2 * self._imbalance
        )

    def rebuilt(self, vectors: Vectors) -> CodesIvf:
        """An index of `vectors` with lists made from them; this one is not touched."""
        return CodesIvf(vectors, self._options)


class _Lists:
    """A list is a chain of blocks, of which only the last one has room. Rows without a code are in none."""

    exact = False

    def __init__(self, shape: CodeShape, vectors: Vectors, options: IndexOptions) -> None:
        """`vectors` (n, m) to train on; none of them is in a list yet."""
        trained_on = sample(vectors, options.seed)
        self._centroids = centroids(trained_on, lists_for(len(vectors), len(trained_on)), options.seed)
        count = self._centroids.ntotal
        self._nprobe = min(count, options.nprobe or max(8, math.ceil(count / 16)))
        self._blocks = CodeBlocks(shape, 0)
        self._shape = shape
        self._last = np.full(count, _NONE, np.int64)
        self._before = np.zeros(0, np.int64)
        self._filled = np.zeros(0, np.int64)  # slots of a block that are taken: the first ones
        self._free: list[int] = []
        self._row_of = np.zeros(0, np.int64)
        self._slot_of = np.full(len(vectors), _NONE, np.int64)
        self._list_of = np.full(len(vectors), _NONE, np.int64)
        self._held = 0  # codes in all lists
        self.written = 0
        """Codes put since the lists were made."""

    @property
    def imbalance(self) -> float:
        """Codes that a search compares, over those of equally long lists: 1 is even."""
        sizes = np.bincount(self._list_of[self._list_of >= 0], minlength=len(self._last)).astype(np.float64)
        return float(len(sizes) * np.square(sizes).sum() / sizes.sum() ** 2) if sizes.any() else 1.0

    def put(self, rows: Rows, codes: Codes) -> None:
        self.take(rows, answered=False)
        if not len(rows):
            return
        lists = self._centroids.search(self._shape.unit(codes), 1)[1][:, 0]
        order = np.argsort(lists, kind="stable")  # a list's new blocks lie one behind the other
        slots = np.array([self._slot(int(one)) for one in lists[order]], np.int64)
        self._blocks.put(slots, codes[order])
        self._row_of[slots] = rows[order]
        self._slot_of[rows[order]] = slots
        self._list_of[rows] = lists
        self._held += len(rows)
        self.written += len(rows)

    def _slot(self, of: int) -> int:
        """The next free slot of a list."""
        block = int(self._last[of])
        if block < 0 or self._filled[block] == LANES:
            if not self._free:
                self._more()
            fresh = self._free.pop()
            self._before[fresh], self._last[of], block = block, fresh, fresh
        self._filled[block] += 1
        return block * LANES + int(self._filled[block]) - 1

    def _more(self) -> None:
        """Blocks for an eighth more."""
        held = len(self._before)
        new = held + max(64, held // 8)
        self._blocks.grow(new * LANES)
        self._before = np.append(self._before, np.full(new - held, _NONE))
        self._filled = np.append(self._filled, np.zeros(new - held, np.int64))
        self._row_of = np.append(self._row_of, np.full((new - held) * LANES, _NONE))
        self._free = list(range(new - 1, held - 1, -1))

    def take(self, rows: Rows, answered: bool) -> None:
        """A list's last code fills each gap."""
        del answered  # a row in no list is not answered, which it need not be
        for row in rows[self._slot_of[rows] >= 0]:
            slot, of = int(self._slot_of[row]), int(self._list_of[row])
            block = int(self._last[of])
            tail = block * LANES + int(self._filled[block]) - 1
            if tail != slot:
                self._blocks.move(tail, slot)
                moved = self._row_of[tail]
                self._row_of[slot], self._slot_of[moved] = moved, slot
            else:
                self._blocks.put_nothing(np.array([tail]), GONE)
            self._row_of[tail] = self._slot_of[row] = self._list_of[row] = _NONE
            self._filled[block] -= 1
            self._held -= 1
            if not self._filled[block]:
                self._last[of] = self._before[block]
                self._free.append(block)

    def grow(self, n: int) -> None:
        new = np.full(n - len(self._slot_of), _NONE, np.int64)
        self._slot_of, self._list_of = np.append(self._slot_of, new), np.append(self._list_of, new)

    def search(self, queries: Codes, there: Mask, k: int, allowed: Mask | None) -> tuple[Vectors, Rows]:
        count = self._held if allowed is None else int(np.count_nonzero((self._slot_of >= 0) & allowed))
        k_there = min(k, count)
        if not k_there or not len(queries):
            return padded(np.zeros((len(queries), 0), np.float32), np.zeros((len(queries), 0), np.int64), k)
        # No more allowed rows than a search would look at: all lists, which misses none.
        few = allowed is not None and count * len(self._last) <= self._nprobe * len(self._slot_of)
        nprobe = len(self._last) if few else self._nprobe
        scores, rows = self._probe(queries, there, k_there, allowed, nprobe)
        short = np.flatnonzero((rows < 0).any(axis=1))
        if len(short):
            scores[short], rows[short] = self._probe(
                queries[short], there[short], k_there, allowed, len(self._last)
            )
        return padded(scores, rows, k)

    def _probe(
        self, queries: Codes, there: Mask, k: int, allowed: Mask | None, nprobe: int
    ) -> tuple[Vectors, Rows]:
        held = self._blocks
        heaps = empty_heaps(len(queries), k)
        scan_lists(
            held.words, held.inverse, held.squares, self._row_of, held.words_of(queries).reshape(len(queries), -1),
            there * held.squares_of(queries).astype(np.float64), held.planes, held.most, mask(allowed, len(self._slot_of)), heaps,
            self._centroids.search(self._shape.unit(queries), nprobe)[1], self._last, self._before,
        )  # fmt: skip
        return answers(heaps)

    def codes(self, rows: Rows) -> Codes:
        return self._blocks.codes(self._slot_of[rows])
