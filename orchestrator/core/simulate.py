"""What a refresh will look like before it is run: the metric and the flips at every coverage of a given order.

At coverage beta the first `floor(beta * N)` rows of the order hold new vectors, the rest the stored ones. All states are
measured from two matrix products: between two coverages a whole segment of the order changes at once, so the best row
of a state is the best among its new segments and its stored ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from orchestrator.core import keys
from orchestrator.core.calibration import IDENTITY, Calibration, Duel, lay_out, widen
from orchestrator.core.flips import FlipCounts
from orchestrator.core.metrics import Relevance, ranks_of, similarities

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

DEFAULT_COVERAGES: tuple[float, ...] = tuple(state / 21 for state in range(22))
"""FastFill's published protocol: 22 equally spaced states, 0 % and 100 % included."""

_SCORES_BYTES = 128 * 2**20
_DISTANCE_ROWS = 65_536


@dataclass(frozen=True)
class CurvePoint:
    """One state of a refresh: `coverage` is the asked share, `items` the rows that hold new vectors there.

    `n` queries count. `flips` are against the old system, `previous_flips` against the point before (None at the first).
    `answers`: (n,) bool, which of the counted queries are answered right; None where a point was made up.
    """

    coverage: float
    items: int
    n: int
    right: int
    flips: FlipCounts
    previous_flips: FlipCounts | None
    mean_average_precision: float | None = None
    answers: Bools | None = field(default=None, repr=False, compare=False)

    @property
    def r_at_1(self) -> float | None:
        """Recall at 1, 0..1; None when no query counts."""
        return self.right / self.n if self.n else None

    @property
    def negative_flips(self) -> int:
        """Queries right under the old system and wrong here."""
        return self.flips.negative_flips

    @property
    def positive_flips(self) -> int:
        """Queries wrong under the old system and right here."""
        return self.flips.positive_flips


def refresh_curve(
    queries: F32,
    base: F32,
    new: F32,
    row_of: npt.NDArray[np.integer],
    relevance: Relevance,
    old_right: Bools,
    coverages: Sequence[float] = DEFAULT_COVERAGES,
    *,
    average_precision: bool = False,
    calibration: Calibration | None = None,
) -> list[CurvePoint]:
    """Recall at 1, flips and, when asked for, mAP of every state of a refresh, exactly, ties by the lower row.

    Args:
        queries: (Q, d) float32, by the new model.
        base: (N, d) float32, what is stored now (adapted, where there is an adapter).
        new: (N, d) float32, by the new model.
        row_of: (N,) integers, the order: `row_of[rank]` is the row refreshed at that rank.
        relevance: for Q queries; those without a relevant row are left out.
        old_right: (Q,) bool, what the old system answers right at 1.
        coverages: rising, 0..1.
        calibration: of the scores of new vectors; rows are laid out as a replica lays them out.

    Raises ValueError for shapes that do not fit, coverages that fall or leave 0..1, and an order that is no permutation.
    """
    _check(queries, base, new, row_of, relevance, old_right, coverages)
    if calibration is not None and not calibration.identity:
        queries, base, new = widen(queries), lay_out(base, IDENTITY), lay_out(new, calibration)
    layout = _Layout.of(row_of, coverages)
    counted = np.flatnonzero(relevance.answerable)
    found = np.empty((len(coverages), len(counted)), np.int64)
    precisions = np.empty((len(coverages), len(counted)), np.float64) if average_precision else None
    stored, renewed = base[layout.rows], new[layout.rows]
    block = max(16, _SCORES_BYTES // (8 * max(len(base), 1)))
    for at in range(0, len(counted), block):
        some = counted[at : at + block]
        old_scores, new_scores = similarities(queries[some], stored), similarities(queries[some], renewed)
        found[:, at : at + len(some)] = _best_rows(old_scores, new_scores, layout)
        if precisions is not None:
            for place, query in enumerate(some):
                precisions[:, at + place] = _average_precisions(
                    old_scores[place], new_scores[place], relevance.of(int(query)), layout
                )
    right = np.array([relevance.hits(rows[:, None], counted) for rows in found])
    return _points(coverages, layout.edges, old_right[counted], right, precisions)


def answered(points: Sequence[CurvePoint], old_right: Bools, right: Bools) -> list[CurvePoint]:
    """The same states with other answers: `old_right` (n,) and `right` (S, n) bool, of the queries that count."""
    edges = np.array([point.items for point in points], np.int64)
    return _points([point.coverage for point in points], edges, old_right, right, None)


def _points(
    coverages: Sequence[float], edges: I64, old_right: Bools, right: Bools, precisions: F64 | None
) -> list[CurvePoint]:
    return [
        CurvePoint(
            coverage=float(coverage),
            items=int(edges[state]),
            n=len(old_right),
            right=int(right[state].sum()),
            flips=FlipCounts.of(old_right, right[state]),
            previous_flips=FlipCounts.of(right[state - 1], right[state]) if state else None,
            mean_average_precision=(
                float(precisions[state].mean()) if precisions is not None and len(old_right) else None
            ),
            answers=right[state],
        )
        for state, coverage in enumerate(coverages)
    ]


def duel_of(
    queries: F32,
    base: F32,
    new: F32,
    row_of: npt.NDArray[np.integer],
    relevance: Relevance,
    coverages: Sequence[float] = DEFAULT_COVERAGES,
    *,
    base_queries: F32 | None = None,
) -> Duel:
    """In every state of a refresh, the best stored and the best renewed row of each query that counts.

    Arguments as of `refresh_curve`. `base_queries`: (Q, d_base) float32, what the stored vectors are asked with, `base`
    (N, d_base); None: with `queries`.
    """
    layout = _Layout.of(row_of, coverages)
    counted = np.flatnonzero(relevance.answerable)
    shape = len(coverages), len(counted)
    best = [np.empty(shape, np.uint64), np.empty(shape, np.uint64)]
    stored, renewed = base[layout.rows], new[layout.rows]
    asked = queries if base_queries is None else base_queries
    block = max(16, _SCORES_BYTES // (8 * max(len(base), 1)))
    for at in range(0, len(counted), block):
        some = counted[at : at + block]
        scores = similarities(asked[some], stored), similarities(queries[some], renewed)
        for each, found in zip(best, _best_keys(*scores, layout), strict=True):
            each[:, at : at + len(some)] = found
    values = [np.where(each == keys.EMPTY, -np.inf, keys.scores_of(each)).astype(np.float64) for each in best]
    hits = [
        np.array([relevance.hits(keys.rows_of(state).astype(np.int64)[:, None], counted) for state in each])
        for each in best
    ]
    return Duel(np.asarray(coverages, np.float64), values[0], values[1], hits[0], hits[1])


@dataclass(frozen=True)
class _Layout:
    """The columns of the score matrices: rows by segment, and rising within a segment, so that the first of equal scores
    is the lowest row. In state s the segments 0..s are new; `edges[s]` columns are."""

    rows: I64
    edges: I64
    segment: I64
    column_of: I64

    @classmethod
    def of(cls, row_of: npt.NDArray[np.integer], coverages: Sequence[float]) -> _Layout:
        n = len(row_of)
        edges = np.array([int(np.floor(coverage * n + 1e-9)) for coverage in coverages], np.int64)
        segment = np.searchsorted(edges, np.arange(n), "right").astype(np.int64)
        rows = np.asarray(row_of, np.int64)
        rows = rows[np.lexsort((rows, segment))]
        column_of = np.empty(n, np.int64)
        column_of[rows] = np.arange(n)
        return cls(rows, edges, segment, column_of)

    @property
    def bounds(self) -> list[tuple[int, int]]:
        ends = [0, *self.edges.tolist(), len(self.rows)]
        return list(pairwise(ends))


def _best_rows(old_scores: F32, new_scores: F32, layout: _Layout) -> I64:
    """(states, q) int64: the first answer of each query in each state."""
    return keys.rows_of(np.minimum(*_best_keys(old_scores, new_scores, layout))).astype(np.int64)


def _best_keys(old_scores: F32, new_scores: F32, layout: _Layout) -> tuple[keys.Keys, keys.Keys]:
    """(states, q) uint64 each: the best key of each query in each state among stored rows, and among renewed ones."""
    stored = _best_of_segments(old_scores, layout)
    renewed = _best_of_segments(new_scores, layout)
    up_to = np.minimum.accumulate(renewed, axis=0)[:-1]
    beyond = np.minimum.accumulate(stored[::-1], axis=0)[::-1][1:]
    return beyond, up_to


def _best_of_segments(scores: F32, layout: _Layout) -> keys.Keys:
    """(segments, q) uint64: the best key within each segment, EMPTY where the segment is."""
    best = np.full((len(layout.bounds), len(scores)), keys.EMPTY, np.uint64)
    everyone = np.arange(len(scores))
    for place, (start, stop) in enumerate(layout.bounds):
        if start < stop:
            column = start + scores[:, start:stop].argmax(axis=1)
            best[place] = keys.pack(scores[everyone, column], layout.rows[column])
    return best


def _average_precisions(old: F32, new: F32, relevant: I64, layout: _Layout) -> F64:
    """(states,) average precision of one query, from its scores (N,) in the layout's columns.

    A relevant row has two scores in all, the stored and the new one. For each of them, how many rows of each segment
    score higher, stored and new, gives its rank in every state by sums over segments.
    """
    own = layout.column_of[relevant]
    thresholds = np.concatenate([old[own], new[own]])
    above_old, ties_old = _above(old, thresholds, layout)
    above_new, ties_new = _above(new, thresholds, layout)
    states = len(layout.edges)
    if ((ties_old + ties_new) > 1).any():
        return _average_precisions_with_ties(old, new, relevant, layout)
    count = len(relevant)
    ahead = np.cumsum(above_new, axis=0)[:states] + (
        above_old.sum(axis=0) - np.cumsum(above_old, axis=0)[:states]
    )
    renewed = layout.segment[own] <= np.arange(states)[:, None]
    ranks = np.sort(1 + np.where(renewed, ahead[:, count:], ahead[:, :count]), axis=1)
    precisions: F64 = (np.arange(1, count + 1) / ranks).mean(axis=1)
    return precisions


def _above(scores: F32, thresholds: F32, layout: _Layout) -> tuple[I64, I64]:
    """(segments, t): scores of the segment above each threshold; (t,): scores equal to it in all segments."""
    rivals = np.flatnonzero(scores >= thresholds.min())
    values = scores[rivals]
    segments = len(layout.edges) + 1
    # One sort for all segments: the segment above, the falling score below.
    order = keys.pack(values, np.zeros(1, np.uint64)) >> np.uint64(32)
    order |= layout.segment[rivals].astype(np.uint64) << np.uint64(32)
    order.sort()
    asked = keys.pack(thresholds, np.zeros(1, np.uint64)) >> np.uint64(32)
    asked = asked | (np.arange(segments, dtype=np.uint64) << np.uint64(32))[:, None]
    starts = np.searchsorted(order, np.arange(segments, dtype=np.uint64) << np.uint64(32))
    left = np.searchsorted(order, asked, "left")
    right = np.searchsorted(order, asked, "right")
    return (left - starts[:, None]).astype(np.int64), (right - left).sum(axis=0).astype(np.int64)


def _average_precisions_with_ties(old: F32, new: F32, relevant: I64, layout: _Layout) -> F64:
    """As `_average_precisions`, state by state: equal scores are told apart by their rows."""
    old_by_row, new_by_row = old[layout.column_of], new[layout.column_of]
    segment_by_row = layout.segment[layout.column_of]
    precisions = np.empty(len(layout.edges), np.float64)
    for state in range(len(layout.edges)):
        mixed = np.where(segment_by_row <= state, new_by_row, old_by_row)
        ranks = np.sort(ranks_of(mixed, relevant))
        precisions[state] = (np.arange(1, len(ranks) + 1) / ranks).mean()
    return precisions


def _check(
    queries: F32,
    base: F32,
    new: F32,
    row_of: npt.NDArray[np.integer],
    relevance: Relevance,
    old_right: Bools,
    coverages: Sequence[float],
) -> None:
    if base.shape != new.shape or base.ndim != 2 or queries.ndim != 2 or queries.shape[1] != base.shape[1]:
        raise ValueError(
            f"queries {queries.shape}, stored {base.shape} and new {new.shape} vectors do not fit"
        )
    if not len(queries) == len(relevance) == len(old_right):
        raise ValueError(
            f"{len(queries)} queries, relevance for {len(relevance)}, old answers for {len(old_right)}"
        )
    if not np.array_equal(np.sort(row_of), np.arange(len(base))):
        raise ValueError(f"the order is no permutation of the {len(base)} rows")
    steps = np.asarray(coverages, np.float64)
    if not len(steps) or steps.min() < 0 or steps.max() > 1 or (np.diff(steps) < 0).any():
        raise ValueError("coverages must rise within 0..1")


def oracle_scores(base: F32, new: F32) -> F32:
    """`||base - new||` per row, (N,) float32: the order that knows the new vectors, for simulation only.

    Args:
        base, new: (N, d) float32; memory maps are read chunk by chunk. Raises ValueError for other shapes.
    """
    if base.shape != new.shape:
        raise ValueError(f"stored {base.shape} and new {new.shape} vectors do not fit")
    distances = np.empty(len(base), np.float32)
    for at in range(0, len(base), _DISTANCE_ROWS):
        rows = slice(at, at + _DISTANCE_ROWS)
        distances[rows] = np.linalg.norm(base[rows] - new[rows], axis=1)
    return distances


def trapezoid_area(coverages: Sequence[float], values: Sequence[float]) -> float:
    """Area under the refresh curve by the trapezoid rule over coverage, divided by the width of the coverage range.

    Raises ValueError for fewer than two points, other lengths, or coverages that do not widen.
    """
    x, y = np.asarray(coverages, np.float64), np.asarray(values, np.float64)
    if len(x) != len(y) or len(x) < 2 or x[-1] <= x[0]:
        raise ValueError(f"an area needs at least two points of rising coverage, not {len(x)} and {len(y)}")
    return float(((y[1:] + y[:-1]) / 2 * np.diff(x)).sum() / (x[-1] - x[0]))


def mean_of_states(values: Sequence[float]) -> float:
    """FastFill's area: the plain mean over its 22 equally spaced states [code]. ValueError for another number of them."""
    if len(values) != len(DEFAULT_COVERAGES):
        raise ValueError(f"the protocol has {len(DEFAULT_COVERAGES)} states, not {len(values)}")
    return float(np.mean(np.asarray(values, np.float64)))


def normalised_area(area: float, old_old: float, new_new: float) -> float | None:
    """`(area - M(old, old)) / (M(new, new) - M(old, old))`; None when the two systems measure the same."""
    return None if new_new == old_old else (area - old_old) / (new_new - old_old)


def lowest_point(points: Sequence[CurvePoint]) -> CurvePoint | None:
    """The state with the lowest recall at 1, the first of equals; None without points or counted queries."""
    return min(points, key=lambda point: point.right) if points and points[0].n else None
