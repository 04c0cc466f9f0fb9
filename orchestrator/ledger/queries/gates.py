"""Statements of the gates' decisions."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute, fetch_all, fetch_one
from orchestrator.ledger.rows import GateDecisionRow


def now_there(connection: Connection) -> datetime:
    """The database's clock."""
    value: datetime = execute(connection, "now_there", "SELECT clock_timestamp()").scalar_one()
    return value


def newest_decision(
    connection: Connection, rollout_id: int, gate: str, query_set: str
) -> GateDecisionRow | None:
    """What a gate answered last about a query set; None before its first answer."""
    return fetch_one(
        connection,
        GateDecisionRow,
        "newest_decision",
        """SELECT id, gate, query_set, result, error, times, seq, dry_run, reason FROM gate_decision
           WHERE rollout_id = :rollout AND gate = :gate AND query_set = :query_set ORDER BY id DESC LIMIT 1""",
        rollout=rollout_id,
        gate=gate,
        query_set=query_set,
    )


def judged_until(connection: Connection, rollout_id: int, measures: list[str]) -> int:
    """The newest log entry that a gate of these measures has judged; 0 before the first."""
    return int(
        execute(
            connection,
            "judged_until",
            """SELECT coalesce(max(seq), 0) FROM gate_decision
               WHERE rollout_id = :rollout AND measure = ANY(CAST(:measures AS text[]))""",
            rollout=rollout_id,
            measures=measures,
        ).scalar_one()
    )


def newest_decisions(connection: Connection, rollout_id: int, gate: str) -> list[GateDecisionRow]:
    """What a gate answered last about each query set."""
    return fetch_all(
        connection,
        GateDecisionRow,
        "newest_decisions_of_gate",
        """SELECT DISTINCT ON (query_set) id, gate, query_set, result, error, times, seq, dry_run, reason FROM gate_decision
           WHERE rollout_id = :rollout AND gate = :gate ORDER BY query_set, id DESC""",
        rollout=rollout_id,
        gate=gate,
    )


def inconclusive_in_row(
    connection: Connection, rollout_id: int, gate: str, query_set: str
) -> tuple[int, int]:
    """Inconclusive answers since a gate last passed or failed on a query set: those by chance, and errors."""
    row = execute(
        connection,
        "inconclusive_in_row",
        """SELECT coalesce(sum(times) FILTER (WHERE NOT error), 0), coalesce(sum(times) FILTER (WHERE error), 0)
           FROM gate_decision WHERE rollout_id = :rollout AND gate = :gate AND query_set = :query_set
             AND id > (SELECT coalesce(max(id), 0) FROM gate_decision WHERE rollout_id = :rollout AND gate = :gate
                       AND query_set = :query_set AND result <> 'inconclusive')""",
        rollout=rollout_id,
        gate=gate,
        query_set=query_set,
    ).one()
    return int(row[0]), int(row[1])


def insert_decision(connection: Connection, **fields: Any) -> None:
    """A new answer; the fields are the table's columns."""
    execute(
        connection,
        "insert_decision",
        """INSERT INTO gate_decision (rollout_id, gate, query_set, measure, slice, k, result, value, "limit", sample_n,
                                      dry_run, effect, seq, reason, error)
           VALUES (:rollout_id, :gate, :query_set, :measure, :slice, :k, :result, :value, :limit, :sample_n,
                   :dry_run, :effect, :seq, :reason, :error)""",
        **fields,
    )


def repeat_decision(
    connection: Connection,
    decision_id: int,
    *,
    value: float | None,
    sample_n: int,
    effect: str,
    seq: int,
    reason: str,
) -> None:
    """The same answer once more, from newer numbers."""
    execute(
        connection,
        "repeat_decision",
        """UPDATE gate_decision SET value = :value, sample_n = :sample_n, effect = :effect, seq = :seq, reason = :reason,
                  times = times + 1, last_at = clock_timestamp() WHERE id = :id""",
        id=decision_id,
        value=value,
        sample_n=sample_n,
        effect=effect,
        seq=seq,
        reason=reason,
    )


def answers_shown(connection: Connection, rollout_ids: Sequence[int]) -> list[dict[str, Any]]:
    """The newest row of `gate_decisions` of each gate on each query set of these rollouts."""
    result = execute(
        connection,
        "answers_shown",
        """SELECT * FROM reporting.gate_decisions WHERE rollout = ANY(CAST(:ids AS bigint[])) AND newest
           ORDER BY rollout, gate, queryset""",
        ids=list(rollout_ids),
    )
    return [dict(row) for row in result.mappings()]
