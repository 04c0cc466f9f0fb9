"""Statements of churn, and of clicks as weak relevance."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute_many, fetch_one
from orchestrator.ledger.rows import ChurnRow


def insert_churn(
    connection: Connection, rollout_id: int, query_set_id: int, rows: Sequence[ChurnRow]
) -> None:
    """Store the churn after one log entry; what another evaluator already stored stays."""
    execute_many(
        connection,
        "insert_churn",
        """INSERT INTO churn (rollout_id, query_set_id, seq, items, slice, point, n, shared, p)
           VALUES (:rollout, :query_set, :seq, :items, :slice, :point, :n, CAST(:shared AS bigint[]), :p)
           ON CONFLICT DO NOTHING""",
        [
            {"rollout": rollout_id, "query_set": query_set_id, **vars(row), "shared": list(row.shared)}
            for row in rows
        ],
    )


def newest_churn(connection: Connection, rollout_id: int, query_set_id: int, slice_: str) -> ChurnRow | None:
    """The newest churn of a slice; it stands as long as there is no newer one. None where it is not measured."""
    return fetch_one(
        connection,
        ChurnRow,
        "newest_churn",
        """SELECT seq, items, slice, point, n, shared, p FROM churn
           WHERE rollout_id = :rollout AND query_set_id = :query_set AND slice = :slice ORDER BY seq DESC LIMIT 1""",
        rollout=rollout_id,
        query_set=query_set_id,
        slice=slice_,
    )
