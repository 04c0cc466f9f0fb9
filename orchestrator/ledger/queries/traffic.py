"""Statements about shadow and canary: how a rollout's traffic is divided, and what both systems answered."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from orchestrator.core.traffic import WHOLE, Split
from orchestrator.ledger.queries.run import execute, execute_many, fetch_one


@dataclass(frozen=True)
class ShadowCounts:
    """What to add to a stage's roll-up; see the table `shadow_count`."""

    stage: int
    n: int
    shared: tuple[int, ...]
    labelled: int
    both_right: int
    negative_flips: int
    positive_flips: int
    both_wrong: int
    dropped: int
    failed: int
    last_seq: int


@dataclass(frozen=True)
class ShadowSample:
    """A query that the two systems answered differently. `content`: what was asked, where a setting keeps it."""

    at: datetime
    served: str
    seq: int
    coverage: float
    old_rows: tuple[int, ...]
    old_scores: tuple[float, ...]
    new_rows: tuple[int, ...]
    new_scores: tuple[float, ...]
    content: str | None


def split_of(connection: Connection, rollout_id: int) -> Split | None:
    """How a rollout's traffic is divided now; None: nothing was ever said, the new system answers everything."""
    return fetch_one(
        connection,
        Split,
        "split_of",
        "SELECT canary, shadow FROM traffic_change WHERE rollout_id = :id ORDER BY revision DESC LIMIT 1",
        id=rollout_id,
    )


def canary_under_way(connection: Connection, rollout_id: int) -> Split | None:
    """A rollout's division while its canary is not over; None otherwise."""
    split = split_of(connection, rollout_id) or WHOLE
    return None if split.over else split


def add_change(connection: Connection, rollout_id: int, split: Split, actor: str) -> int:
    """From now on the traffic is divided so; the rollout's row is locked. Returns the revision."""
    return int(
        execute(
            connection,
            "add_traffic_change",
            """INSERT INTO traffic_change (rollout_id, revision, canary, shadow, actor)
               SELECT :id, coalesce(max(revision), 0) + 1, :canary, :shadow, :actor FROM traffic_change
               WHERE rollout_id = :id RETURNING revision""",
            id=rollout_id,
            canary=split.canary,
            shadow=split.shadow,
            actor=actor,
        ).scalar_one()
    )


def add_shadow(connection: Connection, rollout_id: int, counts: Iterable[ShadowCounts]) -> None:
    """Add to the roll-ups; several servers may do so at once. A rollout that is gone takes none."""
    execute_many(
        connection,
        "add_shadow",
        """INSERT INTO shadow_count AS c (rollout_id, stage, n, shared, labelled, both_right, negative_flips, positive_flips,
                                          both_wrong, dropped, failed, last_seq)
           SELECT r.id, :stage, :n, CAST(:shared AS bigint[]), :labelled, :both_right, :negative_flips, :positive_flips,
                  :both_wrong, :dropped, :failed, :last_seq FROM rollout r WHERE r.id = :rollout
           ON CONFLICT (rollout_id, stage) DO UPDATE SET
             n = c.n + excluded.n,
             shared = (SELECT array_agg(a + b ORDER BY d)
                       FROM unnest(c.shared, excluded.shared) WITH ORDINALITY AS sums (a, b, d)),
             labelled = c.labelled + excluded.labelled, both_right = c.both_right + excluded.both_right,
             negative_flips = c.negative_flips + excluded.negative_flips,
             positive_flips = c.positive_flips + excluded.positive_flips, both_wrong = c.both_wrong + excluded.both_wrong,
             dropped = c.dropped + excluded.dropped, failed = c.failed + excluded.failed,
             last_seq = greatest(c.last_seq, excluded.last_seq), last_at = clock_timestamp()""",
        [
            {"rollout": rollout_id, **vars(each), "shared": list(each.shared)}
            for each in sorted(
                counts, key=lambda each: each.stage
            )  # one order: two servers never wait in a circle
        ],
    )


def add_samples(connection: Connection, rollout_id: int, samples: Sequence[ShadowSample], most: int) -> None:
    """Keep the `most` newest samples of a rollout."""
    execute_many(
        connection,
        "add_shadow_samples",
        """INSERT INTO shadow_sample (rollout_id, at, served, seq, coverage, old_rows, old_scores, new_rows, new_scores, content)
           SELECT r.id, :at, :served, :seq, :coverage, CAST(:old_rows AS bigint[]), CAST(:old_scores AS real[]),
                  CAST(:new_rows AS bigint[]), CAST(:new_scores AS real[]), :content FROM rollout r WHERE r.id = :rollout""",
        [
            {
                "rollout": rollout_id,
                **{name: list(v) if isinstance(v, tuple) else v for name, v in vars(each).items()},
            }
            for each in samples
        ],
    )
    execute(
        connection,
        "drop_old_shadow_samples",
        """DELETE FROM shadow_sample WHERE rollout_id = :rollout AND id <
             (SELECT min(id) FROM (SELECT id FROM shadow_sample WHERE rollout_id = :rollout
                                   ORDER BY id DESC LIMIT :most) AS newest)""",
        rollout=rollout_id,
        most=most,
    )
