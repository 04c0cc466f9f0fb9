"""Metrics of copy detection: one global ranking over all queries, as the Image Similarity Challenge 2021 measures it.

A prediction says "this query is a copy of this reference" with a score. All predictions of all queries are ranked
together, so a query without any copy costs precision as soon as something is said of it with a high score.

    P(r) = true among the first r / r        R(r) = true among the first r / number of true pairs
    micro-AP = sum over r of P(r) * (R(r) - R(r - 1))        recall@P90 = max { R(r) : P(r) >= 0.9 }

Ties are pessimistic: among equal scores what is false comes first. A true pair that was not predicted counts against
recall, unlike in average precisions that divide by the positives of the list. Nothing here is measured on one query alone
but recall at k: the share of true pairs whose rank in their query is at most k, where a rank counts every prediction of the
query with an equal or a higher score.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

MAX_PREDICTIONS = 500_000
"""Over all queries together: the challenge's limit."""


@dataclass(frozen=True)
class MatchingMetrics:
    """What a list of predictions is worth.

    Attributes:
        micro_ap: 0 to 1.
        recall_at_precision: highest recall at which precision is at least the one asked for; None: never reached.
        threshold: the score at that point: what scores at least this is called a copy. None with it.
        recall_at_1, recall_at_10: within queries.
        true_pairs, predictions, found: counts; `found` are the true pairs among the predictions.
    """

    micro_ap: float
    recall_at_precision: float | None
    threshold: float | None
    recall_at_1: float
    recall_at_10: float
    true_pairs: int
    predictions: int
    found: int


def matching_metrics(
    true_queries: npt.ArrayLike,
    true_references: npt.ArrayLike,
    queries: npt.ArrayLike,
    references: npt.ArrayLike,
    scores: npt.ArrayLike,
    *,
    precision: float = 0.9,
    limit: int = MAX_PREDICTIONS,
) -> MatchingMetrics:
    """Compare predictions with the truth.

    Args:
        true_queries, true_references: (m,) keys each, integers or strings: the true pairs, m > 0.
        queries, references: (n,) keys each, of the same kinds: the predicted pairs, in any order.
        scores: (n,) real numbers; higher is more alike.

    Raises:
        ValueError: no true pair, a pair that comes twice, lengths that differ, scores that are not finite, more than `limit`
            predictions, or a precision outside (0, 1].
    """
    if not 0 < precision <= 1:
        raise ValueError(f"a precision lies in (0, 1], not {precision}")
    said = np.asarray(scores, np.float64)
    if said.size > limit:
        raise ValueError(f"{said.size} predictions; at most {limit} are allowed over all queries")
    if not np.isfinite(said).all():
        raise ValueError("scores must be finite")
    true_ids, ids, query = _pair_numbers(true_queries, true_references, queries, references)
    if said.shape != ids.shape:
        raise ValueError(f"{said.shape} scores for {ids.shape} predicted pairs")
    if not len(true_ids):
        raise ValueError("there is no true pair: nothing can be measured")
    is_true = np.isin(ids, true_ids)
    m = len(true_ids)
    point = operating_point(is_true, said, m, precision)
    ranks = _ranks_of_true(query, said, is_true)
    return MatchingMetrics(
        micro_ap=point.micro_ap,
        recall_at_precision=point.recall_at_precision,
        threshold=point.threshold,
        recall_at_1=int((ranks <= 1).sum()) / m,
        recall_at_10=int((ranks <= 10).sum()) / m,
        true_pairs=m,
        predictions=len(ids),
        found=int(is_true.sum()),
    )


@dataclass(frozen=True)
class OperatingPoint:
    """Where a ranking may be cut: `micro_ap`, and the highest recall at a precision with the score there. None: not reached."""

    micro_ap: float
    recall_at_precision: float | None
    threshold: float | None


def operating_point(is_true: Bools, scores: F64, true_pairs: int, precision: float = 0.9) -> OperatingPoint:
    """Of (n,) predictions, each true or false, out of `true_pairs` > 0 that there are to be found."""
    precisions, recalls, ordered = ranking(is_true, scores, true_pairs)
    reached = np.flatnonzero(precisions >= precision)
    # Recall never falls along the ranking; of the ranks that share the highest, the first has the highest threshold.
    best = int(reached[np.argmax(recalls[reached])]) if len(reached) else None
    return OperatingPoint(
        micro_ap=float((np.diff(recalls, prepend=0.0) * precisions).sum()),
        recall_at_precision=None if best is None else float(recalls[best]),
        threshold=None if best is None else float(ordered[best]),
    )


def ranking(is_true: Bools, scores: F64, true_pairs: int) -> tuple[F64, F64, F64]:
    """(n,) precision, recall and score at each rank; scores fall, and of equal scores the false ones come first."""
    order = np.lexsort((is_true, -scores))
    hits = np.cumsum(is_true[order])
    return hits / np.arange(1, len(order) + 1), hits / true_pairs, scores[order]


def _pair_numbers(
    true_queries: npt.ArrayLike,
    true_references: npt.ArrayLike,
    queries: npt.ArrayLike,
    references: npt.ArrayLike,
) -> tuple[I64, I64, I64]:
    """One number a pair, of the truth and of the predictions, and the predictions' query as a number."""
    true_query, query, _ = _numbers(true_queries, queries, "queries")
    true_reference, reference, n = _numbers(true_references, references, "references")
    if len(true_query) != len(true_reference) or len(query) != len(reference):
        raise ValueError("a pair has one query and one reference: their lengths differ")
    true_ids, ids = true_query * n + true_reference, query * n + reference
    for what, pairs in (("true", true_ids), ("predicted", ids)):
        if len(np.unique(pairs)) != len(pairs):
            raise ValueError(f"a {what} pair comes twice")
    return true_ids, ids, query


def _numbers(true: npt.ArrayLike, predicted: npt.ArrayLike, what: str) -> tuple[I64, I64, int]:
    """Keys as numbers from 0, and how many there are."""
    a, b = np.asarray(true), np.asarray(predicted)
    if a.ndim != 1 or b.ndim != 1:
        raise ValueError(f"{what} must be one-dimensional, not {a.shape} and {b.shape}")
    if len(a) and len(b) and (a.dtype.kind in "US") != (b.dtype.kind in "US"):
        # Joined they would all become texts, and 1 would be the same as "1".
        raise ValueError(f"{what} are {a.dtype} in the truth and {b.dtype} in the predictions")
    known, place = np.unique(
        np.concatenate([a, b]) if len(a) and len(b) else a if len(a) else b, return_inverse=True
    )
    numbers = place.astype(np.int64)
    return numbers[: len(a)], numbers[len(a) :], max(1, len(known))


def _ranks_of_true(query: I64, scores: F64, is_true: Bools) -> I64:
    """For each predicted true pair the number of predictions of its query that score at least as much, itself among them."""
    order = np.lexsort((-scores, query))
    q, s = query[order], scores[order]
    places = np.arange(len(order))
    starts = np.flatnonzero(np.diff(q, prepend=-1))
    first = np.repeat(starts, np.diff(starts, append=len(q)))
    # A tie's last place: the last of each run of equal (query, score).
    ends = np.flatnonzero(np.append((np.diff(q) != 0) | (np.diff(s) != 0), True)) if len(q) else places
    last = ends[np.searchsorted(ends, places)]
    return np.asarray((last - first + 1)[is_true[order]], np.int64)
