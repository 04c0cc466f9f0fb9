"""Flips: queries that a change of the gallery or of the model turned from right to wrong, or back.

A negative flip was answered right by the reference and is answered wrong now; a positive flip the other way round.
Two references are kept: the old system, and the previous stage of the refresh. Counts are integers, so
`recall(new) - recall(old) = pfr - nfr` holds exactly on them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

from orchestrator.core.causes import NOTHING, Cause, waiting_row
from orchestrator.core.incremental import IncrementalTopK
from orchestrator.core.metrics import Relevance

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class FlipCounts:
    """How `n` queries fared against a reference."""

    both_right: int
    negative_flips: int
    positive_flips: int
    both_wrong: int

    @classmethod
    def of(cls, before: Bools, after: Bools) -> FlipCounts:
        """From (n,) bool right answers of the reference and of now. ValueError when the lengths differ."""
        if before.shape != after.shape:
            raise ValueError(f"flips compare the same queries, not {before.shape} with {after.shape}")
        return cls(
            both_right=int((before & after).sum()),
            negative_flips=int((before & ~after).sum()),
            positive_flips=int((~before & after).sum()),
            both_wrong=int((~before & ~after).sum()),
        )

    @property
    def n(self) -> int:
        """Queries counted."""
        return self.both_right + self.negative_flips + self.positive_flips + self.both_wrong

    @property
    def right_before(self) -> int:
        """Queries that the reference answers right."""
        return self.both_right + self.negative_flips

    @property
    def right_now(self) -> int:
        """Queries answered right now."""
        return self.both_right + self.positive_flips

    @property
    def nfr(self) -> float | None:
        """Negative flip rate, 0..1; None when no query counts."""
        return self.negative_flips / self.n if self.n else None

    @property
    def pfr(self) -> float | None:
        """Positive flip rate, 0..1; None when no query counts."""
        return self.positive_flips / self.n if self.n else None


class Reference(StrEnum):
    """What an answer is compared with."""

    OLD_SYSTEM = "old_system"
    PREVIOUS_STAGE = "previous_stage"


class FlipKind(StrEnum):
    """Right to wrong, or wrong to right."""

    NEGATIVE = "negative"
    POSITIVE = "positive"


@dataclass(frozen=True)
class FlipEvent:
    """A flip that opened, or one that healed: its query is back where the reference was when the flip opened.

    `old_row` and `old_score` are the reference's first answer, `new_row` and `new_score` the first answer now. `cause`: of a
    negative flip that opened.
    """

    query: int
    reference: Reference
    kind: FlipKind
    healed: bool
    old_row: int
    new_row: int
    old_score: float
    new_score: float
    cause: Cause | None = None


@dataclass(frozen=True)
class FlipStage:
    """What one update did.

    Attributes:
        events: flips that opened or healed.
        blamed: queries whose open negative flips were thought to heal until now, and are the model's, or the codec's.
        against_old, against_previous: the counts against both references.
    """

    events: tuple[FlipEvent, ...]
    blamed: tuple[int, ...]
    against_old: FlipCounts
    against_previous: FlipCounts


class FlipTracker:
    """Follows every query from the old system through the stages of a refresh.

    Args:
        relevance: what is right; queries without a relevant row are never counted and never flip.
        old_scores: (Q, k) float32, the old system's answers, best first.
        old_rows: (Q, k) int64. A query is answered right when any of its k rows is relevant.
        settled_cause: whose a flip is that no later batch can heal.

    The first `update` compares the freshly deployed model with the old system, which is also its previous stage.
    """

    def __init__(
        self, relevance: Relevance, old_scores: F32, old_rows: I64, settled_cause: Cause = Cause.MODEL
    ) -> None:
        if old_rows.shape != old_scores.shape or len(old_rows) != len(relevance) or not old_rows.shape[1]:
            raise ValueError(f"{len(relevance)} queries need (Q, k >= 1) answers, not {old_rows.shape}")
        self._relevance = relevance
        self.settled_cause = settled_cause
        self._counted = np.flatnonzero(relevance.answerable)
        self.old_right = relevance.hits(old_rows)
        self.previous_right = self.old_right.copy()
        self.right = self.old_right.copy()
        self._old_rows, self._old_scores = old_rows[:, 0].copy(), old_scores[:, 0].copy()
        self._answers, self._scores = old_rows.copy(), self._old_scores.copy()
        # Once a query has turned, one flip against the previous stage is open: its next turn heals that one.
        self._turned = np.zeros(len(relevance), np.bool_)
        self._blamed = np.zeros(len(relevance), np.bool_)
        # A row that each wrong query waits for: only when that one is settled must others be looked for.
        self._waits_for = np.full(len(relevance), NOTHING)

    def update(self, queries: I64, scores: F32, rows: I64, settled: Bools | None = None) -> FlipStage:
        """One stage on: `queries` (m,), without doubles, now have the answers `scores`, `rows` (m, k).

        The other queries keep theirs: `IncrementalTopK.apply` names the queries to pass. `settled`: (N,) bool, the rows
        whose vectors will not change any more (`causes`); None: none.
        """
        self.previous_right = self.right.copy()
        self.right[queries] = self._relevance.hits(rows, queries)
        before = self._answers[:, 0].copy(), self._scores.copy()
        self._answers[queries], self._scores[queries] = rows, scores[:, 0]
        moved = self.right != self.previous_right
        self._waits_for[queries] = NOTHING
        blamed = self._blame(settled)
        events = [event for query in np.flatnonzero(moved) for event in self._events(int(query), before)]
        late = np.flatnonzero(blamed & ~moved)
        return FlipStage(tuple(events), tuple(map(int, late)), self.against_old(), self.against_previous())

    def counts_of(self, queries: I64) -> tuple[FlipCounts, FlipCounts]:
        """Counts of some queries that have relevant rows: against the old system, and against the previous stage."""
        now = self.right[queries]
        return (
            FlipCounts.of(self.old_right[queries], now),
            FlipCounts.of(self.previous_right[queries], now),
        )

    def against_old(self) -> FlipCounts:
        """Counts of now against the old system."""
        return FlipCounts.of(self.old_right[self._counted], self.right[self._counted])

    def against_previous(self) -> FlipCounts:
        """Counts of now against the stage before the last update."""
        return FlipCounts.of(self.previous_right[self._counted], self.right[self._counted])

    def _blame(self, settled: Bools | None) -> Bools:
        """(Q,) bool: wrong queries with an open flip that are the model's since this stage."""
        flipped = ~self.right & (self.old_right | self._turned | self.previous_right)
        self._blamed &= flipped
        fresh = np.zeros_like(self._blamed)
        if settled is not None:
            due = (self._waits_for == NOTHING) | settled[self._waits_for]
            some = np.flatnonzero(flipped & ~self._blamed & due)
            self._waits_for[some] = waiting_row(self._answers[some], some, self._relevance, settled)
            fresh[some] = self._waits_for[some] == NOTHING
            self._blamed |= fresh
        return fresh

    def _events(self, query: int, before: tuple[I64, F32]) -> list[FlipEvent]:
        """The events of a query whose answer turned; it opens or heals one flip against the old system."""
        was_right, is_right = bool(self.old_right[query]), bool(self.right[query])
        kind = FlipKind.NEGATIVE if was_right else FlipKind.POSITIVE
        old = int(self._old_rows[query]), float(self._old_scores[query])
        events = [self._event(query, Reference.OLD_SYSTEM, kind, was_right == is_right, old)]
        turn, opposite = FlipKind.NEGATIVE, FlipKind.POSITIVE
        if is_right:
            turn, opposite = opposite, turn
        previous = int(before[0][query]), float(before[1][query])
        if self._turned[query]:
            events.append(self._event(query, Reference.PREVIOUS_STAGE, opposite, True, previous))
        events.append(self._event(query, Reference.PREVIOUS_STAGE, turn, False, previous))
        self._turned[query] = True
        return events

    def _event(
        self, query: int, reference: Reference, kind: FlipKind, healed: bool, old: tuple[int, float]
    ) -> FlipEvent:
        return FlipEvent(
            query=query,
            reference=reference,
            kind=kind,
            healed=healed,
            old_row=old[0],
            new_row=int(self._answers[query, 0]),
            old_score=old[1],
            new_score=float(self._scores[query]),
            cause=self._cause(query) if kind is FlipKind.NEGATIVE and not healed else None,
        )

    def _cause(self, query: int) -> Cause:
        return self.settled_cause if self._blamed[query] else Cause.MIXED_STAGE


__all__ = [
    "Cause",
    "FlipCounts",
    "FlipEvent",
    "FlipKind",
    "FlipStage",
    "FlipTracker",
    "IncrementalTopK",
    "Reference",
]
