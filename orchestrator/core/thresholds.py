"""Where a refreshing gallery's answers may be cut: the score at 90 % precision, followed along the mixtures.

An upgrade that keeps micro-AP can still break whoever accepts an answer above a fixed score: the scores move. So two things
are followed. The *threshold at P90* of each mixture, out of one ranking of every query's first answer, those of queries
without an answer too (`matching_metrics`). And *matching flips* at the threshold that was chosen on the old system: a query
whose right answer was accepted before and is not any more is lost; one that is only now is gained.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.core.matching_metrics import OperatingPoint, operating_point

Bools = npt.NDArray[np.bool_]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

PRECISION = 0.9


@dataclass(frozen=True)
class Thresholds:
    """One mixture.

    Attributes:
        queries: those that were ranked: both models could read them.
        true_pairs: of all queries those with an answer, read or not: what recall is a share of.
        old, now: the old system's ranking, and the mixture's.
        accepted: queries whose first answer scores at least the old system's threshold.
        right: those of them that are right.
        lost: accepted and right in the old system, and now not accepted or not right. Matching flips.
        gained: the other way round. The last four are None where the old system has no threshold.
    """

    queries: int
    true_pairs: int
    old: OperatingPoint
    now: OperatingPoint
    accepted: int | None
    right: int | None
    lost: int | None
    gained: int | None


class ThresholdTracker:
    """What the old system's ranking is compared with.

    Args:
        asked: (m,) int64, queries that are ranked.
        true_pairs: queries with an answer, at least 1.
        right: (Q,) bool, whether the old system's first answer is right.
        scores: (Q,) float32, its score.
    """

    def __init__(self, asked: npt.NDArray[np.int64], true_pairs: int, right: Bools, scores: F32) -> None:
        if true_pairs < 1:
            raise ValueError("no query has an answer: there is no precision to reach")
        self._asked, self._true_pairs = asked, true_pairs
        self._old = self._point(right, scores)
        self._accepted_right = self._accepted(scores) & right[asked]

    def _point(self, right: Bools, scores: F32) -> OperatingPoint:
        return operating_point(
            right[self._asked], scores[self._asked].astype(np.float64), self._true_pairs, PRECISION
        )

    def _accepted(self, scores: F32) -> Bools:
        """(m,) bool; none where the old system has no threshold."""
        cut = np.inf if self._old.threshold is None else self._old.threshold
        return np.asarray(scores[self._asked] >= cut, np.bool_)

    def measure(self, right: Bools, scores: F32) -> Thresholds:
        """Of a mixture: (Q,) bool whether its first answers are right, and (Q,) float32 their scores."""
        accepted = self._accepted(scores)
        now = accepted & right[self._asked]
        counts = (accepted, now, self._accepted_right & ~now, now & ~self._accepted_right)
        known = self._old.threshold is not None
        numbers = [int(each.sum()) if known else None for each in counts]
        return Thresholds(len(self._asked), self._true_pairs, self._old, self._point(right, scores), *numbers)
