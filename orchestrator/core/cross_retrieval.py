"""Retrieval between two kinds of things (texts and videos) from one matrix of scores: recall at 1, 5, 10 and ranks.

A query's rank is that of its best placed right answer, from 1. Ties go by the lower column, as in every search here; with
`Ties.WORST` a right answer stands behind all wrong ones of its score, so a model that gives everything one score gets nothing.
Texts that come twice score alike, and where only a query's own item is right the order of rows then decides: look at both
kinds of ties, or at relevance with overlap.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from orchestrator.core.metrics import Relevance

I64 = npt.NDArray[np.int64]

CUTS = (1, 5, 10)


class Ties(StrEnum):
    """Which of equal scores comes first."""

    ROW = "the lower row"
    WORST = "the wrong one"


@dataclass(frozen=True)
class CrossRetrieval:
    """One direction. `hits[i]` of the `n` queries that have a right answer have one among the first `cuts[i]`."""

    n: int
    excluded: int
    cuts: tuple[int, ...]
    hits: tuple[int, ...]
    median_rank: float | None
    mean_rank: float | None

    @property
    def recalls(self) -> tuple[float, ...] | None:
        """Recall at each cut, 0..1; None when no query counts."""
        return tuple(hits / self.n for hits in self.hits) if self.n else None


def cross_retrieval(
    scores: npt.ArrayLike, relevance: Relevance, *, cuts: tuple[int, ...] = CUTS, ties: Ties = Ties.ROW
) -> CrossRetrieval:
    """Measure one direction; for the other hand in `scores.T` and its relevance.

    Args:
        scores: (Q, N) real numbers, higher is more alike.
        relevance: of Q queries and rows below N.

    Raises:
        ValueError: other shapes, scores that are not finite, a cut below 1.
    """
    if any(cut < 1 for cut in cuts):
        raise ValueError(f"a cut is 1 or more, not {min(cuts)}")
    ranks = best_ranks(scores, relevance, ties)
    counted = ranks[ranks > 0]
    return CrossRetrieval(
        n=len(counted),
        excluded=len(ranks) - len(counted),
        cuts=cuts,
        hits=tuple(int((counted <= cut).sum()) for cut in cuts),
        median_rank=float(np.median(counted)) if len(counted) else None,
        mean_rank=float(counted.mean()) if len(counted) else None,
    )


def best_ranks(scores: npt.ArrayLike, relevance: Relevance, ties: Ties = Ties.ROW) -> I64:
    """(Q,) int64: from 1, the rank of each query's best placed right answer; 0 for a query that has none.

    Raises ValueError as `cross_retrieval`.
    """
    matrix = np.asarray(scores, np.float64)
    if matrix.ndim != 2 or len(matrix) != len(relevance) or relevance.rows.max(initial=-1) >= matrix.shape[1]:
        raise ValueError(f"scores {matrix.shape} do not fit relevance of {len(relevance)} queries")
    if not np.isfinite(matrix).all():
        raise ValueError("scores must be finite")
    ranks = np.zeros(len(matrix), np.int64)
    for query in np.flatnonzero(relevance.answerable):
        right = relevance.of(int(query))
        line = matrix[query]
        best = right[np.argmax(line[right])]  # of equal right ones the lowest column
        tied = line == line[best]
        tied[right] = False
        before = int(tied.sum() if ties is Ties.WORST else tied[:best].sum())
        wrong_above = line > line[best]
        ranks[query] = 1 + int(wrong_above.sum()) + before
    return ranks
