"""Counting again what roll-ups say: slow statements, for the sweeper and the doctor."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute


def count_batches(connection: Connection, rollout_id: int) -> dict[str, int]:
    """A rollout's counters as its batches say: column of `rollout` → value."""
    row = (
        execute(
            connection,
            "count_batches",
            """SELECT count(*) AS n_batches, count(*) FILTER (WHERE state = 'committed') AS committed_batches,
                      coalesce(sum(n - coalesce(cardinality(holes), 0)) FILTER (WHERE state = 'committed'), 0) AS committed_items,
                      coalesce(sum(cardinality(holes)) FILTER (WHERE state = 'committed'), 0) AS quarantined_items
               FROM batch WHERE rollout_id = :id""",
            id=rollout_id,
        )
        .mappings()
        .one()
    )
    return {name: int(value) for name, value in row.items()}


def correct(connection: Connection, rollout_id: int, counted: dict[str, int]) -> None:
    """Write counters of a rollout and of its bands as they were counted. The rollout must be locked."""
    execute(
        connection,
        "correct_rollout",
        """UPDATE rollout SET n_batches = :n_batches, committed_batches = :committed_batches,
                  committed_items = :committed_items, quarantined_items = :quarantined_items WHERE id = :id""",
        id=rollout_id,
        **counted,
    )
    execute(
        connection,
        "correct_bands",
        """WITH counted AS (SELECT band, count(*) AS batches, count(*) FILTER (WHERE state = 'committed') AS committed
                            FROM batch WHERE rollout_id = :id GROUP BY band)
           UPDATE band_progress p SET batches = c.batches, committed = c.committed FROM counted c
           WHERE p.rollout_id = :id AND p.band = c.band""",
        id=rollout_id,
    )


def ranks_not_covered(connection: Connection, rollout_id: int) -> int:
    """Ranks of a rollout with a plan that lie in no batch, or in two: 0 is right."""
    return int(
        execute(
            connection,
            "ranks_not_covered",
            """WITH placed AS (SELECT first_rank, n, coalesce(lag(first_rank + n) OVER (ORDER BY first_rank), 0) AS expected
                               FROM batch WHERE rollout_id = :id)
               SELECT coalesce(sum(abs(first_rank - expected)), 0)
                      + abs((SELECT n_items FROM rollout WHERE id = :id) - coalesce(max(first_rank + n), 0))
               FROM placed""",
            id=rollout_id,
        ).scalar_one()
    )


def planned_batches(connection: Connection, rollout_id: int, plan_items: int) -> list[tuple[int, int, int]]:
    """The plan's batches (first rank, n, the revision that gave them their rows), by rank."""
    result = execute(
        connection,
        "planned_batches",
        """SELECT first_rank, n, plan_revision FROM batch WHERE rollout_id = :id AND first_rank < :plan_items
           ORDER BY first_rank""",
        id=rollout_id,
        plan_items=plan_items,
    )
    return [(int(first), int(n), int(revision)) for first, n, revision in result]


def log_gaps(connection: Connection, gallery_id: int) -> int:
    """Places of a gallery's log that are missing or taken twice: 0 is right."""
    return int(
        execute(
            connection,
            "log_gaps",
            """WITH entry AS (
                   SELECT b.seq FROM batch b JOIN rollout r ON r.id = b.rollout_id WHERE r.gallery_id = :id AND b.seq IS NOT NULL
                   UNION ALL SELECT seq FROM log_event WHERE gallery_id = :id)
               SELECT abs((SELECT last_seq FROM gallery_log WHERE gallery_id = :id) - count(DISTINCT seq))
                      + count(*) - count(DISTINCT seq) FROM entry""",
            id=gallery_id,
        ).scalar_one()
    )


def serving_overlaps(connection: Connection, gallery_id: int) -> int:
    """Instants since the first serving row with no or several serving rows: 0 is right."""
    return int(
        execute(
            connection,
            "serving_overlaps",
            """SELECT count(*) FROM (SELECT valid_from, lag(valid_to) OVER (ORDER BY generation) AS ended,
                                            row_number() OVER (ORDER BY generation) AS at
                                     FROM serving WHERE gallery_id = :id) AS each
               WHERE at > 1 AND ended IS DISTINCT FROM valid_from""",
            id=gallery_id,
        ).scalar_one()
    )


def states_without_audit(connection: Connection) -> int:
    """Rollouts whose state is not the one that their newest audit row of a state tells: 0 is right."""
    return int(
        execute(
            connection,
            "states_without_audit",
            """SELECT count(*) FROM rollout r WHERE NOT EXISTS (
                   SELECT 1 FROM (SELECT action FROM audit a WHERE a.target = r.id::text AND a.action IN (
                              SELECT 'rollout.' || s FROM unnest(ARRAY['planned', 'deployed', 'backfilling', 'paused',
                              'finalizable', 'finalized', 'superseded', 'cancelling', 'cancelled', 'rolling_back',
                              'rolled_back', 'failed']) AS s)
                          ORDER BY a.id DESC LIMIT 1) AS newest
                   WHERE newest.action = 'rollout.' || r.state)""",
        ).scalar_one()
    )


def endless_leases(connection: Connection, rollout_id: int, lease_s: float) -> int:
    """Leases that reach further into the future than a lease is long: 0 is right."""
    return int(
        execute(
            connection,
            "endless_leases",
            """SELECT count(*) FROM batch WHERE rollout_id = :id AND state = 'leased'
               AND lease_until > clock_timestamp() + make_interval(secs => 2 * :lease_s + 60)""",
            id=rollout_id,
            lease_s=lease_s,
        ).scalar_one()
    )
