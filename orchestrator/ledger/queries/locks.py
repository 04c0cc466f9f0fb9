"""Advisory locks: one mover and one evaluator a rollout. They end with their connection, so with their process."""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.ledger.queries.run import execute

_MOVER, _EVALUATOR = 72_618, 72_619


def try_lock_rollout(connection: Connection, rollout_id: int) -> bool:
    """Take the right to move a rollout; False: somebody has it."""
    return _try(connection, _MOVER, rollout_id)


def unlock_rollout(connection: Connection, rollout_id: int) -> None:
    """Give it back."""
    _unlock(connection, _MOVER, rollout_id)


def try_lock_evaluator(connection: Connection, rollout_id: int) -> bool:
    """Take the right to evaluate a rollout; False: somebody has it."""
    return _try(connection, _EVALUATOR, rollout_id)


def unlock_evaluator(connection: Connection, rollout_id: int) -> None:
    """Give it back."""
    _unlock(connection, _EVALUATOR, rollout_id)


def _try(connection: Connection, kind: int, rollout_id: int) -> bool:
    return bool(
        execute(
            connection,
            "try_lock",
            "SELECT pg_try_advisory_lock(CAST(:kind AS integer), CAST(:id AS integer))",
            kind=kind,
            id=rollout_id % 2**31,
        ).scalar_one()
    )


def _unlock(connection: Connection, kind: int, rollout_id: int) -> None:
    execute(
        connection,
        "unlock",
        "SELECT pg_advisory_unlock(CAST(:kind AS integer), CAST(:id AS integer))",
        kind=kind,
        id=rollout_id % 2**31,
    )
