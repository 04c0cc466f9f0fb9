"""Statements of the flip ledger: evaluations, flips, curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, execute_many, fetch_all
from orchestrator.ledger.rows import EvaluationRow


def insert_evaluation(connection: Connection, rollout_id: int, query_set_id: int, row: EvaluationRow) -> bool:
    """Store the counts after one log entry; False where another evaluator already did."""
    return (
        execute(
            connection,
            "insert_evaluation",
            """INSERT INTO evaluation (rollout_id, query_set_id, seq, items, k, n, both_right, negative_flips,
                                       positive_flips, both_wrong, previous_negative_flips, previous_positive_flips)
               VALUES (:rollout, :query_set, :seq, :items, :k, :n, :both_right, :negative_flips,
                       :positive_flips, :both_wrong, :previous_negative_flips, :previous_positive_flips)
               ON CONFLICT DO NOTHING""",
            rollout=rollout_id,
            query_set=query_set_id,
            **vars(row),
        ).rowcount
        == 1
    )


def evaluations(connection: Connection, rollout_id: int, query_set_id: int) -> list[EvaluationRow]:
    """The stored counts in log order."""
    return fetch_all(
        connection,
        EvaluationRow,
        "evaluations",
        """SELECT seq, items, k, n, both_right, negative_flips, positive_flips, both_wrong,
                  previous_negative_flips, previous_positive_flips
           FROM evaluation WHERE rollout_id = :rollout AND query_set_id = :query_set ORDER BY seq""",
        rollout=rollout_id,
        query_set=query_set_id,
    )


def last_evaluated(connection: Connection, rollout_id: int, query_set_id: int) -> int | None:
    """The newest log entry with stored counts; None before the first."""
    value = execute(
        connection,
        "last_evaluated",
        "SELECT max(seq) FROM evaluation WHERE rollout_id = :rollout AND query_set_id = :query_set",
        rollout=rollout_id,
        query_set=query_set_id,
    ).scalar_one()
    return None if value is None else int(value)


def insert_flips(connection: Connection, flips: Sequence[Mapping[str, Any]]) -> None:
    """Open flips; each has the fields of the table."""
    execute_many(
        connection,
        "insert_flips",
        """INSERT INTO flip (rollout_id, query_set_id, query_no, kind, reference, opened_seq,
                             old_row, new_row, old_score, new_score)
           VALUES (:rollout_id, :query_set_id, :query_no, :kind, :reference, :opened_seq,
                   :old_row, :new_row, :old_score, :new_score)
           ON CONFLICT DO NOTHING""",
        flips,
    )


def heal_flips(
    connection: Connection,
    rollout_id: int,
    query_set_id: int,
    reference: str,
    query_nos: Sequence[int],
    seq: int,
) -> int:
    """Mark the open flips of these queries as healed by one log entry."""
    return execute(
        connection,
        "heal_flips",
        """UPDATE flip SET healed_seq = :seq, healed_at = clock_timestamp()
           WHERE rollout_id = :rollout AND query_set_id = :query_set AND reference = :reference
             AND healed_seq IS NULL AND opened_seq < :seq AND query_no = ANY(CAST(:queries AS integer[]))""",
        rollout=rollout_id,
        query_set=query_set_id,
        reference=reference,
        queries=list(map(int, query_nos)),
        seq=seq,
    ).rowcount


def insert_curve_points(
    connection: Connection, rollout_id: int, points: Sequence[tuple[str, str, float, float]]
) -> None:
    """Store curve points (metric, order, coverage, value); a repeat overwrites."""
    execute_many(
        connection,
        "insert_curve_points",
        """INSERT INTO curve_point (rollout_id, metric, order_name, coverage, value)
           VALUES (:rollout, :metric, :order_name, :coverage, :value)
           ON CONFLICT (rollout_id, metric, order_name, coverage) DO UPDATE SET value = excluded.value""",
        [
            {
                "rollout": rollout_id,
                "metric": metric,
                "order_name": order,
                "coverage": coverage,
                "value": value,
            }
            for metric, order, coverage, value in points
        ],
    )
