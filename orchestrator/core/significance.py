"""How sure a measured difference between two systems is: the bootstrap over queries and the exact test on flips.

Both are paired: every query was asked of both systems. The bootstrap draws queries with replacement (Efron and Tibshirani,
1993, percentile interval); McNemar's exact test (1947) asks how likely flips as one-sided as these are, if a query that
flips were as likely to turn right as wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]

RESAMPLES = 2000
CONFIDENCE = 0.95
SIGNIFICANT = 0.05
"""A p-value under which flips are not taken for chance."""

_BLOCK_VALUES = 2**22


@dataclass(frozen=True)
class Interval:
    """From `low` to `high`, both included."""

    low: float
    high: float


@dataclass(frozen=True)
class RefreshIntervals:
    """Percentile intervals of recall at 1, and of its paired differences, over the queries drawn."""

    old_old: Interval
    new_old: Interval
    new_new: Interval
    start_difference: Interval
    lowest_difference: Interval


def refresh_intervals(
    old_right: Bools,
    right: Bools,
    rng: np.random.Generator,
    *,
    resamples: int = RESAMPLES,
    confidence: float = CONFIDENCE,
) -> RefreshIntervals | None:
    """The intervals of a refresh; None without queries.

    Args:
        old_right: (Q,) bool, what the old system answers right.
        right: (S, Q) bool, what each state of the refresh does, the first at the start, the last at its end.
        rng: draws the queries.

    `start_difference` is of the first state minus the old system, `lowest_difference` of the worst state of each draw minus
    the old system in the same draw. Raises ValueError for shapes that do not fit.
    """
    if right.ndim != 2 or not len(right) or old_right.shape != right.shape[1:]:
        raise ValueError(f"{old_right.shape} old answers and {right.shape} answers of states do not fit")
    if not len(old_right):
        return None
    recalls = resampled_means(np.vstack([old_right, right]), rng, resamples)
    old, states = recalls[:, 0], recalls[:, 1:]
    return RefreshIntervals(
        old_old=percentile_interval(old, confidence),
        new_old=percentile_interval(states[:, 0], confidence),
        new_new=percentile_interval(states[:, -1], confidence),
        start_difference=percentile_interval(states[:, 0] - old, confidence),
        lowest_difference=percentile_interval(states.min(axis=1) - old, confidence),
    )


def resampled_means(answers: Bools, rng: np.random.Generator, resamples: int) -> F64:
    """(resamples, A) float64: the means of (A, Q) answers over Q queries drawn with replacement, the same for all A.

    Queries with equal answers everywhere are interchangeable, and few patterns occur: how often each pattern is drawn is
    multinomial, so the work depends on the number of patterns and not of queries.
    """
    patterns, counts = np.unique(answers, axis=1, return_counts=True)
    n = answers.shape[1]
    means = np.empty((resamples, len(answers)), np.float64)
    block = max(1, _BLOCK_VALUES // len(counts))
    for at in range(0, resamples, block):
        drawn = rng.multinomial(n, counts / n, size=min(block, resamples - at))
        means[at : at + len(drawn)] = drawn.astype(np.float64) @ patterns.T / n
    return means


def mean_interval(
    values: F64, rng: np.random.Generator, *, resamples: int = RESAMPLES, confidence: float = CONFIDENCE
) -> Interval:
    """The percentile interval of the mean of one number a query, (Q,) float64, over queries drawn with replacement.

    Equal numbers are interchangeable, as in `resampled_means`. Raises ValueError without queries.
    """
    if not len(values):
        raise ValueError("there is no mean of no queries")
    levels, counts = np.unique(values, return_counts=True)
    drawn = rng.multinomial(len(values), counts / len(values), size=resamples)
    return percentile_interval(drawn.astype(np.float64) @ levels / len(values), confidence)


def percentile_interval(values: F64, confidence: float = CONFIDENCE) -> Interval:
    """Between the quantiles that leave half of `1 - confidence` on each side. ValueError outside 0..1."""
    if not 0 < confidence < 1:
        raise ValueError(f"confidence lies between 0 and 1, not {confidence}")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))


def mcnemar_p(negative: int, positive: int) -> float:
    """The exact two-sided p-value of McNemar's test: the chance of flips at least as one-sided, were both directions as likely.

    `min(1, 2 * sum_{i <= min(negative, positive)} C(n, i) / 2^n)`, `n` = both together, in whole numbers, so exact for any n
    up to the last division; 1 without flips. Raises ValueError for a negative count.
    """
    if negative < 0 or positive < 0:
        raise ValueError(f"flips are counted, so not {negative} and {positive}")
    n = negative + positive
    term = tail = 1  # C(n, i), and the sum so far
    for i in range(min(negative, positive)):
        term = term * (n - i) // (i + 1)
        tail += term
    return min(1.0, float(2 * tail / (1 << n)))
