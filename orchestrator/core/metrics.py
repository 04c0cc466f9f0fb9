"""Exact search and the retrieval metrics: recall at k and mean average precision.

Recall at k is "any relevant item among the first k". Ties are broken by the lower row. Queries without a relevant item
are left out of the mean and counted. Counts are integers; rates are computed at the edge.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.core import keys

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_SCORES_BYTES = 128 * 2**20
# A block of scores (at most 256 x 4,096) is looked through while it still lies in the processor's cache.
QUERY_BLOCK = 256
_GALLERY_BLOCK = 4096
_SMALLEST_SIDE = 16


@dataclass(frozen=True)
class Relevance:
    """Which gallery rows answer which query, as compressed sparse rows.

    `offsets`: (Q + 1,) int64, rising from 0; the rows that answer query q are `rows[offsets[q]:offsets[q + 1]]`, int64,
    strictly rising within a query. Raises ValueError for anything else.
    """

    offsets: I64
    rows: I64

    def __post_init__(self) -> None:
        if self.offsets.dtype != np.int64 or self.rows.dtype != np.int64:
            raise ValueError(f"relevance must be int64, not {self.offsets.dtype} and {self.rows.dtype}")
        if len(self.offsets) < 1 or self.offsets[0] != 0 or self.offsets[-1] != len(self.rows):
            raise ValueError(f"relevance offsets must run from 0 to {len(self.rows)}")
        if (np.diff(self.offsets) < 0).any():
            raise ValueError("relevance offsets must not fall")
        first_of_query = np.zeros(len(self.rows) + 1, np.bool_)
        first_of_query[self.offsets] = True
        if (self.rows < 0).any() or ((np.diff(self.rows) <= 0) & ~first_of_query[1:-1]).any():
            raise ValueError("the relevant rows of a query must be strictly rising and not negative")

    @classmethod
    def from_pairs(cls, n_queries: int, queries: npt.ArrayLike, rows: npt.ArrayLike) -> Relevance:
        """From explicit (query, row) pairs in any order, doubles allowed. ValueError for a query outside 0..n-1."""
        pairs = np.stack([np.asarray(queries, np.int64), np.asarray(rows, np.int64)], axis=1).reshape(-1, 2)
        if len(pairs) and (pairs[:, 0].min() < 0 or pairs[:, 0].max() >= n_queries):
            raise ValueError(f"relevance names a query outside 0..{n_queries - 1}")
        pairs = np.unique(pairs, axis=0)
        counts = np.bincount(pairs[:, 0], minlength=n_queries)
        return cls(np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), pairs[:, 1].copy())

    @classmethod
    def from_labels(
        cls, queries: Iterable[str | int | None], gallery: Iterable[str | int | None]
    ) -> Relevance:
        """Every gallery row with a query's label answers it; `None` is no label and matches nothing."""
        rows_by_label: dict[str | int | None, list[int]] = {}
        for row, label in enumerate(gallery):
            rows_by_label.setdefault(label, []).append(row)
        answers = [[] if label is None else rows_by_label.get(label, []) for label in queries]
        offsets = np.concatenate([[0], np.cumsum([len(rows) for rows in answers])]).astype(np.int64)
        return cls(offsets, np.array([row for rows in answers for row in rows], np.int64))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> I64:
        """(Q,) int64: relevant rows of each query."""
        return np.diff(self.offsets)

    @property
    def answerable(self) -> Bools:
        """(Q,) bool: the query has a relevant row, so it counts in the metrics."""
        return self.counts > 0

    def of(self, query: int) -> I64:
        """The rows that answer one query."""
        return self.rows[self.offsets[query] : self.offsets[query + 1]]

    def of_all(self, queries: I64) -> tuple[I64, I64]:
        """Every row that answers one of `queries` (m,): whose it is, as a place in `queries`, rising, and the row."""
        counts = self.counts[queries]
        places = np.repeat(np.arange(len(queries), dtype=np.int64), counts)
        within = np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)
        return places, self.rows[self.offsets[queries][places] + within]

    def hits(self, found: npt.NDArray[np.integer], queries: I64 | None = None) -> Bools:
        """(n,) bool: does any of `found` (n, k) rows answer its query? `queries`: (n,), default 0..n-1."""
        who = np.arange(len(found), dtype=np.int64) if queries is None else queries
        pairs, width = self._pairs
        if not len(pairs):
            return np.zeros(len(found), np.bool_)
        asked = who[:, None] * width + np.minimum(found.astype(np.int64), width - 1)
        hit: Bools = (pairs[np.minimum(np.searchsorted(pairs, asked), len(pairs) - 1)] == asked).any(axis=1)
        return hit

    @cached_property
    def _pairs(self) -> tuple[I64, int]:
        """Rising numbers `query * width + row` of all pairs, and the width; no pair has a row width - 1."""
        width = int(self.rows.max(initial=0)) + 2
        return np.repeat(np.arange(len(self), dtype=np.int64), self.counts) * width + self.rows, width


@dataclass(frozen=True)
class Retrieval:
    """Counts of one evaluation. `n` queries count, `excluded` have no relevant item; `hits` of the `n` are answered
    within the first `k`; `average_precisions` holds one value per counted query, or None when not asked for."""

    k: int
    n: int
    excluded: int
    hits: int
    average_precisions: npt.NDArray[np.float64] | None = None

    @property
    def recall(self) -> float | None:
        """Recall at k, 0..1; None when no query counts."""
        return self.hits / self.n if self.n else None

    @property
    def mean_average_precision(self) -> float | None:
        """mAP, 0..1; None when not asked for or when no query counts."""
        aps = self.average_precisions
        return float(aps.mean()) if aps is not None and len(aps) else None


def similarities(queries: F32, gallery: F32) -> F32:
    """(Q, d) x (N, d) -> (Q, N) float32 dot products.

    Both sides are padded to at least 16 rows, so that a small block takes the same matrix kernel as a large one and a
    pair's score does not depend on which block it was computed in: ties and incremental updates rely on it.
    """
    q, v = _padded(queries), _padded(gallery)
    return (q @ v.T)[: len(queries), : len(gallery)].numpy()


def _padded(vectors: F32) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(vectors, np.float32))
    if len(tensor) >= _SMALLEST_SIDE:
        return tensor
    padded = torch.zeros(_SMALLEST_SIDE, tensor.shape[1])
    padded[: len(tensor)] = tensor
    return padded


def top_k(queries: F32, gallery: F32, k: int) -> tuple[F32, I64]:
    """Exact search: the `min(k, N)` best rows of each query, best first, equal scores by the lower row.

    Args:
        queries: (Q, d) float32.
        gallery: (N, d) float32; a memory map is read block by block.

    Returns: scores (Q, k) float32 and rows (Q, k) int64. Scratch: under 200 MB whatever Q and N are.
    Raises ValueError for k < 1 or dimensions that differ.
    """
    best = top_keys(queries, gallery, k)
    return keys.scores_of(best), keys.rows_of(best).astype(np.int64)


def top_keys(queries: F32, gallery: F32, k: int) -> keys.Keys:
    """`top_k` as (Q, min(k, N)) uint64 sort keys of `orchestrator.core.keys`."""
    if k < 1:
        raise ValueError(f"a search returns at least one row, not {k}")
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(f"queries {queries.shape} and gallery {gallery.shape} must be (Q, d) and (N, d)")
    k = min(k, len(gallery))
    best = np.full((len(queries), k), keys.EMPTY, np.uint64)
    if k == 0:
        return best
    for at in range(0, len(queries), QUERY_BLOCK):
        block, found = queries[at : at + QUERY_BLOCK], best[at : at + QUERY_BLOCK]
        for start, stop in _gallery_blocks(len(gallery), k):
            _keep_best(found, block, gallery[start:stop], start)
    return best


def _gallery_blocks(n: int, k: int) -> Iterator[tuple[int, int]]:
    """Short blocks first: what they hold gives every query a threshold, so that the long ones yield few candidates."""
    start, size = 0, min(_GALLERY_BLOCK, max(1024, 2 * k))
    while start < n:
        yield start, min(n, start + size)
        start += size
        size = min(_GALLERY_BLOCK, start)


def _keep_best(best: keys.Keys, queries: F32, vectors: F32, first_row: int) -> None:
    """Merge the scores of a block of the gallery into `best` (n, k), in place."""
    if best.shape[1] == 1:
        scores = similarities(queries, vectors)
        column = scores.argmax(axis=1)
        value = scores[np.arange(len(scores)), column]
        np.minimum(best[:, 0], keys.pack(value, column + first_row), out=best[:, 0])
        return
    # Rows rise from block to block, so an equal score loses.
    lines, columns, scores = pairs_above(queries, vectors, keys.scores_of(best[:, -1]), ties=False)
    insert(best, lines, keys.pack(scores, columns + first_row))


def pairs_above(queries: F32, gallery: F32, limit: F32, *, ties: bool) -> tuple[I64, I64, F32]:
    """Every pair whose score is above its query's limit: queries (m,), rising, their gallery rows (m,), scores (m,).

    Args:
        queries: (Q, d) float32; QUERY_BLOCK at once are fastest.
        gallery: (N, d) float32, N >= 1.
        limit: (Q,) float32; NaN lets everything in.
        ties: whether a score equal to the limit counts.
    """
    scores = similarities(queries, gallery)
    fails = np.less if ties else np.less_equal
    # The best of each line first: one quick pass, and few lines are left for the comparison of every score.
    lines = np.flatnonzero(~fails(torch.from_numpy(scores).amax(dim=1).numpy(), limit))
    if len(lines) < len(scores):
        scores, limit = scores[lines], limit[lines]
    places, columns = np.divmod(np.flatnonzero(~fails(scores, limit[:, None])), len(gallery))
    return lines[places], columns, scores[places, columns]


def insert(best: keys.Keys, queries: I64, new: keys.Keys) -> keys.Keys:
    """Merge `new` keys (m,) of rising `queries` (m,) into `best` (n, k), rows sorted, in place.

    Returns the best key that found no room for each of the n queries, EMPTY where all found room.
    """
    dropped = np.full(len(best), keys.EMPTY, np.uint64)
    k = best.shape[1]
    counts = np.bincount(queries, minlength=len(best))
    touched = np.flatnonzero(counts)
    ends = np.cumsum(counts)
    at = 0
    while at < len(touched):
        # As many queries at once as keep the rectangle of buffer and newcomers within a few MB.
        widest = int(counts[touched[at : at + 256]].max())
        some = touched[at : at + max(1, min(256, 2**20 // (k + widest)))]
        at += len(some)
        width = int(counts[some].max())
        merged = np.full((len(some), k + width), keys.EMPTY, np.uint64)
        merged[:, :k] = best[some]
        lengths = counts[some]
        line = np.repeat(np.arange(len(some)), lengths)
        source = np.arange(ends[some[0]] - lengths[0], ends[some[-1]])
        merged[line, k + source - np.repeat(ends[some] - lengths, lengths)] = new[source]
        merged.sort(axis=1)
        best[some] = merged[:, :k]
        dropped[some] = merged[:, k]
    return dropped


def evaluate(
    queries: F32, gallery: F32, relevance: Relevance, k: int = 1, *, average_precision: bool = False
) -> Retrieval:
    """Search `gallery` (N, d) with `queries` (Q, d), both float32, and count what was answered.

    `average_precision` also ranks the whole gallery: AP = mean over the query's relevant rows of
    (relevant rows up to and with it) / (its rank). Raises ValueError when relevance is of another number of queries.
    """
    if len(relevance) != len(queries):
        raise ValueError(f"relevance is for {len(relevance)} queries, not {len(queries)}")
    counted = np.flatnonzero(relevance.answerable)
    _, found = top_k(queries[counted], gallery, k)
    hits = int(relevance.hits(found, counted).sum())
    aps = _average_precisions(queries, gallery, relevance, counted) if average_precision else None
    return Retrieval(
        k=k, n=len(counted), excluded=len(queries) - len(counted), hits=hits, average_precisions=aps
    )


def _average_precisions(
    queries: F32, gallery: F32, relevance: Relevance, counted: I64
) -> npt.NDArray[np.float64]:
    aps = np.empty(len(counted), np.float64)
    block = max(_SMALLEST_SIDE, _SCORES_BYTES // (4 * max(len(gallery), 1)))
    for at in range(0, len(counted), block):
        some = counted[at : at + block]
        for place, scores in enumerate(similarities(queries[some], gallery)):
            aps[at + place] = precision_of_ranks(ranks_of(scores, relevance.of(int(some[place]))))
    return aps


def ranks_of(scores: F32, rows: I64) -> I64:
    """The ranks, from 1, that `rows` (r,) have among all `scores` (N,): higher first, ties by the lower row."""
    own = scores[rows]
    rivals = np.flatnonzero(scores >= own.min())
    theirs = scores[rivals]
    ascending = np.sort(theirs)
    above = len(ascending) - np.searchsorted(ascending, own, "right")
    tied = len(ascending) - np.searchsorted(ascending, own, "left") - above
    ranks = (above + 1).astype(np.int64)
    for place in np.flatnonzero(tied > 1):
        ranks[place] += int(((theirs == own[place]) & (rivals < rows[place])).sum())
    return ranks


def precision_of_ranks(ranks: I64) -> float:
    """Average precision from the ranks (from 1, any order) of all relevant rows of a query."""
    ordered = np.sort(ranks)
    return float((np.arange(1, len(ordered) + 1) / ordered).mean())
