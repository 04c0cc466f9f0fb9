"""What moves a rollout on by itself: adapt, deploy, plan. Idempotent; one process at a time by an advisory lock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core import plan
from orchestrator.core.states import RolloutState, Verb
from orchestrator.ledger.database import snapshot, transaction
from orchestrator.ledger.queries import attributes as attribute_queries
from orchestrator.ledger.queries import items as item_queries
from orchestrator.ledger.queries import locks
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.service.rollouts import locked, move, reread
from orchestrator.service.scoring import ADAPT_CHUNK, read_inputs, score_items
from orchestrator.service.wakeups import relay, request_wakeup
from orchestrator.serving.matrix import adapted_table, load_matrix
from orchestrator.store import ADAPTED, ROWS, SCORES, write_array

Progress = Callable[[int, int], None]


@contextmanager
def sole_mover(context: Context, rollout_id: int) -> Iterator[bool]:
    """Whether this process alone may move the rollout; the lock ends with the connection, so with the process."""
    # Autocommit: the lock is the session's, and a transaction that idles while a plan is scored would be ended.
    with context.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        got = locks.try_lock_rollout(connection, rollout_id)
        try:
            yield got
        finally:
            if got:
                locks.unlock_rollout(connection, rollout_id)


def advance(context: Context, rollout_id: int) -> RolloutRow:
    """Do the next steps that stand out: deploy, plan, begin the backfill. Called by workers, safe to call any time."""
    row = reread(context, rollout_id)
    if row.state == RolloutState.PLANNED:
        deploy(context, rollout_id)
        row = reread(context, rollout_id)
    if _wants_plan(row):
        with sole_mover(context, rollout_id) as alone:
            if alone:
                write_plan(context, rollout_id)
        row = reread(context, rollout_id)
    return row


def _wants_plan(row: RolloutRow) -> bool:
    """Deployed, or resumed after a pause that came before the plan was written."""
    return (
        row.how.reembeds
        and row.n_batches == 0
        and row.state in (RolloutState.DEPLOYED, RolloutState.BACKFILLING)
    )


def deploy(context: Context, rollout_id: int, progress: Progress | None = None) -> None:
    """Adapt the stored embeddings where there is an adapter, then flip the serving row in one transaction."""
    with sole_mover(context, rollout_id) as alone:
        if not alone:
            return
        row = reread(context, rollout_id)
        if row.state != RolloutState.PLANNED:
            return
        if row.how.lifts and row.adapted_uri is None:
            adapt_gallery(context, row, progress or (lambda done, total: None))
        with transaction(context.engine) as connection:
            row = locked(connection, rollout_id)
            move(connection, row, Verb.DEPLOY, actor=row.actor)
            if row.kind == "upgrade":
                rollout_queries.flip_serving(
                    connection,
                    row.gallery_id,
                    row.to_model_id,
                    row.id,
                    actor=row.actor,
                    reason=f"rollout {row.id} deployed",
                )
            log_queries.append_log_event(connection, row.gallery_id, row.id, "deployed")
            if row.how.reembeds:
                request_wakeup(connection, "plan", row.id)
            else:
                _end_deployment(connection, row.id)


def _end_deployment(connection: Connection, rollout_id: int) -> None:
    """A strategy that embeds no item anew has nothing left to do, but for items that came or changed while it lifted."""
    row = locked(connection, rollout_id)
    if row.n_batches:
        move(connection, row, Verb.BEGIN_BACKFILL, actor=row.actor)
        request_wakeup(connection, "drain", row.id)
    else:
        move(connection, row, Verb.COMPLETE, actor=row.actor)
        request_wakeup(connection, "evaluate", row.id)


def adapt_gallery(context: Context, row: RolloutRow, progress: Progress) -> None:
    """Lift every stored vector into the new space, in chunks, without reading an item: adapted.f32 in row order."""
    with context.engine.connect() as connection:
        assert row.adapter_id is not None
        adapter = context.adapter(model_queries.adapter_by_id(connection, row.adapter_id))
        old = load_matrix(connection, row.gallery_id, before=row.id)
        target = adapted_table(connection, row)
    target.create()
    started = time.monotonic()
    for first in range(0, row.lifted_items, ADAPT_CHUNK):
        chunk = slice(first, min(first + ADAPT_CHUNK, row.lifted_items))
        lifted, _ = adapter.transform(old.vectors[chunk])
        lifted[old.version[chunk] == 0] = 0  # no vector before, none after
        target.append(lifted)
        progress(chunk.stop, row.lifted_items)
    target.finish()
    with transaction(context.engine) as connection:
        rollout_queries.set_adapted(connection, row.id, f"{row.extent_uri}/{ADAPTED}")
        rollout_queries.set_config(connection, row.id, {"adapted_s": time.monotonic() - started})


def write_plan(context: Context, rollout_id: int) -> None:
    """Score, order, and store the plan; the rollout backfills when its transaction commits.

    All that takes long is done before that transaction, and outside of the one that reads.
    """
    row = reread(context, rollout_id)
    if not _wants_plan(row):
        return
    scores = score_rows(context, row)
    row_of = plan.order_rows(scores)
    n_batches = plan.batch_count(row.plan_items, row.batch_size)
    starts = np.arange(0, row.plan_items, row.batch_size)
    sizes = np.diff(np.append(starts, row.plan_items))
    means = np.add.reduceat(scores[row_of].astype(np.float64), starts) / sizes
    chunks = plan.to_chunks(plan.invert(row_of))
    write_array(row.extent_uri, ROWS, row_of)
    write_array(row.extent_uri, SCORES, scores)  # for the batches of a later revision of the plan
    with transaction(context.engine) as connection:
        row = locked(connection, rollout_id)
        if not _wants_plan(row):
            return  # paused or cancelled meanwhile
        rollout_queries.copy_plan(connection, rollout_id, chunks)
        rollout_queries.insert_batches(
            connection,
            rollout_id,
            [
                (
                    int(starts[no]),
                    int(sizes[no]),
                    plan.band_of(no, n_batches),
                    None if row.kind == "initial" else float(means[no]),
                )
                for no in range(n_batches)
            ],
        )
        # What changed since the start: late items get their batches, deleted ones are left out.
        item_queries.cut_late(
            connection, rollout_id, row.plan_items, row.n_items - row.plan_items, row.batch_size
        )
        attribute_queries.keep_planned_contents(connection, row)
        gone = item_queries.deleted_of_gallery(connection, row.gallery_id)
        if gone:
            item_queries.supersede_rows(connection, rollout_id, gone)
        if row.state == RolloutState.DEPLOYED:
            move(connection, row, Verb.BEGIN_BACKFILL, actor=row.actor)
        request_wakeup(connection, "drain", rollout_id)
    relay(context)


def score_rows(context: Context, row: RolloutRow) -> npt.NDArray[np.float32]:
    """The order's score of every row, from stored (adapted, where there is an adapter) embeddings: (n,) float32."""
    with snapshot(context.engine) as connection:
        inputs = read_inputs(
            connection,
            row,
            vectors=lambda: load_matrix(connection, row.gallery_id).vectors[: row.plan_items],
            old_vectors=lambda: load_matrix(connection, row.gallery_id, before=row.id).vectors[
                : row.plan_items
            ],
        )
    return score_items(context, row, inputs)
