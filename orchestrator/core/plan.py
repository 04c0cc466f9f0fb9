"""The plan of a rollout: one permutation of a gallery's rows, and the batches that are cut from it.

`row_of[rank]` is the row re-embedded at that rank, `rank_of[row]` its inverse: 4 bytes an item, stored in chunks of
65,536 ranks. Batch `no` is the ranks `[no * batch_size, (no + 1) * batch_size)`, the last one may be shorter.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from orchestrator.core import keys

CHUNK = 65_536
"""Ranks in one stored chunk of a plan."""

BANDS = 4
"""Priority bands of batches: 0 is the most urgent."""

_BAND_ENDS_PERCENT = (10, 40, 70)
_SAMPLE = 16_384

U32 = npt.NDArray[np.uint32]


def order_rows(scores: npt.NDArray[np.float32]) -> U32:
    """Rows by falling score, equal scores by rising row: `row_of`, (n,) uint32.

    Args:
        scores: (n,) float32, any finite or infinite value.

    Score and row are packed into one u64 (score bits above, row below), so one sort of plain integers, which
    vectorises, gives the order and settles ties. `-0.0` equals `0.0`. Scratch: 8 bytes an item.

    Raises ValueError for a NaN, for another shape or dtype, and for 2**32 - 1 rows or more.
    """
    return _sorted_rows(_checked(scores))


def first_window(scores: npt.NDArray[np.float32], k: int) -> U32:
    """The first `k` entries of `order_rows(scores)` without sorting the rest: (min(k, n),) uint32.

    A sample of the scores gives a threshold that a little more than `k` of them reach; those are found in one pass and
    only they are sorted. When the sample misled (fewer than `k` reached it), an exact partition finds the threshold.
    NaN is refused where it would be in the window; `order_rows` refuses it anywhere.
    """
    scores = _checked(scores)
    n = len(scores)
    k = min(k, n)
    if k <= 0:
        return np.empty(0, np.uint32)
    rows = _rows_reaching(scores, _guessed_threshold(scores, k))
    if len(rows) < k:
        rows = _rows_reaching(scores, float(np.partition(scores, n - k)[n - k]))
    # `rows` is ascending, so a tie by position among the candidates is a tie by row.
    return rows[_sorted_rows(scores[rows])[:k]].astype(np.uint32)


def invert(row_of: U32) -> U32:
    """`rank_of` from `row_of`, or back: the inverse permutation, (n,) uint32."""
    inverse = np.empty(len(row_of), np.uint32)
    inverse[row_of] = np.arange(len(row_of), dtype=np.uint32)
    return inverse


def rerank(row_of: U32, ranks: npt.NDArray[np.int64], priority: npt.NDArray[np.float32], first: U32) -> U32:
    """The plan with the rows at `ranks` in another order: by falling priority, equal ones as the first plan has them.

    Args:
        row_of: (n,) uint32, the plan as it is.
        ranks: (m,) int64, without doubles, in the order in which they are taken. All other ranks keep their rows.
        priority: (n,) float32, of every row.
        first: (n,) uint32, the rank that every row has in the first plan.

    Raises ValueError for a NaN among the priorities of the rows that may move.
    """
    rows = row_of[ranks]
    rows = rows[np.argsort(first[rows])]
    new = row_of.copy()
    # Equal priorities go by place, and the places are those of the first plan.
    new[ranks] = rows[order_rows(np.ascontiguousarray(priority[rows]))]
    return new


def to_chunks(rank_of: U32) -> list[bytes]:
    """The permutation as little-endian u32 in chunks of `CHUNK` entries; the last may be shorter, n = 0 has none."""
    return [
        rank_of[at : at + CHUNK].astype("<u4", copy=False).tobytes() for at in range(0, len(rank_of), CHUNK)
    ]


def from_chunks(chunks: Iterable[bytes]) -> U32:
    """The permutation back from its chunks, in their order.

    Raises ValueError when the entries are not a permutation of 0..n-1: a chunk is missing, doubled or damaged.
    """
    ranks = np.frombuffer(b"".join(chunks), dtype="<u4").astype(np.uint32)
    seen = np.zeros(len(ranks), np.bool_)
    if len(ranks):
        if int(ranks.max()) >= len(ranks):
            raise ValueError(f"the plan's chunks hold rank {int(ranks.max())}, but only {len(ranks)} entries")
        seen[ranks] = True
    if not seen.all():
        raise ValueError(f"the plan's chunks lack rank {int(np.flatnonzero(~seen)[0])} of {len(ranks)}")
    return ranks


def batch_count(n: int, batch_size: int) -> int:
    """Batches of `batch_size` ranks that cover `n` items. Raises ValueError for a batch size under 1."""
    if batch_size < 1:
        raise ValueError(f"a batch holds at least one item, not {batch_size}")
    return -(-n // batch_size)


def batch_ranks(no: int, batch_size: int, n: int) -> range:
    """The ranks of batch `no`. Raises ValueError for a batch that the plan does not have."""
    if not 0 <= no < batch_count(n, batch_size):
        raise ValueError(
            f"no batch {no}: {n} items make {batch_count(n, batch_size)} batches of {batch_size}"
        )
    return range(no * batch_size, min((no + 1) * batch_size, n))


def band_of(no: int, n_batches: int) -> int:
    """The priority band of batch `no`: 0 = first tenth of the plan, 1 = up to 40 %, 2 = up to 70 %, 3 = the rest.

    A band holds batches whose *start* lies in its share, so batch 0 is always urgent. Raises ValueError outside the plan.
    """
    if not 0 <= no < n_batches:
        raise ValueError(f"no batch {no} among {n_batches}")
    return sum(100 * no >= end * n_batches for end in _BAND_ENDS_PERCENT)


def _checked(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    if scores.ndim != 1 or scores.dtype != np.float32:
        raise ValueError(f"scores must be (n,) float32, not {scores.shape} {scores.dtype}")
    if len(scores) >= keys.MAX_ROWS:
        raise ValueError(f"a plan holds fewer than {keys.MAX_ROWS} rows, not {len(scores)}")
    return np.ascontiguousarray(scores)


def _packed(scores: npt.NDArray[np.float32]) -> keys.Keys:
    """The keys of all rows, built in pieces that stay in the cache."""
    packed = np.empty(len(scores), np.uint64)
    for at in range(0, len(scores), CHUNK):
        piece = packed[at : at + CHUNK]
        keys.pack(scores[at : at + CHUNK], np.arange(at, at + len(piece), dtype=np.uint64), out=piece)
    return packed


def _sorted_rows(scores: npt.NDArray[np.float32]) -> U32:
    packed = _packed(scores)
    packed.sort()
    if keys.sorted_keys_hold_nan(packed):
        raise ValueError("scores hold NaN: an order needs a number for every row")
    return keys.rows_of(packed)


def _guessed_threshold(scores: npt.NDArray[np.float32], k: int) -> float:
    n = len(scores)
    step = n // _SAMPLE
    if step < 2:
        return float(np.partition(scores, n - k)[n - k])
    sample = scores[::step]
    # A margin of a half plus several standard deviations of the count: too few is rare, too many costs little.
    wanted = 1.5 * k * len(sample) / n
    place = int(wanted + 4 * wanted**0.5 + 4)
    if place >= len(sample):
        return float("-inf")
    return float(np.partition(sample, len(sample) - place)[len(sample) - place])


def _rows_reaching(scores: npt.NDArray[np.float32], threshold: float) -> npt.NDArray[np.int64]:
    """Rows with score >= threshold, ascending; NaN counts as reaching, so that it is seen and refused."""
    return np.flatnonzero(~(scores < np.float32(threshold)))
