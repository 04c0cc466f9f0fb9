"""Batches that fail: tried three times, then split in two, down to the one item that is at fault; and the breaker.

Attempts are counted when a batch is claimed, so an item that kills its worker is found like one that raises.
"""

from __future__ import annotations

import json

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.states import RolloutState, Verb
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import items as item_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import Claim, Committed, RolloutRow
from orchestrator.service.rollouts import locked, move
from orchestrator.serving.matrix import rows_of_ranks

MAX_ATTEMPTS = 3
# Waits before the second and the third attempt; halves of a split batch are tried at once.
RETRY_IN_S = (0.5, 2.0)
# The failure budget looks at so many of the newest items.
RECENT_ITEMS = 1000
# Whole batches that fail one after the other, with none committed between: it is not the items.
FAILURES_IN_ROW = 30


def isolate(context: Context, claim: Claim) -> bool:
    """A batch came back for more than the allowed attempts: split it, or (True) put its only item into quarantine."""
    with transaction(context.engine) as connection:
        row = locked(connection, claim.rollout_id)
        if claim.n > 1:
            batch_queries.split_batch(connection, claim)
            return False
        claim = refreshed(claim, row)
        done = batch_queries.commit_batch(connection, claim, crc=None, holes=[0])
        if done is None:  # paused meanwhile
            batch_queries.give_back(connection, claim)
            return False
        items = rows_of_ranks(connection, row, claim.first_rank, 1, claim.plan_revision).tolist()
        message = claim.error or "every worker that tried it ended without a word: it may kill the process"
        quarantine(connection, row, claim, done, [(items[0], "poison", message)], owner="")
        trip_breaker(connection, row, context.actor)
    return True


def refreshed(claim: Claim, row: RolloutRow) -> Claim:
    """The claim with the revision that the ledger has now."""
    from dataclasses import replace

    return replace(claim, late_revision=row.late_revision)


def quarantine(
    connection: Connection,
    row: RolloutRow,
    claim: Claim,
    done: Committed,
    items: list[tuple[int, str, str]],
    owner: str,
) -> None:
    """Record a committed batch's holes with their evidence. Places that were superseded meanwhile are not among them."""
    model = model_queries.model_by_id(connection, row.to_model_id)
    evidence = {
        "first_rank": claim.first_rank,
        "fence": claim.fence,
        "attempt": claim.attempt,
        "seq": done.seq,
        "worker": owner or None,
        "model": model.name,
        "model_digest": model.digest,
    }
    item_queries.insert_quarantined(connection, row.id, items, json.dumps(evidence))


def trip_breaker(connection: Connection, row: RolloutRow, actor: str) -> bool:
    """Pause a rollout of which too much of the last 1,000 items went into quarantine."""
    budget = float(row.config.get("failure_budget", 1.0))
    bad = item_queries.quarantined_recently(connection, row.id, row.budget_from_seq, RECENT_ITEMS)
    if bad < max(1.0, budget * RECENT_ITEMS) or budget >= 1:
        return False
    return _pause(
        connection,
        row.id,
        actor,
        f"failure_budget: {bad} of the last {RECENT_ITEMS} items went into quarantine, the limit is "
        f"{budget * RECENT_ITEMS:.0f}; see `hotrefresh ledger errors`, mend it, then resume",
    )


def batch_failed(context: Context, claim: Claim, message: str, code: str, *, hopeless: bool = False) -> bool:
    """Give back a batch that failed as a whole; True when the rollout was paused because too many did in a row.

    Args:
        hopeless: the same error would come again, so the batch is split at its next claim instead of tried again.
    """
    with transaction(context.engine) as connection:
        row = locked(connection, claim.rollout_id)
        last = hopeless or claim.attempt >= MAX_ATTEMPTS
        wait_s = 0.0 if last else RETRY_IN_S[min(claim.attempt, len(RETRY_IN_S)) - 1]
        attempts = MAX_ATTEMPTS if last else claim.attempt
        if not batch_queries.give_back(
            connection, claim, error=f"{code}: {message}", retry_in_s=wait_s, attempts=attempts
        ):
            return False
        if rollout_queries.count_failure(connection, row.id) < FAILURES_IN_ROW:
            return False
        return _pause(
            connection,
            row.id,
            context.actor,
            f"{FAILURES_IN_ROW} batches failed one after the other, the last with {code}: {message}",
        )


def _pause(connection: Connection, rollout_id: int, actor: str, reason: str) -> bool:
    row = locked(connection, rollout_id)
    if row.state != RolloutState.BACKFILLING:
        return False
    move(connection, row, Verb.PAUSE, actor=actor, reason=reason)
    return True
