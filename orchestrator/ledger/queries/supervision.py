"""Statements of the supervisor: what its workers hold and have finished, and the end of one that it has seen dead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, fetch_all


@dataclass(frozen=True)
class SupervisedWorker:
    """A worker process of this host.

    Attributes:
        finished: successes and errors, together.
        beat: its last heartbeat, seconds since the epoch by the database's clock.
        held: keys of the claims whose lease it keeps alive.
    """

    id: str
    pid: int
    finished: int
    beat: float
    held: list[str]


def supervised_workers(connection: Connection, host: str, pids: Sequence[int]) -> list[SupervisedWorker]:
    """The workers registered by these processes.

    A claim counts while its lease is alive and its rollout works: what a paused rollout or a lost lease left in the
    table is nobody's work.
    """
    return fetch_all(
        connection,
        SupervisedWorker,
        "supervised_workers",
        """SELECT DISTINCT ON (w.pid) w.id, w.pid, w.success_count + w.error_count AS finished,
                   extract(epoch FROM w.last_heartbeat)::float8 AS beat,
                   ARRAY(SELECT concat_ws('/', b.rollout_id, b.first_rank, b.fence)
                         FROM rollout r JOIN batch b ON b.rollout_id = r.id
                         WHERE r.state IN ('backfilling', 'finalized') AND b.state = 'leased' AND b.lease_owner = w.id
                           AND b.lease_until > clock_timestamp()) AS held
            FROM worker w WHERE w.host = :host AND w.pid = ANY(:pids) AND w.stopped_at IS NULL
            ORDER BY w.pid, w.started_at DESC""",
        host=host,
        pids=list(pids),
    )


def end_worker(connection: Connection, worker_id: str, reason: str) -> int:
    """Sign off a worker whose process is known to be dead, and let its leases run out now; returns how many.

    The fence refuses whatever of it may still be under way; attempts stay counted. So its batches are claimed again at
    once instead of a lease later.
    """
    return execute(
        connection,
        "end_worker",
        """WITH ended AS (UPDATE worker SET stopped_at = clock_timestamp(), last_error = :reason
                          WHERE id = :id AND stopped_at IS NULL)
           UPDATE batch SET lease_until = clock_timestamp()
           WHERE lease_owner = :id AND state = 'leased' AND lease_until > clock_timestamp()""",
        id=worker_id,
        reason=reason,
    ).rowcount
