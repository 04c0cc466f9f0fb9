"""What a rollout would do, without doing it: the same checks, the same scores, nothing written."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from orchestrator.context import Context
from orchestrator.core import plan
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.service.scoring import read_inputs, score_items
from orchestrator.service.start import Checked, StartRequest, check_start
from orchestrator.serving.matrix import load_matrix
from orchestrator.store.row_format import RowFormat

RANK_BYTES = 4


@dataclass(frozen=True)
class Preview:
    """What `rollout start` would do.

    Attributes:
        strategy: its name.
        extent_bytes: of the new vectors; 0 where no item is embedded anew.
        adapted_bytes: of the lifted old vectors; 0 without an adapter.
        ledger_bytes: of the stored plan.
        first_items: the first items in the order: rank, key, label, score (null for an order without scores).

    Where no item is embedded anew there is no order, no batch and no first item.
    """

    gallery: str
    from_model: str
    to_model: str
    adapter: str | None
    strategy: str
    certificate: dict[str, Any]
    order: str | None
    items: int
    batches: int
    batch_size: int
    extent_bytes: int
    adapted_bytes: int
    ledger_bytes: int
    config: dict[str, Any]
    first_items: list[dict[str, Any]]


def preview(context: Context, request: StartRequest, first: int = 10) -> Preview:
    """Check a start as `start` does, score the gallery, and say what would happen.

    Raises:
        NotFoundError, ConflictError, NotCertifiedError, InconclusiveError, UsageError: as `start` would.
    """
    with context.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        checked = check_start(context, connection, request)
        if not checked.strategy.reembeds:
            return _preview(checked, None, [])
        row = _as_it_would_be(context, checked, request)
        stored = load_matrix(connection, checked.gallery.id).vectors
        inputs = read_inputs(connection, row, vectors=lambda: stored, old_vectors=lambda: stored)
    if inputs.stored is not None and checked.strategy.lifts and checked.adapter is not None:
        inputs = replace(inputs, stored=context.adapter(checked.adapter).transform(stored)[0])
    scores = score_items(context, row, inputs)
    order = plan.order_rows(scores)[:first]
    with transaction(context.engine) as connection:
        found = gallery_queries.items_of_rows(connection, checked.gallery.id, order.tolist())
    items = {item.row: item for item in found}  # without those that were deleted meanwhile
    first_items = [
        {
            "rank": rank,
            "key": items[at].key,
            "label": items[at].label,
            "score": float(scores[at]) if np.isfinite(scores[at]) else None,
        }
        for rank, at in enumerate(order.tolist())
        if at in items
    ]
    return _preview(checked, checked.order, first_items)


def _preview(checked: Checked, order: str | None, first_items: list[dict[str, Any]]) -> Preview:
    n, row_bytes = checked.gallery.n_items, RowFormat(checked.new.dim, checked.new.code_shape).row_bytes
    embedded = n if checked.strategy.reembeds else 0
    return Preview(
        gallery=checked.gallery.name,
        from_model=checked.old.name,
        to_model=checked.new.name,
        adapter=checked.adapter.name if checked.adapter else None,
        strategy=checked.strategy.name,
        certificate={
            "id": checked.certificate.id,
            "verdict": checked.certificate.verdict,
            "reason": checked.certificate.reason,
            **{
                key: checked.certificate.measured.get(key)
                for key in ("old_old", "new_old", "new_new", "lowest")
            },
        },
        order=order,
        items=n,
        batches=plan.batch_count(embedded, checked.batch_size),
        batch_size=checked.batch_size,
        extent_bytes=embedded * row_bytes,
        adapted_bytes=n * row_bytes if checked.strategy.lifts else 0,
        ledger_bytes=embedded * RANK_BYTES,
        config=checked.config,
        first_items=first_items,
    )


def _as_it_would_be(context: Context, checked: Checked, request: StartRequest) -> RolloutRow:
    """The rollout's row before it exists: what its scores are asked of."""
    return RolloutRow(
        id=0,
        gallery_id=checked.gallery.id,
        kind="upgrade",
        from_model_id=checked.old.id,
        to_model_id=checked.new.id,
        adapter_id=checked.adapter.id if checked.adapter else None,
        certificate_id=checked.certificate.id,
        state="planned",
        reason=None,
        generation=0,
        order_name=checked.order,
        config=checked.config,
        batch_size=checked.batch_size,
        n_items=checked.gallery.n_items,
        n_batches=0,
        committed_batches=0,
        committed_items=0,
        quarantined_items=0,
        extent_uri="",
        adapted_uri=None,
        actor=context.actor,
        created_at=datetime.now(UTC),
        deployed_at=None,
        backfill_at=None,
        last_progress_at=None,
        finished_at=None,
        paused_at=None,
        paused_s=0.0,
        plan_items=checked.gallery.n_items,
        strategy=checked.strategy.name,
    )
