"""Statements about a gallery's log: what was committed, deployed, deleted, in one order that all replicas follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute
from orchestrator.ledger.rows import LogEntry


def log_after(connection: Connection, gallery_id: int, seq: int, limit: int) -> list[LogEntry]:
    """The gallery's log behind `seq`, in order: committed batches and events."""
    result = execute(
        connection,
        "log_after",
        """(SELECT b.seq, 'batch' AS kind, b.rollout_id, b.first_rank, b.n, b.fence, b.crc, b.holes, b.superseded, NULL AS rows,
                   b.plan_revision, b.committed_at
            FROM rollout r JOIN batch b ON b.rollout_id = r.id
            WHERE r.gallery_id = :gallery AND b.seq > :seq ORDER BY b.seq LIMIT :limit)
           UNION ALL
           (SELECT seq, kind, rollout_id, 0, 0, 0, NULL, NULL, NULL, rows, 0, at FROM log_event
            WHERE gallery_id = :gallery AND seq > :seq ORDER BY seq LIMIT :limit)
           ORDER BY seq LIMIT :limit""",
        gallery=gallery_id,
        seq=seq,
        limit=limit,
    )
    return [_entry(row) for row in result]


def committed_batches(connection: Connection, rollout_id: int, up_to_seq: int) -> list[LogEntry]:
    """A rollout's committed batches up to a place in the log, in log order."""
    result = execute(
        connection,
        "committed_batches",
        """SELECT seq, 'batch', rollout_id, first_rank, n, fence, crc, holes, superseded, NULL, plan_revision, committed_at
           FROM batch
           WHERE rollout_id = :rollout AND seq IS NOT NULL AND seq <= :seq ORDER BY seq""",
        rollout=rollout_id,
        seq=up_to_seq,
    )
    return [_entry(row) for row in result]


def _entry(row: Any) -> LogEntry:
    seq, kind, rollout, first_rank, n, fence, crc, holes, superseded, rows, plan_revision, at = row
    return LogEntry(
        seq,
        kind,
        rollout,
        first_rank,
        n,
        fence,
        crc,
        tuple(holes or ()),
        tuple(superseded or ()),
        tuple(rows or ()),
        plan_revision,
        at,
    )


def rows_healed(connection: Connection, gallery_id: int, up_to_seq: int) -> list[int]:
    """Rows of late ranks that a batch up to a place in the log leaves out: some may have been holes of it before."""
    result = execute(
        connection,
        "rows_healed",
        """SELECT DISTINCT l.row FROM rollout r JOIN batch b ON b.rollout_id = r.id
             CROSS JOIN LATERAL unnest(b.superseded) AS left_out (place)
             JOIN late_item l ON l.rollout_id = b.rollout_id AND l.rank = b.first_rank + left_out.place
           WHERE r.gallery_id = :gallery AND b.seq <= :seq AND b.first_rank >= r.plan_items""",
        gallery=gallery_id,
        seq=up_to_seq,
    )
    return [int(row) for (row,) in result]


def deleted_rows(connection: Connection, gallery_id: int, up_to_seq: int) -> list[int]:
    """Rows that were deleted up to a place in the log."""
    result = execute(
        connection,
        "deleted_rows",
        """SELECT unnest(rows) FROM log_event WHERE gallery_id = :gallery AND kind = 'deleted' AND seq <= :seq""",
        gallery=gallery_id,
        seq=up_to_seq,
    )
    return [int(row) for (row,) in result]


def last_seq(connection: Connection, gallery_id: int) -> int:
    """The newest sequence number of a gallery's log."""
    return int(
        execute(
            connection,
            "last_seq",
            "SELECT last_seq FROM gallery_log WHERE gallery_id = :gallery",
            gallery=gallery_id,
        ).scalar_one()
    )


def oldest_age_s(connection: Connection, gallery_id: int, seq: int) -> float:
    """Seconds since the first log entry behind `seq` was committed, by the database's clock; 0 where there is none."""
    return float(
        execute(
            connection,
            "oldest_age_s",
            """SELECT coalesce((
                 SELECT greatest(0, extract(epoch FROM clock_timestamp() - at)) FROM (
                   (SELECT b.seq, b.committed_at AS at FROM rollout r JOIN batch b ON b.rollout_id = r.id
                    WHERE r.gallery_id = :gallery AND b.seq > :seq ORDER BY b.seq LIMIT 1)
                   UNION ALL
                   (SELECT seq, at FROM log_event WHERE gallery_id = :gallery AND seq > :seq ORDER BY seq LIMIT 1)
                 ) AS waiting ORDER BY seq LIMIT 1), 0)""",
            gallery=gallery_id,
            seq=seq,
        ).scalar_one()
    )


def append_log_event(
    connection: Connection,
    gallery_id: int,
    rollout_id: int | None,
    kind: str,
    rows: Sequence[int] | None = None,
) -> int:
    """Draw the gallery's next sequence number, its log row locked to COMMIT, and write the event there."""
    return int(
        execute(
            connection,
            "append_log_event",
            """WITH log AS (UPDATE gallery_log SET last_seq = last_seq + 1 WHERE gallery_id = :gallery RETURNING last_seq)
               INSERT INTO log_event (gallery_id, seq, kind, rollout_id, rows)
               SELECT :gallery, last_seq, :kind, :rollout, CAST(:rows AS bigint[]) FROM log RETURNING seq""",
            gallery=gallery_id,
            kind=kind,
            rollout=rollout_id,
            rows=None if rows is None else list(rows),
        ).scalar_one()
    )


def deployed_seq(connection: Connection, rollout_id: int) -> int:
    """The place of a rollout's deployment in its gallery's log."""
    return int(
        execute(
            connection,
            "deployed_seq",
            "SELECT seq FROM log_event WHERE rollout_id = :id AND kind = 'deployed' ORDER BY seq LIMIT 1",
            id=rollout_id,
        ).scalar_one()
    )


def last_batch_seq(connection: Connection, rollout_id: int) -> int:
    """The place of a rollout's newest committed batch in the log; 0 where there is none."""
    return int(
        execute(
            connection,
            "last_batch_seq",
            "SELECT coalesce(max(seq), 0) FROM batch WHERE rollout_id = :id AND seq IS NOT NULL",
            id=rollout_id,
        ).scalar_one()
    )
