"""Statements of the worker registry: a row and its heartbeat, never a broker ping."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute


def register_worker(
    connection: Connection,
    *,
    worker_id: str,
    host: str,
    pid: int,
    device: str,
    version: str,
    interval_s: float,
) -> None:
    """A worker says it is there."""
    execute(
        connection,
        "register_worker",
        """INSERT INTO worker (id, host, pid, device, version, expected_interval_s)
           VALUES (:id, :host, :pid, :device, :version, :interval_s)""",
        id=worker_id,
        host=host,
        pid=pid,
        device=device,
        version=version,
        interval_s=interval_s,
    )


def heartbeat(
    connection: Connection, worker_id: str, *, successes: int, errors: int, last_error: str | None
) -> None:
    """A worker is alive; counts are totals since it started."""
    execute(
        connection,
        "heartbeat",
        """UPDATE worker SET last_heartbeat = clock_timestamp(), stopped_at = NULL,
                  success_count = :successes, error_count = :errors,
                  last_error = coalesce(:last_error, last_error) WHERE id = :id""",
        id=worker_id,
        successes=successes,
        errors=errors,
        last_error=last_error,
    )


def retire_worker(connection: Connection, worker_id: str) -> None:
    """A worker left by itself."""
    execute(
        connection,
        "retire_worker",
        "UPDATE worker SET stopped_at = clock_timestamp() WHERE id = :id",
        id=worker_id,
    )


def live_workers(connection: Connection) -> list[tuple[str, str, int]]:
    """(id, host, pid) of workers whose heartbeat is fresh."""
    result = execute(
        connection,
        "live_workers",
        """SELECT id, host, pid FROM worker WHERE stopped_at IS NULL
           AND last_heartbeat > clock_timestamp() - 3 * expected_interval_s * interval '1 second' ORDER BY started_at""",
    )
    return [(str(id_), str(host), int(pid)) for id_, host, pid in result]


def retire_silent(connection: Connection, intervals: int) -> int:
    """Sign off workers that were silent for so many of their intervals; one that comes back signs on by its heartbeat."""
    return execute(
        connection,
        "retire_silent",
        """UPDATE worker SET stopped_at = clock_timestamp(), last_error = coalesce(last_error, 'no heartbeat: taken for gone')
           WHERE stopped_at IS NULL
             AND last_heartbeat < clock_timestamp() - :intervals * expected_interval_s * interval '1 second'""",
        intervals=intervals,
    ).rowcount
