"""Ringing workers: a wish written with the change it tells of, rung by whoever comes next. The work is in the ledger."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.errors import UnreachableError
from orchestrator.failpoints import reach
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries import wakeups as wakeup_queries
from orchestrator.ledger.queries import workers as worker_queries

AT_ONCE = 100


def request_wakeup(connection: Connection, task: str, rollout_id: int) -> None:
    """Ask for `hotrefresh.<task>` on a rollout, in the transaction of what it tells of."""
    lane = "control"
    if task in ("drain", "evaluate"):
        row = rollout_queries.rollout_by_id(connection, rollout_id)
        lane = str(row.config.get("lane", "backfill")) if row is not None else "backfill"
    wakeup_queries.request_wakeup(connection, task, rollout_id, lane)


def wake(context: Context, task: str, rollout_id: int) -> bool:
    """Ask for a wake-up and ring it; False where the broker is away: a sweeper rings it later."""
    with transaction(context.engine) as connection:
        request_wakeup(connection, task, rollout_id)
    return relay(context)


def relay(context: Context) -> bool:
    """Ring what waits in the outbox, each at least once; False where the broker is away and all of it waits on.

    A drain is rung once for every live worker: all of them shall come.
    """
    try:
        with transaction(context.engine) as connection:
            waiting = wakeup_queries.take_wakeups(connection, AT_ONCE)
            workers = max(1, len(worker_queries.live_workers(connection))) if waiting else 1
            for row in waiting:
                for _ in range(workers if row.task == "drain" else 1):
                    context.broker.ring(row.task, row.lane, row.rollout_id, row.id)
            reach("published")
            if waiting:
                wakeup_queries.mark_sent(connection, [row.id for row in waiting])
    except UnreachableError:
        return False
    return True
