"""The sweeper: what recovers everything that a death left behind. One process at a time has the duty, by a lease.

Every few seconds: leases that ended, pauses and cancels nobody acknowledged, work no wake-up tells of, wake-ups not rung,
workers without a pulse. Every minute: counters against a recount, and extents that no rollout knows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.states import RolloutState
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import recount as recount_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries import wakeups as wakeup_queries
from orchestrator.ledger.queries import workers as worker_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.service.finish import complete
from orchestrator.service.rollouts import acknowledge, locked
from orchestrator.service.throttling import Throttler
from orchestrator.service.wakeups import relay, request_wakeup
from orchestrator.store import list_folders, remove_folder

DUTY = "sweeper"
RECOUNT_EVERY_S = 60.0
FORGET_SENT_S = 3600.0
# A worker that was silent for so many of its intervals is taken for gone.
SILENT_INTERVALS = 10


@dataclass
class Sweeper:
    """One process's part in the duty; `sweep` does nothing while another process has it."""

    context: Context
    owner: str
    _recounted: float = field(default=float("-inf"))
    _on_duty: bool = False
    _orphans: set[str] = field(default_factory=set)
    _throttler: Throttler = field(init=False)

    def __post_init__(self) -> None:
        self._throttler = Throttler(self.context)

    def sweep(self) -> bool:
        """Take the duty and do it once; False: somebody else does."""
        with transaction(self.context.engine) as connection:
            # Three intervals: a sweeper that died is replaced within that time.
            lease_s = 3 * self.context.settings.sweep_s
            self._on_duty = wakeup_queries.take_duty(connection, DUTY, self.owner, lease_s)
            if not self._on_duty:
                return False
            rollouts = rollout_queries.active_rollouts(connection)
            # Of every rollout, also of one that is over: a claim may land after the cancel that it overtook.
            batch_queries.release_expired(connection)
            worker_queries.retire_silent(connection, SILENT_INTERVALS)
            wakeup_queries.forget_sent(connection, FORGET_SENT_S)
        for row in rollouts:
            self._mend(row)
        relay(self.context)
        if time.monotonic() - self._recounted > RECOUNT_EVERY_S:
            self._recounted = time.monotonic()
            for row in rollouts:
                recount(self.context, row.id)
            self._remove_orphans()
        return True

    def _remove_orphans(self) -> None:
        """Remove extents that no rollout has. Only those seen in the round before as well: a start may be under way."""
        with transaction(self.context.engine) as connection:
            known = rollout_queries.extent_uris(connection)
        found = set(list_folders(self.context.settings.extents)) - known
        for url in sorted(found & self._orphans):
            remove_folder(self.context.settings.extents, url)
        self._orphans = found

    def throttle(self) -> None:
        """Ask the throttles, where this process has the duty; more often than a round is."""
        if self._on_duty:
            self._throttler.poll()

    def give_up(self) -> None:
        """Leave the duty to others."""
        with transaction(self.context.engine) as connection:
            wakeup_queries.drop_duty(connection, DUTY, self.owner)

    def _mend(self, row: RolloutRow) -> None:
        if row.state in (RolloutState.CANCELLING, RolloutState.ROLLING_BACK):
            acknowledge(self.context, row.id)
            return
        with transaction(self.context.engine) as connection:
            task = missing_task(connection, row)
            if task is not None:
                request_wakeup(connection, task, row.id)
        if row.state in (RolloutState.BACKFILLING, RolloutState.PAUSED):
            complete(self.context, row.id)


def missing_task(connection: Connection, row: RolloutRow) -> str | None:
    """The task that a rollout waits for now; None where it waits for nothing, or is being worked on."""
    if row.state == RolloutState.PLANNED:
        return "deploy"
    if row.state == RolloutState.FINALIZABLE:
        return "finalize" if row.finalize_asked_by else None
    if row.state not in (RolloutState.DEPLOYED, RolloutState.BACKFILLING, RolloutState.FINALIZED):
        return None
    if row.n_batches == 0:
        return "plan"
    if row.throttle_reason is not None:
        return None
    wait_s = batch_queries.next_due_s(connection, row.id)
    return "drain" if wait_s is not None and wait_s <= 0 else None


def recount(context: Context, rollout_id: int) -> dict[str, tuple[int, int]]:
    """Compare a rollout's counters with a count of its batches, and correct them; what was wrong: name → (was, is)."""
    with transaction(context.engine) as connection:
        row = locked(connection, rollout_id)
        counted = recount_queries.count_batches(connection, rollout_id)
        wrong = {
            name: (int(getattr(row, name)), value)
            for name, value in counted.items()
            if getattr(row, name) != value
        }
        if wrong:
            recount_queries.correct(connection, rollout_id, counted)
            rollout_queries.write_audit(
                connection,
                actor=context.actor,
                action="rollout.counters_corrected",
                target=str(rollout_id),
                before={name: was for name, (was, _) in wrong.items()},
                after={name: is_ for name, (_, is_) in wrong.items()},
            )
    return wrong
