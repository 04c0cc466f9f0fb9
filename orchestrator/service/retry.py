"""Trying again what a rollout could not do, or all of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.states import RolloutState, Verb
from orchestrator.errors import ConflictError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import items as item_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.service.rollouts import locked, move
from orchestrator.service.wakeups import relay, request_wakeup
from orchestrator.serving.matrix import load_matrix


class What(StrEnum):
    """What is tried again."""

    MISSING = "missing"  # batches that wait for their next attempt, at once
    FAILED = "failed"  # and items in quarantine
    ALL = "all"  # and every item that is embedded already


@dataclass(frozen=True)
class Retried:
    """Batches that no longer wait, and items that got another place behind the plan."""

    rollout_id: int
    batches: int
    items: int


def retry(context: Context, name: str | int, what: What = What.FAILED) -> Retried:
    """Try again. Vectors that serve stay until a newer one of the same item is committed.

    Raises:
        ConflictError: the rollout is not one whose batches workers may do.
    """
    with transaction(context.engine) as connection:
        row = locked(connection, name)
        if row.state not in ("backfilling", "paused", "finalizable", "finalized"):
            raise ConflictError(
                f"rollout {row.id} is {row.state}: there is nothing to try again. Possible while it is backfilling, paused, "
                "finalizable or finalized."
            )
        batches = batch_queries.make_due(connection, row.id)
        rows = _rows(connection, row, what)
        if rows:
            reopen(connection, row, context.actor, f"{len(rows)} items are tried again")
            item_queries.supersede_rows(connection, row.id, rows)
            item_queries.add_late(connection, row, rows)
        rollout_queries.forgive(connection, row.id)
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action="rollout.retried",
            target=str(row.id),
            after={"what": what.value, "batches": batches, "items": len(rows)},
        )
        request_wakeup(connection, "drain", row.id)
    relay(context)
    return Retried(row.id, batches, len(rows))


def reopen(connection: Connection, row: RolloutRow, actor: str, reason: str) -> None:
    """A finalizable rollout that has work again."""
    if row.state == RolloutState.FINALIZABLE:
        move(connection, row, Verb.REOPEN, actor=actor, reason=reason)


def _rows(connection: Connection, row: RolloutRow, what: What) -> list[int]:
    if what is What.MISSING:
        return []
    rows = item_queries.quarantined_rows(connection, row.id)
    if what is What.ALL:
        embedded = np.flatnonzero(load_matrix(connection, row.gallery_id).version == row.id)
        rows = sorted({*rows, *embedded.tolist()})
    return rows
