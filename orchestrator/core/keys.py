"""Score and row packed into one u64 that sorts by falling score, then rising row.

One sort of plain integers then gives the order of a search or of a plan, ties included, and vectorises well.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Keys = npt.NDArray[np.uint64]

EMPTY = np.uint64(2**64 - 1)
"""No entry: sorts behind everything."""

MAX_ROWS = 2**32 - 1
"""Rows must stay below this; the last u32 belongs to EMPTY."""

_ROW_BITS = np.uint64(32)
_HIGHEST = 0x7F800000 ^ 0x7FFFFFFF  # the score part of +inf
_LOWEST = 0xFF800000  # the score part of -inf


def pack(scores: npt.NDArray[np.float32], rows: npt.NDArray[np.integer], out: Keys | None = None) -> Keys:
    """Keys of (score, row), of the shape that the two broadcast to; `-0.0` counts as `0.0`, no score may be NaN."""
    # + 0.0 turns -0.0 into 0.0: equal scores need equal bits.
    bits = np.atleast_1d(scores + np.float32(0)).view(np.int32)
    # A float's bits grow with it when positive and against it when negative: flip the positive half only.
    bits ^= ~(bits >> 31) & 0x7FFFFFFF
    keys = np.left_shift(bits.view(np.uint32), _ROW_BITS, out=out, dtype=np.uint64)
    return np.bitwise_or(keys, rows.astype(np.uint64, copy=False), out=out)


def scores_of(keys: Keys) -> npt.NDArray[np.float32]:
    """The scores back from their keys; NaN for EMPTY."""
    bits = (keys >> _ROW_BITS).astype(np.uint32).view(np.int32)
    bits ^= ~(bits >> 31) & 0x7FFFFFFF
    return bits.view(np.float32)


def rows_of(keys: Keys) -> npt.NDArray[np.uint32]:
    """The rows back from their keys; 2**32 - 1 for EMPTY."""
    return keys.astype(np.uint32)


def sorted_keys_hold_nan(keys: Keys) -> bool:
    """Whether a sorted, one-dimensional array of keys was packed from a NaN: they lie outside both infinities."""
    return len(keys) > 0 and (int(keys[0]) >> 32 < _HIGHEST or int(keys[-1]) >> 32 > _LOWEST)
