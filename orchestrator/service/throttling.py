"""Throttles of running rollouts: polled by the process that has the sweeper's duty, obeyed by every claim."""

from __future__ import annotations

import json

from orchestrator.context import Context
from orchestrator.core.states import RolloutState
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.service.wakeups import relay, request_wakeup
from orchestrator.throttles.monitor import ThrottleMonitor


class Throttler:
    """Keeps a monitor for each backfilling rollout that has throttles, and writes what they say into the ledger."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._monitors: dict[int, tuple[str, ThrottleMonitor]] = {}

    def poll(self) -> None:
        """Ask every throttle that is due; a rollout that may go on is rung."""
        with transaction(self._context.engine) as connection:
            rows = rollout_queries.active_rollouts(connection)
        running = {row.id: row for row in rows if row.state == RolloutState.BACKFILLING}
        for rollout_id in set(self._monitors) - set(running):
            del self._monitors[rollout_id]
        for row in running.values():
            self._poll_one(row)

    def _poll_one(self, row: RolloutRow) -> None:
        tables = row.config.get("throttles") or []
        wanted = json.dumps(tables, sort_keys=True)
        if self._monitors.get(row.id, ("[]",))[0] != wanted:
            self._monitors[row.id] = wanted, ThrottleMonitor(tables, self._context.engine)
        held = self._monitors[row.id][1].poll() if tables else None
        if held is None and row.throttle_reason is None:
            return
        with transaction(self._context.engine) as connection:
            if held is not None:
                rollout_queries.set_throttle(connection, row.id, held.reason, held.value, held.limit)
            elif rollout_queries.set_throttle(connection, row.id, None):
                request_wakeup(connection, "drain", row.id)
        if held is None:
            relay(self._context)
