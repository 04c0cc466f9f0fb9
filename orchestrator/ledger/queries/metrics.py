"""Statements of one scrape: each is bounded by what goes on now, not by what ever was."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection

from orchestrator.ledger.queries.rollouts import EFFECTIVE
from orchestrator.ledger.queries.run import execute

Row = dict[str, Any]


def rollouts_shown(connection: Connection, limit: int) -> list[Row]:
    """`rollout_status` of every rollout that goes on, and of each gallery's newest; newest first."""
    return _rows(
        connection,
        "rollouts_shown",
        """SELECT * FROM reporting.rollout_status WHERE id IN (
               SELECT id FROM rollout WHERE state NOT IN ('finalized', 'superseded', 'cancelled', 'rolled_back', 'failed')
               UNION SELECT max(id) FROM rollout GROUP BY gallery_id)
           ORDER BY id DESC LIMIT :limit""",
        limit=limit,
    )


def queues_shown(connection: Connection, rollout_ids: Sequence[int]) -> list[Row]:
    """`queue_status` of these rollouts."""
    return _rows(
        connection,
        "queues_shown",
        "SELECT * FROM reporting.queue_status WHERE rollout = ANY(CAST(:ids AS bigint[])) ORDER BY rollout, band",
        ids=list(rollout_ids),
    )


def flips_opened(connection: Connection, rollout_ids: Sequence[int]) -> list[Row]:
    """Flips at k = 1 against the old system that these rollouts have caused, healed ones too: gallery, queryset, kind, count."""
    return _rows(
        connection,
        "flips_opened",
        """SELECT g.name AS gallery, s.name AS queryset, f.kind, count(*) AS count
           FROM flip f JOIN query_set s ON s.id = f.query_set_id JOIN gallery g ON g.id = s.gallery_id
           WHERE f.rollout_id = ANY(CAST(:ids AS bigint[])) AND f.reference = 'old_system' AND f.k = 1
           GROUP BY 1, 2, 3 ORDER BY 1, 2, 3""",
        ids=list(rollout_ids),
    )


def newest_evaluations(connection: Connection, rollout_ids: Sequence[int]) -> list[Row]:
    """Where these rollouts stand at k = 1 on each of their gallery's query sets: gallery, queryset, n, negative_flips."""
    return _rows(
        connection,
        "newest_evaluations",
        """SELECT r.id AS rollout, g.name AS gallery, s.name AS queryset, e.n, e.negative_flips
           FROM rollout r JOIN gallery g ON g.id = r.gallery_id JOIN query_set s ON s.gallery_id = g.id
           CROSS JOIN LATERAL (SELECT n, negative_flips FROM evaluation
                               WHERE rollout_id = r.id AND query_set_id = s.id AND k = 1 AND slice = 'all'
                               ORDER BY seq DESC LIMIT 1) e
           WHERE r.id = ANY(CAST(:ids AS bigint[])) ORDER BY r.id DESC, s.id""",
        ids=list(rollout_ids),
    )


def newest_decisions(connection: Connection, rollout_ids: Sequence[int]) -> list[Row]:
    """The last decision of each gate on each query set of these rollouts: rollout, gate, queryset, result, value, limit."""
    return _rows(
        connection,
        "newest_decisions",
        """SELECT rollout, gate, queryset, result, value, "limit" FROM reporting.gate_decisions
           WHERE rollout = ANY(CAST(:ids AS bigint[])) AND newest AND NOT dry_run ORDER BY rollout, gate, queryset""",
        ids=list(rollout_ids),
    )


def lease_expiries(connection: Connection, rollout_ids: Sequence[int]) -> list[Row]:
    """How many leases of each of these rollouts ran out: rollout, leases; 0 where none did."""
    return _rows(
        connection,
        "lease_expiries",
        """SELECT r.id AS rollout, coalesce(e.leases, 0) AS leases FROM rollout r
           LEFT JOIN lease_expiry e ON e.rollout_id = r.id
           WHERE r.id = ANY(CAST(:ids AS bigint[])) ORDER BY r.id""",
        ids=list(rollout_ids),
    )


def rollback_windows(connection: Connection) -> list[Row]:
    """When rollback windows close, or closed: rollout, closes_at.

    Of each gallery's newest rollout that counts, where it is a finalized upgrade and the vectors from before are there.
    """
    return _rows(
        connection,
        "rollback_windows",
        """SELECT r.id AS rollout,
                  r.finished_at + make_interval(secs => (r.config ->> 'rollback_window_s')::double precision) AS closes_at
           FROM (SELECT DISTINCT ON (gallery_id) * FROM rollout WHERE state NOT IN ('cancelled', 'rolled_back', 'failed')
                 ORDER BY gallery_id, id DESC) r
           WHERE r.kind = 'upgrade' AND r.state = 'finalized'
             AND EXISTS (SELECT 1 FROM rollout o WHERE o.gallery_id = r.gallery_id AND o.id < r.id
                         AND o.reclaimed_at IS NULL AND o.state = ANY(:effective))
           ORDER BY r.id""",
        effective=list(EFFECTIVE),
    )


def log_ends(connection: Connection) -> dict[int, int]:
    """Gallery → the newest sequence number of its log."""
    result = execute(connection, "log_ends", "SELECT gallery_id, last_seq FROM gallery_log")
    return {int(gallery): int(seq) for gallery, seq in result}


def timings_after(connection: Connection, gallery_id: int, seq: int, limit: int) -> list[Row]:
    """Seconds by stage of the batches committed behind `seq`, in order of the log; null where none were taken.

    A commit's time is known when its row is written: the row of the worker's next commit has it.
    """
    return _rows(
        connection,
        "timings_after",
        """SELECT b.seq, b.decode_s AS decode, b.encode_s AS encode, b.store_s AS store,
                  b.previous_commit_s AS commit
           FROM rollout r JOIN batch b ON b.rollout_id = r.id
           WHERE r.gallery_id = :gallery AND b.seq > :seq ORDER BY b.seq LIMIT :limit""",
        gallery=gallery_id,
        seq=seq,
        limit=limit,
    )


def newest_churn(connection: Connection, rollout_ids: Sequence[int]) -> list[Row]:
    """How near these rollouts' answers are to the old system's on each query set: gallery, queryset, n, overlap, rbo."""
    return _rows(
        connection,
        "newest_churn",
        """SELECT c.* FROM rollout r JOIN query_set s ON s.gallery_id = r.gallery_id
           CROSS JOIN LATERAL (SELECT rollout, gallery, queryset, n, overlap, rbo FROM reporting.churn_summary
                               WHERE rollout = r.id AND queryset = s.name AND slice = 'all' ORDER BY seq DESC LIMIT 1) c
           WHERE r.id = ANY(CAST(:ids AS bigint[])) ORDER BY r.id DESC, s.id""",
        ids=list(rollout_ids),
    )


def newest_clicks(connection: Connection, rollout_ids: Sequence[int]) -> list[Row]:
    """Where these rollouts stand at k = 1 on each of their gallery's query sets of clicks: gallery, queryset, n, click_losses."""
    return _rows(
        connection,
        "newest_clicks",
        """SELECT c.* FROM rollout r JOIN query_set s ON s.gallery_id = r.gallery_id AND s.relevance = 'clicks'
           CROSS JOIN LATERAL (SELECT rollout, gallery, queryset, n, click_losses FROM reporting.click_summary
                               WHERE rollout = r.id AND queryset = s.name AND k = 1 AND slice = 'all'
                               ORDER BY seq DESC LIMIT 1) c
           WHERE r.id = ANY(CAST(:ids AS bigint[])) ORDER BY r.id DESC, s.id""",
        ids=list(rollout_ids),
    )


def _rows(connection: Connection, name: str, sql: str, **values: Any) -> list[Row]:
    return [dict(row) for row in execute(connection, name, sql, **values).mappings()]
