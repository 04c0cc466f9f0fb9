"""Which items come first from now on: revisions of a plan that follow open flips and demand, by themselves or by a verb."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from orchestrator.context import Context
from orchestrator.core.healing import MEASURES, priorities, revision_is_due
from orchestrator.core.states import RolloutState
from orchestrator.errors import ConflictError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import plans as plan_queries
from orchestrator.ledger.rows import PlanRevisionRow, RolloutRow
from orchestrator.service.demand import read_counts, require_demand
from orchestrator.service.gates import Tell, tell_nobody
from orchestrator.service.names import find_rollout
from orchestrator.service.revisions import require_reorderable, write_revision
from orchestrator.service.rollouts import reread

if TYPE_CHECKING:
    from orchestrator.serving.evaluator import Evaluator

F32 = npt.NDArray[np.float32]

# By an operator's word; each is a file of 4 bytes an item that stays as long as the rollout's vectors.
MOST_BY_HAND = 100
# A verb waits so long for another process that counts this rollout's flips at the moment.
WAIT_S = 30.0
_POLL_S = 0.2


@dataclass(frozen=True)
class Reordered:
    """What the verb did: `items` and `batches` are 0 where all was in that order already."""

    rollout_id: int
    plan_revision: int
    by: str
    batches: int
    items: int


def reorder_if_due(
    context: Context, rollout_id: int, evaluator: Evaluator, tell: Tell = tell_nobody
) -> PlanRevisionRow | None:
    """Write a revision where the rollout asks for it, enough was committed since the last one, and something is known.

    Args:
        evaluator: of this rollout, at the end of the log.
    """
    row = reread(context, rollout_id)
    measure = row.config.get("reorder")
    if measure is None or row.state != RolloutState.BACKFILLING or not row.n_batches or evaluator.stale:
        return None
    with transaction(context.engine) as connection:
        written = plan_queries.count_revisions(connection, row.id, automatic=True)
        newest = plan_queries.newest_revision(connection, row.id)
    before = [newest.committed_items] if newest is not None else []
    before += [evaluator.reordered_at] if evaluator.reordered_at is not None else []
    if not revision_is_due(row.committed_items, max(before, default=None), row.n_items, written):
        return None
    evaluator.reordered_at = row.committed_items
    priority = _priority(context, row, measure, evaluator)
    if not priority.any():
        return None  # no flip can be healed, and nothing is asked for: the first plan is as good as any
    try:
        revision = write_revision(context, row.id, measure, priority, automatic=True)
    except ConflictError:
        return None  # it ended, or is taken back, since it was read
    if revision is not None:
        tell(
            "rollout.replanned",
            rollout_id=row.id,
            plan_revision=revision.no,
            by=measure,
            batches=revision.batches,
            items=revision.items,
        )
    return revision


def reorder(context: Context, name: str | int, measure: str) -> Reordered:
    """Write a revision now, whatever the rollout's configuration says.

    Raises:
        UsageError: no such measure.
        ConflictError: nothing is known to go by, the rollout is in no state for it, or it was done too often.
    """
    if measure not in MEASURES:
        raise UsageError(f"--by {measure!r} is not known; choose one of {', '.join(MEASURES)}.")
    with transaction(context.engine) as connection:
        row = find_rollout(connection, str(name))
        gallery = gallery_queries.gallery_by_id(connection, row.gallery_id)
        require_reorderable(row)
        if plan_queries.count_revisions(connection, row.id, automatic=False) >= MOST_BY_HAND:
            raise ConflictError(
                f"rollout {row.id} was re-ranked {MOST_BY_HAND} times by hand; that is enough."
            )
        if "demand" in measure.split("+"):
            require_demand(connection, row.gallery_id, gallery.name)
    evaluator = _evaluator(context, row, gallery.name) if "flips" in measure.split("+") else None
    revision = write_revision(context, row.id, measure, _priority(context, row, measure, evaluator))
    with transaction(context.engine) as connection:
        newest = plan_queries.newest_revision(connection, row.id)
    return Reordered(
        row.id,
        newest.no if newest else 0,
        measure,
        revision.batches if revision else 0,
        revision.items if revision else 0,
    )


def _priority(context: Context, row: RolloutRow, measure: str, evaluator: Evaluator | None) -> F32:
    """(n,) float32 of at least the planned rows."""
    waiting, credit = np.ones(row.plan_items, np.bool_), None
    if evaluator is not None:
        waiting, credit = evaluator.healing(row.config.get("reorder_queryset"))
    demand = None
    if "demand" in measure.split("+"):
        with transaction(context.engine) as connection:
            demand = read_counts(connection, row.gallery_id, len(waiting)).astype(np.float64)
    return priorities(measure, waiting, credit, demand)


def _evaluator(context: Context, row: RolloutRow, gallery: str) -> Evaluator:
    """One of our own, at the end of the log; whoever counts flips at the moment is waited for."""
    from orchestrator.service.evaluate import evaluate_rollout

    with transaction(context.engine) as connection:
        if row.kind != "upgrade" or not gallery_queries.query_sets_of_gallery(connection, row.gallery_id):
            raise ConflictError(
                f"no flips of rollout {row.id} are counted: gallery {gallery!r} has no query set, or this is its first "
                "embedding. Import one with `hotrefresh queryset import`, or go by demand."
            )
    kept: dict[int, Evaluator] = {}
    deadline = time.monotonic() + WAIT_S
    while row.id not in kept:
        evaluate_rollout(context, row.id, kept)
        if row.id not in kept and time.monotonic() > deadline:
            raise ConflictError(
                f"the flips of rollout {row.id} cannot be looked at: another process is counting them since {WAIT_S:.0f} s, or "
                "the old system's vectors are gone. Try again, or go by demand."
            )
        if row.id not in kept:
            time.sleep(_POLL_S)
    return kept[row.id]
