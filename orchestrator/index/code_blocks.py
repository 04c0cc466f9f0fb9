"""Codes in memory as they are searched: packed, in blocks of rows side by side."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from models.codecs.codes import Codes, CodeShape
from orchestrator.core import keys
from orchestrator.index import Mask, Rows
from orchestrator.index.popcount import GONE, LANES, Words

Places = npt.NDArray[np.int64]
_WORD = 8


class CodeBlocks:
    """Slots for codes, a multiple of LANES. A slot holds a code, nothing (it scores 0), or is gone (it is never answered).

    Takes the bits of a code and 8 bytes a slot: what its length is, once exactly and once as a factor.
    """

    def __init__(self, shape: CodeShape, slots: int) -> None:
        """All slots are gone."""
        self.shape = shape
        self.planes = (0,) * shape.bits
        self.most = shape.width * shape.top**2
        self.words_a_plane = -(-shape.width // (8 * _WORD))
        self._blocks = np.zeros((0, self.words_a_plane, shape.bits, LANES), np.uint64)
        self.inverse = np.zeros(0, np.float32)
        self.squares = np.zeros(0, np.int32)
        self.grow(slots)

    @property
    def words(self) -> Words:
        """What the kernels read, in one dimension."""
        return self._blocks.reshape(-1)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self._blocks.nbytes + self.inverse.nbytes + self.squares.nbytes

    def grow(self, slots: int) -> None:
        """Hold at least so many slots; the new ones are gone."""
        blocks, new = len(self._blocks), -(-slots // LANES)
        if new <= blocks:
            return
        held, inverse, squares = self._blocks, self.inverse, self.squares
        self._blocks = np.zeros((new, *held.shape[1:]), np.uint64)
        self._blocks[:blocks] = held
        self.inverse = np.zeros(new * LANES, np.float32)
        self.inverse[: len(inverse)] = inverse
        self.squares = np.full(new * LANES, GONE, np.int32)
        self.squares[: len(squares)] = squares

    def put(self, slots: Places, codes: Codes) -> None:
        """Each slot (n,) at most once, with its code (n, m) uint8."""
        squares = self.squares_of(codes)
        self._blocks[slots // LANES, :, :, slots % LANES] = self.words_of(codes)
        self.squares[slots] = squares
        self.inverse[slots] = 1 / np.sqrt(squares)

    def put_nothing(self, slots: Places, square: int) -> None:
        """Slots without a code: `square` is 0 where they score 0, GONE where they are never answered."""
        self._blocks[slots // LANES, :, :, slots % LANES] = 0
        self.squares[slots] = square
        self.inverse[slots] = 0

    def move(self, source: int, target: int) -> None:
        """One slot's code to another slot; the source is gone."""
        self._blocks[target // LANES, :, :, target % LANES] = self._blocks[
            source // LANES, :, :, source % LANES
        ]
        self.squares[target], self.inverse[target] = self.squares[source], self.inverse[source]
        self.squares[source], self.inverse[source] = GONE, 0

    def codes(self, slots: Places) -> Codes:
        """(n, m) uint8; of a slot without a code anything."""
        words = self._blocks[slots // LANES, :, :, slots % LANES]  # (n, words a plane, bits)
        planes = np.ascontiguousarray(words[:, :, ::-1].swapaxes(1, 2)).view(np.uint8)
        return self.shape.unpack(
            np.ascontiguousarray(planes[:, :, : self.shape.plane_bytes]).reshape(
                len(slots), self.shape.row_bytes
            )
        )

    def words_of(self, codes: Codes) -> Words:
        """(n, m) uint8 -> (n, words a plane, bits) uint64, the lowest bits' plane first."""
        packed = self.shape.pack(codes).reshape(len(codes), self.shape.bits, self.shape.plane_bytes)
        planes = np.zeros((len(codes), self.shape.bits, self.words_a_plane * _WORD), np.uint8)
        planes[:, ::-1, : self.shape.plane_bytes] = packed
        return np.ascontiguousarray(planes.view(np.uint64).swapaxes(1, 2))

    def squares_of(self, codes: Codes) -> npt.NDArray[np.int32]:
        """(n, m) uint8 -> (n,) int32: Σ level²."""
        levels = self.shape.levels(codes).astype(np.int16)
        squares: npt.NDArray[np.int32] = np.einsum("ij,ij->i", levels, levels, dtype=np.int32)
        return squares


def empty_heaps(queries: int, k: int) -> keys.Keys:
    """What a kernel fills: (queries, k)."""
    return np.full((queries, k), keys.EMPTY, np.uint64)


def answers(heaps: keys.Keys) -> tuple[npt.NDArray[np.float32], Rows]:
    """Scores (q, k) falling and rows (q, k); -inf and -1 where there are fewer."""
    heaps.sort(axis=1)
    found = heaps != keys.EMPTY
    scores = np.where(found, keys.scores_of(heaps), np.float32(-np.inf))
    return scores, np.where(found, keys.rows_of(heaps).astype(np.int64), -1)


def mask(allowed: Mask | None, n: int) -> Mask:
    """What a kernel takes: (n,) bool, or none where all rows are allowed."""
    held = np.zeros(0 if allowed is None else n, np.bool_)
    if allowed is not None:
        held[: len(allowed)] = allowed
    return held
