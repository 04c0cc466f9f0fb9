"""The flip evaluator: follows the log like a replica, and knows after every batch how each query is answered.

It can die at any time. Started again it replays what it has evaluated without writing, and goes on from there, so its
"previous stage" is the one it would have had. One evaluator a rollout, by an advisory lock.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.causes import Cause
from orchestrator.core.churn import Churn, ChurnTracker
from orchestrator.core.flips import FlipCounts, FlipEvent, FlipStage, FlipTracker
from orchestrator.core.healing import flip_credit
from orchestrator.core.incremental import IncrementalTopK
from orchestrator.core.metrics import top_k
from orchestrator.core.relevance import RelevanceKind
from orchestrator.core.slices import slices_of
from orchestrator.core.thresholds import Thresholds, ThresholdTracker
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import churn as churn_queries
from orchestrator.ledger.queries import flips as flip_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import matching as matching_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries.flips import CLICKS, FLIPS, WHOLE
from orchestrator.ledger.rows import ChurnRow, EvaluationRow, LogEntry, RolloutRow
from orchestrator.serving.background import (
    AdjustedThresholds,
    Backgrounds,
    embed_background,
    plan_background,
)
from orchestrator.serving.calibration import batch_rows, calibrated, calibrations, fitting
from orchestrator.serving.embedding import QuerySet, load_query_set
from orchestrator.serving.matrix import apply_rollout, load_matrix, read_batch, rows_of_ranks
from orchestrator.serving.queries import encode_queries, query_path, towered

POINTS = 200
"""Parts of the coverage: a curve of a million batches is drawn through as many points."""


class QuerySetEvaluator:
    """One query set of one rollout. `items` counts the rows that hold the new model's vectors."""

    def __init__(
        self, rollout: RolloutRow, queries: QuerySet, old: npt.NDArray[np.float32], new: npt.NDArray[np.float32],
        before: npt.NDArray[np.float32], deployed: npt.NDArray[np.float32], ks: Sequence[int], buffer: int,
        *, churn_k: int, churn_p: float, background: Backgrounds | None = None,
    ) -> None:  # fmt: skip
        """`old`, `new`: (Q, d) query vectors; `before`, `deployed`: (N, d) what the old system and the new one search.

        `ks`: flips are counted at each of them, where there is any relevance. `churn_k`, `churn_p`: depth and p of the churn.
        `background`: what scores are adjusted by.
        """
        self.rollout = rollout
        self.query_set_id = queries.row.id
        self.name = queries.row.name
        self.relevance = RelevanceKind(queries.row.relevance)
        self._tables = CLICKS if self.relevance is RelevanceKind.CLICKS else FLIPS
        self.items = 0
        self._part = -1
        self._relevance = queries.relevance
        ks = [] if self.relevance is RelevanceKind.NONE else sorted({*ks, 1})
        deepest = max([*ks, churn_k])
        scores, rows = top_k(old, before, deepest)
        cause = Cause.QUANTISATION if rollout.how.recodes else Cause.MODEL
        self._trackers = {k: FlipTracker(queries.relevance, scores[:, :k], rows[:, :k], cause) for k in ks}
        self._answers = IncrementalTopK(new, deployed, deepest, max(buffer, deepest))
        counted = np.flatnonzero(queries.relevance.answerable)
        attributes = [query.attributes for query in queries.queries]
        self._slices = slices_of(attributes, counted)
        # A query that could not be read has no vector and no answer: both systems would seem to agree on it.
        asked = np.flatnonzero(old.any(axis=1) & new.any(axis=1))
        self._churn = ChurnTracker(rows[:, :churn_k], asked, slices_of(attributes, asked))
        self._churn_k, self._churn_p = churn_k, churn_p
        self._thresholds: ThresholdTracker | None = None
        self._adjusted: AdjustedThresholds | None = None
        if self.relevance.known and len(counted):
            right = self._trackers[1].old_right
            self._thresholds = ThresholdTracker(asked, len(counted), right, scores[:, 0])
            if background is not None:
                first = right, scores[:, 0], rows[:, 0]
                self._adjusted = AdjustedThresholds(background, old, new, asked, len(counted), *first)
        self._slice_counts: dict[tuple[int, str], tuple[FlipCounts, FlipCounts]] = {}
        # Where nothing is re-embedded, or no vector will ever come, nothing is the mixture's.
        self._settled: npt.NDArray[np.bool_] = np.full(len(deployed), not rollout.how.reembeds)
        self._settled |= ~deployed.any(axis=1)

    def deployed(self) -> Stages:
        """The stage of the deployment: every query is answered by the new model from now on."""
        return self._update(np.arange(len(self._answers.top(1)[1])))

    def apply(
        self,
        rows: npt.NDArray[np.int64],
        vectors: npt.NDArray[np.float32],
        kept: npt.NDArray[np.int64],
    ) -> Stages:
        """The stage of one committed batch; `kept` are its rows that could not be embedded and stay as they are."""
        changed = self._answers.apply(rows, vectors)
        if self._adjusted is not None:
            self._adjusted.apply(rows, vectors)
        self._settled[rows] = self._settled[kept] = True
        self.items += len(rows)
        return self._update(changed)

    def credit(self) -> npt.NDArray[np.float64]:
        """(N,) float64: the expected flips that refreshing each row heals, at every k together (`core.healing`); 0 of clicks."""
        found = self._answers.top()[1]
        total = np.zeros(len(self._settled))
        if not self.relevance.known:
            return total
        for k, tracker in self._trackers.items():
            flipped = np.flatnonzero(tracker.old_right & ~tracker.right)
            total += flip_credit(found[flipped, :k], flipped, self._relevance, self._settled)
        return total

    @property
    def waiting(self) -> npt.NDArray[np.bool_]:
        """(N,) bool: the rows whose vectors may still change."""
        return ~self._settled

    def _update(self, changed: npt.NDArray[np.int64]) -> Stages:
        scores, found = self._answers.top()
        stages = {
            k: tracker.update(changed, scores[changed, :k], found[changed, :k], self._settled)
            for k, tracker in self._trackers.items()
        }
        slices = {
            (k, name): tracker.counts_of(queries)
            for k, tracker in self._trackers.items()
            for name, queries in self._slices.items()
        }
        moved = frozenset(each for each in slices if slices[each] != self._slice_counts.get(each))
        self._slice_counts = slices
        part, before = self.items * POINTS // max(self.rollout.n_items, 1), self._part
        self._part = part
        churned = self._churn.update(changed, found[changed, : self._churn_k])
        if before < 0:
            # The first stage is written whole: later ones are changes to it.
            churned = frozenset(self._churn.counts())
        point = part != before
        thresholds = adjusted = None
        if self._thresholds is not None and point:
            right = self._trackers[1].right
            thresholds = self._thresholds.measure(right, scores[:, 0])
            if self._adjusted is not None:
                adjusted = self._adjusted.measure(right, scores[:, 0], found[:, 0])
        return Stages(stages, slices, moved, self._churn.counts(), churned, point, thresholds, adjusted)

    def record(self, connection: Connection, seq: int, items: int, stages: Stages) -> None:
        """Write a stage's counts and flips, at the coverage it was at; nothing where they are written already."""
        ours = self.rollout.id, self.query_set_id
        for k, stage in stages.by_k.items():
            if flip_queries.is_evaluated(connection, *ours, k, seq, self._tables):
                continue
            counts = {WHOLE: (stage.against_old, stage.against_previous)}
            counts |= {name: stages.slices[at, name] for at, name in sorted(stages.moved) if at == k}
            rows = [_evaluation(seq, items, k, name, stages.point, *each) for name, each in counts.items()]
            flip_queries.insert_evaluations(connection, *ours, rows, self._tables)
            self._record_events(connection, seq, k, stage)
        churned = [
            ChurnRow(seq, items, name, stages.point, churn.n, churn.shared, self._churn_p)
            for name, churn in stages.churn.items()
            if name == WHOLE or name in stages.churned
        ]
        churn_queries.insert_churn(connection, *ours, churned)
        if stages.thresholds is not None:
            matching_queries.insert_thresholds(connection, *ours, seq, items, stages.thresholds)
        if stages.adjusted is not None and self._adjusted is not None:
            by = self._adjusted.background.row.id, self._adjusted.background.n
            matching_queries.insert_thresholds(connection, *ours, seq, items, stages.adjusted, by)

    def _record_events(self, connection: Connection, seq: int, k: int, stage: FlipStage) -> None:
        ours = self.rollout.id, self.query_set_id
        healed: dict[str, list[int]] = {}
        for event in stage.events:
            if event.healed:
                healed.setdefault(event.reference.value, []).append(event.query)
        for reference, queries in healed.items():
            flip_queries.heal_flips(connection, *ours, reference, k, queries, seq, self._tables)
        if stage.blamed:
            cause = self._trackers[k].settled_cause
            flip_queries.settle_cause(connection, *ours, k, stage.blamed, cause, self._tables)
        opened = [self._opened(e, k, seq) for e in stage.events if not e.healed]
        flip_queries.insert_flips(connection, opened, self._tables)

    def _opened(self, event: FlipEvent, k: int, seq: int) -> dict[str, Any]:
        return {
            "rollout_id": self.rollout.id,
            "query_set_id": self.query_set_id,
            "query_no": event.query,
            "kind": event.kind.value,
            "reference": event.reference.value,
            "k": k,
            "opened_seq": seq,
            "old_row": event.old_row,
            "new_row": event.new_row,
            "old_score": event.old_score,
            "new_score": event.new_score,
            "cause": event.cause,
        }


@dataclass(frozen=True)
class Stages:
    """One stage of a query set.

    Attributes:
        by_k: what it did at every k.
        slices: (k, name) -> counts (against old, against previous) of every slice.
        moved: the slices whose counts are others than at the stage before.
        churn: slice -> how far its queries' answers are from the old system's.
        churned: the slices whose churn is another than at the stage before.
        point: a curve is drawn through it, as the first in one of POINTS parts of the coverage.
        thresholds: where answers may be cut, at such a point; None where nobody knows what is right.
        adjusted: the same by scores less those of a background set; None where there is none, or no version to compare in.
    """

    by_k: dict[int, FlipStage]
    slices: dict[tuple[int, str], tuple[FlipCounts, FlipCounts]]
    moved: frozenset[tuple[int, str]]
    churn: dict[str, Churn]
    churned: frozenset[str]
    point: bool
    thresholds: Thresholds | None
    adjusted: Thresholds | None = None

    def counts(self, k: int, name: str) -> tuple[FlipCounts, FlipCounts] | None:
        """Of a slice, or of the whole set; None where it is not counted."""
        if name == WHOLE and k in self.by_k:
            return self.by_k[k].against_old, self.by_k[k].against_previous
        return self.slices.get((k, name))


@dataclass(frozen=True)
class Recorded:
    """A stage of a query set that is in the ledger: the items embedded by then, and what it counted."""

    query_set: str
    relevance: RelevanceKind
    items: int
    stages: Stages


AfterStage = Callable[[int, Sequence[Recorded]], None]
"""Called with the stage's place in the log, and what each query set counted."""


def _evaluation(
    seq: int, items: int, k: int, name: str, point: bool, old: FlipCounts, previous: FlipCounts
) -> EvaluationRow:
    return EvaluationRow(
        seq=seq,
        items=items,
        k=k,
        slice=name,
        point=point,
        n=old.n,
        both_right=old.both_right,
        negative_flips=old.negative_flips,
        positive_flips=old.positive_flips,
        both_wrong=old.both_wrong,
        previous_negative_flips=previous.negative_flips,
        previous_positive_flips=previous.positive_flips,
    )


class Evaluator:
    """All query sets of one deployed rollout."""

    def __init__(self, context: Context, rollout_id: int, after: AfterStage | None = None) -> None:
        """`after`: called when a stage is recorded, also for those that were before."""
        self._context = context
        self._after = after
        with context.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            rollout = rollout_queries.rollout_by_id(connection, rollout_id)
            assert rollout is not None, f"no rollout {rollout_id}"
            self.rollout = rollout
            self.stale = False
            # Items that were committed when a revision of the plan was last thought of.
            self.reordered_at: int | None = None
            self.seen_seq = log_queries.last_seq(connection, rollout.gallery_id)
            self.n_rows = gallery_queries.gallery_by_id(connection, rollout.gallery_id).n_items
            self.seq = log_queries.deployed_seq(connection, rollout_id)
            sets = gallery_queries.query_sets_of_gallery(connection, rollout.gallery_id)
            loaded = [load_query_set(connection, row) for row in sets]
            assert rollout.from_model_id is not None, "the first embedding has no old system"
            self._holder = _holder(connection, rollout)
            old_path = query_path(connection, rollout.from_model_id, served_before(connection, rollout))
            new_path = query_path(connection, rollout.to_model_id, rollout)
            paths = old_path, new_path
            asked_of = [[towered(connection, each, q.row.modality) for each in paths] for q in loaded]
            # What the log brings from here on is replayed: under a query adapter, batches of the rollout before.
            since = None if rollout.how.holds_vectors else self.seq
            before = load_matrix(connection, rollout.gallery_id, before=rollout.id, up_to=since)
            gone = log_queries.deleted_rows(connection, rollout.gallery_id, self.seen_seq)
            maps = calibrations(connection, rollout.gallery_id, self._holder)
            before.vectors[gone], before.version[gone] = 0, 0
            old_vectors = calibrated(before.vectors, before.version, maps).copy()
            old_version = before.version.copy()
            apply_rollout(connection, before, rollout, seq=0)
            before.vectors[gone], before.version[gone] = 0, 0
            deployed = calibrated(before.vectors, before.version, maps)
            self._width, self._codes = deployed.shape[1], new_path.codes
            holder, versions = self._holder.id, (old_version, before.version)
            plan = plan_background(connection, rollout, holder, *versions, maps)
        background = None if plan is None else embed_background(context, plan, holder, *versions)
        self._sets = []
        for queries, asked in zip(loaded, asked_of, strict=True):
            old, new = (encode_queries(context, path, queries.uris)[0] for path in asked)
            self._sets.append(
                QuerySetEvaluator(
                    rollout,
                    queries,
                    fitting(old, old_vectors.shape[1], old_path.codes),
                    fitting(new, self._width, new_path.codes),
                    old_vectors,
                    deployed.copy(),
                    rollout.config.get("flip_ks", [1]),
                    context.settings.buffer_size,
                    churn_k=rollout.config.get("churn_k", context.settings.churn_k),
                    churn_p=rollout.config.get("churn_p", context.settings.churn_p),
                    background=background,
                )
            )
        self._record(self.seq, self._items(), [each.deployed() for each in self._sets])

    def catch_up(self) -> int:
        """Evaluate every log entry of this rollout that is new; returns how many batches."""
        done = 0
        while True:
            with self._context.engine.connect() as connection:
                entries = log_queries.log_after(connection, self.rollout.gallery_id, self.seq, 64)
                stages = []
                for entry in entries:
                    if self._outgrown(connection, entry):
                        self.stale = True
                        break
                    stages.append((entry, self._stage(connection, entry), self._items()))
            for entry, stage, items in stages:
                if stage:
                    self._record(entry.seq, items, stage)
                    done += 1
                self.seq = entry.seq
            if len(entries) < 64 or self.stale:
                return done

    def _stage(self, connection: Connection, entry: LogEntry) -> list[Stages]:
        if entry.kind != "batch" or entry.rollout_id != self._holder.id:
            return []
        batch = read_batch(connection, self._holder, entry)
        rows = np.concatenate([batch.rows, batch.emptied])
        laid_out = batch_rows(self._holder, batch, self._width, self._codes)
        vectors = np.concatenate([laid_out, np.zeros((len(batch.emptied), self._width), np.float32)])
        return [each.apply(rows, vectors, batch.kept) for each in self._sets]

    def _outgrown(self, connection: Connection, entry: LogEntry) -> bool:
        """Whether the gallery is no longer the one this evaluator was built for: items were added or deleted."""
        if entry.kind == "deleted":
            return entry.seq > self.seen_seq
        if entry.kind != "batch" or entry.rollout_id != self._holder.id:
            return False
        rows = rows_of_ranks(connection, self._holder, entry.first_rank, entry.n, entry.plan_revision)
        return bool(rows.max(initial=-1) >= self.n_rows)

    def _items(self) -> list[int]:
        return [each.items for each in self._sets]

    def healing(self, only: str | None = None) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.float64]]:
        """(N,) bool, the rows that wait, and (N,) float64, the expected flips that refreshing each heals.

        Args:
            only: the query set whose flips count; None: all of them.
        """
        waiting = self._sets[0].waiting
        found = [each.credit() for each in self._sets if only in (None, each.name)]
        return waiting, np.sum(found, axis=0) if found else np.zeros(len(waiting))

    def _record(self, seq: int, items: Sequence[int], stages: Sequence[Stages]) -> None:
        with transaction(self._context.engine) as connection:
            for each, at, stage in zip(self._sets, items, stages, strict=True):
                each.record(connection, seq, at, stage)
        if self._after is not None:
            self._after(
                seq,
                [
                    Recorded(each.name, each.relevance, at, stage)
                    for each, at, stage in zip(self._sets, items, stages, strict=True)
                ],
            )


def _holder(connection: Connection, rollout: RolloutRow) -> RolloutRow:
    """The rollout whose batches change what is searched while this one serves."""
    if rollout.how.holds_vectors:
        return rollout
    holder = rollout_queries.newest_holder(connection, rollout.gallery_id, before=rollout.id)
    assert holder is not None, "a query adapter leads to vectors that are there"
    return holder


def served_before(connection: Connection, rollout: RolloutRow) -> RolloutRow | None:
    """The rollout that served before this one; None where its vectors were reclaimed."""
    older = [
        row
        for row in rollout_queries.effective_rollouts(connection, rollout.gallery_id)
        if row.id < rollout.id
    ]
    return older[-1] if older else None
