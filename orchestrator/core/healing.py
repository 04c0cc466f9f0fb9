"""Which items to refresh next: those that the most open flips wait for, and those that are retrieved most.

**Flips.** While a refresh goes on, most negative flips are the mixture's: a new vector of a wrong item stands above the old
vector of the right one, because new-to-new similarities are higher than new-to-old ones, also of negatives. Refreshing one
relevant item lets it compete with new-to-new similarity, too, and one of them among the k first heals the flip. Refreshing a
wrong item that still shows its old vector among the k first heals it where that item falls. So an open flip waits for

    P(q) = relevant rows that are not settled, and rows among its k answers that are not settled

and nothing is known of which of them will heal it. Each has the same chance, 1 / |P(q)|, and the expected flips that a row
heals are the sum over the open flips q that wait for it:

    credit(row) = sum of w(q) / |P(q)| over open flips q with row in P(q)

with w(q) = 1, or how often the query is asked where that is known. Rows of small classes count more: one of three relevant
rows is a better bet than one of three hundred. A flip with nothing left to wait for is the model's (`causes`): no order heals
it, and it gives no credit.

**Demand.** The share of all retrievals that an item has is the share of answers that show its old vector as long as it waits.

**Both** are shares of a whole, of what all flips wait for and of what is retrieved, so they are added as they are:

    priority(row) = credit(row) / sum of credits + demand(row) / sum of demands        over the rows that wait

Rows with priority 0 come behind, in the order of the first plan (`plan.rerank`).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.core.metrics import Relevance

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

MEASURES = ("flips", "demand", "flips+demand")
"""What a revision of a plan may follow."""

REVISE_EVERY = 0.05
"""The part of a rollout's items that are committed between two revisions that it writes by itself."""

MOST_REVISIONS = 20
"""So many a rollout writes by itself: each is a file of 4 bytes an item."""


def flip_credit(
    answers: I64, flipped: I64, relevance: Relevance, settled: Bools, weights: F64 | None = None
) -> F64:
    """(N,) float64: the expected flips that refreshing each row heals; 0 for rows that no open flip waits for.

    Args:
        answers: (m, k) int64, the rows that each flipped query finds now, none of them relevant.
        flipped: (m,) int64, queries with an open negative flip, without doubles.
        relevance: of all queries.
        settled: (N,) bool, rows whose vectors will not change any more (`causes`).
        weights: (m,) float64, what each flip counts; None: 1.
    """
    whose, relevant = relevance.of_all(flipped)
    rows = np.concatenate([relevant, answers.ravel()])
    flips = np.concatenate([whose, np.repeat(np.arange(len(flipped)), answers.shape[1])])
    waiting = (rows >= 0) & ~settled[rows]
    rows, flips = rows[waiting], flips[waiting]
    each = np.ones(len(flipped)) if weights is None else np.asarray(weights, np.float64)
    shares = each / np.maximum(np.bincount(flips, minlength=len(flipped)), 1)
    return np.bincount(rows, shares[flips], minlength=len(settled)).astype(np.float64)


def priorities(measure: str, waiting: Bools, credit: F64 | None, demand: F64 | None) -> F32:
    """(N,) float32, 0 or more: what a revision that follows `measure` takes first.

    Args:
        waiting: (N,) bool, the rows that may still be taken earlier or later.
        credit: (N,) float64, of `flip_credit`; needed by measures with flips.
        demand: (N,) float64, how often each row was retrieved; needed by measures with demand.

    Raises ValueError for another measure, and where one that it needs is missing.
    """
    if measure not in MEASURES:
        raise ValueError(f"no measure {measure!r}; there are {', '.join(MEASURES)}")
    total = np.zeros(len(waiting))
    for name, values in (("flips", credit), ("demand", demand)):
        if name not in measure.split("+"):
            continue
        if values is None:
            raise ValueError(f"measure {measure} needs {name}")
        here = np.where(waiting, values, 0.0)
        if here.any():
            total += here / here.sum()
    return total.astype(np.float32)


def revision_is_due(committed: int, committed_before: int | None, n_items: int, written: int) -> bool:
    """Whether a rollout may write a revision by itself now.

    Args:
        committed: items that are committed.
        committed_before: at the newest revision, or when it was last looked; None: never, which is the best time.
        written: revisions that it wrote by itself.
    """
    if written >= MOST_REVISIONS:
        return False
    return committed_before is None or committed - committed_before >= max(1.0, REVISE_EVERY * n_items)
