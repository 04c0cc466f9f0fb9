"""Statements of the flip ledger: evaluations, flips, curves. Clicks have tables of their own, of the same shape."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, execute_many, fetch_one
from orchestrator.ledger.rows import EvaluationRow

WHOLE = "all"
"""The slice of all queries of a set."""


@dataclass(frozen=True)
class Tables:
    """Where the counts of a query set are kept, and the queries that turned."""

    evaluation: str
    flip: str


FLIPS = Tables("evaluation", "flip")
CLICKS = Tables("click_evaluation", "click_change")
"""Of relevance by clicks. Kept apart: whoever reads flips cannot take these for such."""


def insert_evaluations(
    connection: Connection,
    rollout_id: int,
    query_set_id: int,
    rows: Sequence[EvaluationRow],
    into: Tables = FLIPS,
) -> None:
    """Store the counts after one log entry; those that another evaluator already stored stay."""
    execute_many(
        connection,
        "insert_evaluations",
        f"""INSERT INTO {into.evaluation} (rollout_id, query_set_id, seq, items, k, slice, point, n, both_right, negative_flips,
                                   positive_flips, both_wrong, previous_negative_flips, previous_positive_flips)
           VALUES (:rollout, :query_set, :seq, :items, :k, :slice, :point, :n, :both_right, :negative_flips,
                   :positive_flips, :both_wrong, :previous_negative_flips, :previous_positive_flips)
           ON CONFLICT DO NOTHING""",  # noqa: S608
        [{"rollout": rollout_id, "query_set": query_set_id, **vars(row)} for row in rows],
    )


def is_evaluated(
    connection: Connection, rollout_id: int, query_set_id: int, k: int, seq: int, into: Tables = FLIPS
) -> bool:
    """Whether the counts after this log entry are stored."""
    return bool(
        execute(
            connection,
            "is_evaluated",
            f"""SELECT EXISTS (SELECT 1 FROM {into.evaluation} WHERE rollout_id = :rollout AND query_set_id = :query_set
                              AND k = :k AND slice = :whole AND seq = :seq)""",  # noqa: S608
            rollout=rollout_id,
            query_set=query_set_id,
            k=k,
            whole=WHOLE,
            seq=seq,
        ).scalar_one()
    )


def last_evaluated(connection: Connection, rollout_id: int, query_set_id: int) -> int | None:
    """The newest log entry with stored counts, or churn where nothing is counted; None before the first."""
    value = execute(
        connection,
        "last_evaluated",
        """SELECT greatest((SELECT max(seq) FROM evaluation WHERE rollout_id = :rollout AND query_set_id = :query_set),
                           (SELECT max(seq) FROM churn
                            WHERE rollout_id = :rollout AND query_set_id = :query_set AND slice = :whole))""",
        rollout=rollout_id,
        query_set=query_set_id,
        whole=WHOLE,
    ).scalar_one()
    return None if value is None else int(value)


def newest_evaluation(
    connection: Connection, rollout_id: int, query_set_id: int, k: int, slice_: str, of: Tables = FLIPS
) -> EvaluationRow | None:
    """The newest counts of a slice; they stand as long as there are no newer ones. None where it is not counted."""
    return fetch_one(
        connection,
        EvaluationRow,
        "newest_evaluation",
        f"""SELECT seq, items, k, slice, point, n, both_right, negative_flips, positive_flips, both_wrong,
                  previous_negative_flips, previous_positive_flips FROM {of.evaluation}
           WHERE rollout_id = :rollout AND query_set_id = :query_set AND k = :k AND slice = :slice
           ORDER BY seq DESC LIMIT 1""",  # noqa: S608
        rollout=rollout_id,
        query_set=query_set_id,
        k=k,
        slice=slice_,
    )


def insert_flips(connection: Connection, flips: Sequence[Mapping[str, Any]], into: Tables = FLIPS) -> None:
    """Open flips; each has the fields of the table."""
    execute_many(
        connection,
        "insert_flips",
        f"""INSERT INTO {into.flip} (rollout_id, query_set_id, query_no, kind, reference, k, opened_seq,
                             old_row, new_row, old_score, new_score, cause)
           VALUES (:rollout_id, :query_set_id, :query_no, :kind, :reference, :k, :opened_seq,
                   :old_row, :new_row, :old_score, :new_score, :cause)
           ON CONFLICT DO NOTHING""",  # noqa: S608
        flips,
    )


def heal_flips(
    connection: Connection,
    rollout_id: int,
    query_set_id: int,
    reference: str,
    k: int,
    query_nos: Sequence[int],
    seq: int,
    into: Tables = FLIPS,
) -> int:
    """Mark the open flips of these queries as healed by one log entry."""
    return execute(
        connection,
        "heal_flips",
        f"""UPDATE {into.flip} SET healed_seq = :seq, healed_at = clock_timestamp()
           WHERE rollout_id = :rollout AND query_set_id = :query_set AND reference = :reference AND k = :k
             AND healed_seq IS NULL AND opened_seq < :seq AND query_no = ANY(CAST(:queries AS integer[]))""",  # noqa: S608
        rollout=rollout_id,
        query_set=query_set_id,
        reference=reference,
        k=k,
        queries=list(map(int, query_nos)),
        seq=seq,
    ).rowcount


def settle_cause(
    connection: Connection,
    rollout_id: int,
    query_set_id: int,
    k: int,
    query_nos: Sequence[int],
    cause: str,
    into: Tables = FLIPS,
) -> None:
    """Mark the open negative flips of these queries as the new model's (`model`), or the codec's (`quantisation`)."""
    execute(
        connection,
        "settle_cause",
        f"""UPDATE {into.flip} SET cause = :cause
           WHERE rollout_id = :rollout AND query_set_id = :query_set AND k = :k AND kind = 'negative'
             AND healed_seq IS NULL AND query_no = ANY(CAST(:queries AS integer[]))""",  # noqa: S608
        cause=cause,
        rollout=rollout_id,
        query_set=query_set_id,
        k=k,
        queries=list(map(int, query_nos)),
    )


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
