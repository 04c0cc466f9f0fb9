"""A plan revision: the rows of batches that wait change places, in one transaction; everything else stays where it is.

What a batch's rows are is written nowhere but in the plan, so a revision must never change them under somebody who has read
them. Three rules see to that. Only batches that wait and were never tried take part, locked until the revision is committed.
Every batch names the revision that gave it its rows, and so do its claim and its entry in the log. And the inverse plan of a
revision is a file of its own that is written before the transaction ends and never again: whoever looks up a batch's rows by
its revision reads what was true when it was claimed, whatever was re-ranked since.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core import plan
from orchestrator.core.states import RolloutState
from orchestrator.errors import ConflictError
from orchestrator.failpoints import reach
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import plans as plan_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import PlanRevisionRow, RolloutRow, WaitingBatch
from orchestrator.service.rollouts import locked
from orchestrator.serving.matrix import plan_rows
from orchestrator.store import SCORES, CorruptExtentError, read_array, write_array

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]

REORDERABLE = (RolloutState.BACKFILLING, RolloutState.PAUSED)


def require_reorderable(row: RolloutRow) -> None:
    """Raise ConflictError unless the rollout has a plan whose waiting items may change places."""
    if row.state not in REORDERABLE or not row.n_batches:
        raise ConflictError(
            f"rollout {row.id} is {row.state}{'' if row.n_batches else ' and has no plan yet'}: only a plan that is being "
            "worked on, or paused, can be re-ranked."
        )


def write_revision(
    context: Context, rollout_id: int, measure: str, priority: F32, *, automatic: bool = False
) -> PlanRevisionRow | None:
    """Re-rank the items that wait by falling priority; None: they are in that order already, and nothing was written.

    Args:
        measure: what the priority was made of: flips, demand, or flips+demand.
        priority: (at least plan_items,) float32, by row. Equal ones keep the order of the first plan.

    Raises:
        ConflictError: the rollout has no plan, or is in no state to be re-ranked.
    """
    with transaction(context.engine) as connection:
        row = locked(connection, rollout_id)
        require_reorderable(row)
        newest = plan_queries.newest_revision(connection, row.id)
        revision = 0 if newest is None else newest.no
        waiting = plan_queries.hold_waiting(connection, row.id, row.plan_items)
        ranks = _ranks_of(waiting, plan_queries.superseded_ranks(connection, row.id))
        old = np.asarray(plan_rows(connection, row, revision))
        first = plan.invert(np.asarray(plan_rows(connection, row, 0)))
        new = plan.rerank(old, ranks, np.asarray(priority[: row.plan_items], np.float32), first)
        moved = np.flatnonzero(new != old)
        if not len(moved):
            return None
        touched = _holding(waiting, moved)
        written = PlanRevisionRow(
            rollout_id=row.id,
            no=revision + 1,
            # Drawn: an attempt of which nothing came may have left a file, and its late write must not reach this one.
            file=f"rows.{revision + 1}.{secrets.token_hex(4)}.u32",
            measure=measure,
            batches=len(touched),
            items=len(moved),
            committed_items=row.committed_items,
            automatic=automatic,
            actor=context.actor,
        )
        write_array(row.extent_uri, written.file, new)
        reach("revision_written")
        _store(connection, row, written, new, moved, touched)
    return written


def _ranks_of(waiting: Sequence[WaitingBatch], superseded: Sequence[int]) -> I64:
    """The ranks that may get other rows, in the order of claims. What is superseded stays: its rank is written down."""
    if not waiting:
        return np.empty(0, np.int64)
    ranks = np.concatenate([np.arange(b.first_rank, b.first_rank + b.n) for b in waiting])
    return ranks[~np.isin(ranks, np.asarray(superseded, np.int64))]


def _holding(waiting: Sequence[WaitingBatch], ranks: I64) -> list[WaitingBatch]:
    """The batches that hold any of these ranks, by rank."""
    batches = sorted(waiting, key=lambda batch: batch.first_rank)
    starts = np.array([batch.first_rank for batch in batches])
    return [batches[at] for at in np.unique(np.searchsorted(starts, ranks, side="right") - 1)]


def _store(
    connection: Connection,
    row: RolloutRow,
    written: PlanRevisionRow,
    new: plan.U32,
    moved: I64,
    touched: Sequence[WaitingBatch],
) -> None:
    rank_of = plan.invert(new)
    numbers = np.unique(new[moved] // plan.CHUNK)
    plan_queries.insert_revision(connection, written)
    plan_queries.rewrite_chunks(
        connection,
        row.id,
        {int(no): plan.to_chunks(rank_of[no * plan.CHUNK : (no + 1) * plan.CHUNK])[0] for no in numbers},
    )
    scores = _scores(row)
    means = [None if scores is None else _mean(scores, new, batch) for batch in touched]
    plan_queries.rerank_batches(
        connection,
        row.id,
        written.no,
        [(batch.first_rank, mean) for batch, mean in zip(touched, means, strict=True)],
    )
    rollout_queries.write_audit(
        connection,
        actor=written.actor,
        action="rollout.replanned",
        target=str(row.id),
        before={"plan_revision": written.no - 1},
        after={
            "plan_revision": written.no,
            "by": written.measure,
            "batches": written.batches,
            "items": written.items,
            "automatic": written.automatic,
        },
    )


def _scores(row: RolloutRow) -> F32 | None:
    """(plan_items,) float32, the scores that the first plan was made of; None for a first embedding, which has no uncertainty,
    and where the release before made the plan."""
    if row.kind == "initial":
        return None
    try:
        return read_array(row.extent_uri, SCORES, "<f4", row.plan_items)
    except CorruptExtentError:
        return None


def _mean(scores: F32, row_of: plan.U32, batch: WaitingBatch) -> float:
    rows = row_of[batch.first_rank : batch.first_rank + batch.n]
    return float(scores[rows].mean(dtype=np.float64))
