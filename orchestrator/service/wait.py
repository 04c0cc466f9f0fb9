"""One snapshot of a rollout, and waiting for it to get somewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from orchestrator.context import Context
from orchestrator.core.states import TERMINAL, RolloutState
from orchestrator.errors import ConflictError, HotrefreshError, NotFoundError, WaitTimeoutError
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import gates as gate_queries
from orchestrator.ledger.queries.flips import WHOLE
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service.background import live_workers
from orchestrator.service.listings import newest_rows

POLL_S = 0.2
Row = dict[str, Any]


@dataclass(frozen=True)
class RolloutStatus:
    """What the command line, its JSON and a page show of one rollout: rows of the reporting views at one instant.

    Attributes:
        rollout: of `rollout_status`.
        queue: of `queue_status`, by band.
        workers_alive: workers with a fresh heartbeat.
        coverage: of `coverage_by_model`.
        flips: the newest row of `flip_summary` at k = 1 for each query set; empty before the first evaluation.
        gates: the newest row of `gate_decisions` for each gate and query set.
        churn: the newest row of `churn_summary` for each query set.
        clicks: the newest row of `click_summary` at k = 1 for each query set with clicks.
    """

    rollout: Row
    queue: tuple[Row, ...]
    workers_alive: int
    coverage: tuple[Row, ...]
    flips: tuple[Row, ...]
    gates: tuple[Row, ...]
    churn: tuple[Row, ...] = ()
    clicks: tuple[Row, ...] = ()

    @property
    def id(self) -> int:
        return int(self.rollout["id"])

    @property
    def state(self) -> RolloutState:
        return RolloutState(self.rollout["state"])


def read_status(context: Context, rollout_id: int) -> RolloutStatus:
    """The snapshot, in one transaction.

    Raises:
        NotFoundError: no such rollout.
    """
    with snapshot(context.engine) as connection:
        rows = read_view(connection, "rollout_status", id=rollout_id)
        if not rows:
            raise NotFoundError(
                f"there is no rollout {rollout_id}; `hotrefresh rollout list` shows those there are."
            )
        gallery = gallery_queries.gallery_by_name(connection, rows[0]["gallery"])
        assert gallery is not None
        sets = gallery_queries.query_sets_of_gallery(connection, gallery.id)
        whole = {"rollout": rollout_id, "slice": WHOLE}
        return RolloutStatus(
            rollout=rows[0],
            queue=tuple(read_view(connection, "queue_status", rollout=rollout_id)),
            workers_alive=len(live_workers(context)),
            coverage=tuple(read_view(connection, "coverage_by_model", gallery=gallery.name)),
            flips=tuple(newest_rows(connection, sets, "flip_summary", k=1, **whole)),
            gates=tuple(gate_queries.answers_shown(connection, [rollout_id])),
            churn=tuple(newest_rows(connection, sets, "churn_summary", **whole)),
            clicks=tuple(newest_rows(connection, sets, "click_summary", k=1, **whole)),
        )


def wait_for(
    context: Context,
    rollout_id: int,
    until: Collection[RolloutState],
    timeout_s: float | None = None,
    on_status: Callable[[RolloutStatus], None] = lambda status: None,
    *,
    poll_s: float = POLL_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> RolloutStatus:
    """Watch a rollout until it is in one of these states, or in one that it never leaves.

    Raises:
        ConflictError: it was paused; the message holds the reason.
        HotrefreshError: it failed; the message holds the reason.
        WaitTimeoutError: `timeout_s` is over; the rollout goes on.
    """
    deadline = None if timeout_s is None else clock() + timeout_s
    while True:
        status = read_status(context, rollout_id)
        on_status(status)
        if status.state in until:
            return status
        _check_stopped(status)
        if status.state in TERMINAL:
            return status
        if deadline is not None and clock() >= deadline:
            raise WaitTimeoutError(
                f"rollout {rollout_id} is still {status.state.value} after {timeout_s:g} s; it goes on. "
                f"Watch it with `hotrefresh rollout status -w {rollout_id}`."
            )
        sleep(poll_s)


def _check_stopped(status: RolloutStatus) -> None:
    reason = status.rollout["reason"] or "no reason was given"
    if status.state is RolloutState.PAUSED:
        raise ConflictError(
            f"rollout {status.id} is paused: {reason.rstrip('.')}. "
            f"When that is mended: `hotrefresh rollout resume {status.id}`."
        )
    if status.state is RolloutState.FAILED:
        raise HotrefreshError(
            f"rollout {status.id} failed: {reason.rstrip('.')}. "
            f"What happened is in `hotrefresh rollout history {status.id}`."
        )
