"""The verbs of a running rollout. Each decides by the table in `core.states`, in one transaction with its audit row.

Pause, cancel and rollback have two phases. Asked: the generation is bumped, and with that commit nothing older lands any
more. Acknowledged: no worker holds a batch, by itself (it notices within a second), because its lease ended, or because the
operator forced it.
"""

from __future__ import annotations

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.states import IllegalTransition, RolloutState, Verb, next_state
from orchestrator.errors import ConflictError, NotFoundError
from orchestrator.failpoints import reach
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import items as item_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.service.names import find_rollout
from orchestrator.service.wakeups import relay, request_wakeup

# After these nothing that was claimed before may be committed.
_FENCING = frozenset({Verb.PAUSE, Verb.CANCEL, Verb.ROLLBACK, Verb.FAIL, Verb.SUPERSEDE})


def reread(context: Context, rollout_id: int) -> RolloutRow:
    """The rollout as it stands now."""
    with transaction(context.engine) as connection:
        row = rollout_queries.rollout_by_id(connection, rollout_id)
    assert row is not None
    return row


def move(
    connection: Connection, rollout: RolloutRow, verb: Verb, *, actor: str, reason: str | None = None
) -> RolloutState:
    """One step of the state table on a locked rollout, with its audit row.

    Raises:
        ConflictError: the table has no such edge.
    """
    try:
        state = next_state(RolloutState(rollout.state), verb)
    except IllegalTransition as error:
        raise ConflictError(
            f"rollout {rollout.id} is {rollout.state}: {verb.value} is not possible. "
            f"Possible now: {', '.join(v.value for v in error.legal) or 'nothing, it is over'}."
        ) from None
    rollout_queries.set_state(
        connection, rollout.id, state.value, reason=reason, bump_generation=verb in _FENCING
    )
    reach("in_state_change")
    rollout_queries.write_audit(
        connection,
        actor=actor,
        action=f"rollout.{state.value}",
        target=str(rollout.id),
        before={"state": rollout.state},
        after={"state": state.value, "reason": reason},
    )
    return state


def locked(connection: Connection, name: str | int) -> RolloutRow:
    """A rollout by name or id, locked until the transaction ends."""
    rollout_id = name if isinstance(name, int) else find_rollout(connection, name).id
    row = rollout_queries.lock_rollout(connection, rollout_id)
    if row is None:
        raise NotFoundError(f"there is no rollout {name}.")
    return row


def pause(context: Context, name: str | int, reason: str | None = None, *, force: bool = False) -> RolloutRow:
    """No batch claimed before this returns can commit after it. Pausing what is paused is done already.

    Args:
        force: take leased batches back at once, without waiting for their workers to let go.
    """
    with transaction(context.engine) as connection:
        row = locked(connection, name)
        if row.state != RolloutState.PAUSED:
            move(
                connection, row, Verb.PAUSE, actor=context.actor, reason=reason or f"asked by {context.actor}"
            )
        if force:
            batch_queries.release_leases(connection, row.id)
    return reread(context, row.id)


def resume(context: Context, name: str | int) -> RolloutRow:
    """Go on after a pause; the failure budget counts from here."""
    with transaction(context.engine) as connection:
        row = locked(connection, name)
        if row.state not in (RolloutState.BACKFILLING, RolloutState.DEPLOYED, RolloutState.PLANNED):
            move(connection, row, Verb.RESUME, actor=context.actor)
            rollout_queries.forgive(connection, row.id)
        request_wakeup(connection, "drain" if row.n_batches else "plan", row.id)
    relay(context)
    return reread(context, row.id)


def cancel(
    context: Context, name: str | int, reason: str | None = None, *, force: bool = False
) -> RolloutRow:
    """Stop for good and serve what was served before, the old model with the old vectors."""
    return _leave(context, name, Verb.CANCEL, reason, force=force)


def rollback(
    context: Context, name: str | int, reason: str | None = None, *, force: bool = False
) -> RolloutRow:
    """Restore the old model and the old vectors; possible until the window after finalize closes."""
    return _leave(context, name, Verb.ROLLBACK, reason, force=force)


_ASKED = {Verb.CANCEL: RolloutState.CANCELLING, Verb.ROLLBACK: RolloutState.ROLLING_BACK}
_OVER = {Verb.CANCEL: RolloutState.CANCELLED, Verb.ROLLBACK: RolloutState.ROLLED_BACK}


def _leave(context: Context, name: str | int, verb: Verb, reason: str | None, *, force: bool) -> RolloutRow:
    with transaction(context.engine) as connection:
        row = locked(connection, name)
        take_back(connection, row, verb, context.actor, reason, force=force)
    relay(context)
    return reread(context, row.id)


def take_back(
    connection: Connection,
    row: RolloutRow,
    verb: Verb,
    actor: str,
    reason: str | None,
    *,
    force: bool = False,
) -> None:
    """Cancel or roll back a locked rollout: the older model and vectors serve as soon as the transaction ends."""
    if row.state not in (_ASKED[verb], _OVER[verb]):
        if verb is Verb.ROLLBACK:
            _check_rollback(connection, row)
        move(connection, row, verb, actor=actor, reason=reason)
        _restore(connection, row, actor, "cancelled" if verb is Verb.CANCEL else "rolled back")
    if force:
        batch_queries.release_leases(connection, row.id)
    _acknowledge(connection, row.id, actor)


def acknowledge(context: Context, rollout_id: int) -> RolloutRow:
    """End a cancel or a rollback that was asked for, once no worker holds a batch of the rollout."""
    with transaction(context.engine) as connection:
        _acknowledge(connection, rollout_id, context.actor)
    return reread(context, rollout_id)


def _acknowledge(connection: Connection, rollout_id: int, actor: str) -> None:
    row = locked(connection, rollout_id)
    batch_queries.release_leases(connection, row.id, expired_only=True)
    if row.state not in _ASKED.values() or batch_queries.count_leased(connection, row.id):
        return
    cancelling = row.state == RolloutState.CANCELLING
    verb = Verb.ACKNOWLEDGE_CANCEL if cancelling else Verb.ACKNOWLEDGE_ROLLBACK
    move(connection, row, verb, actor=actor, reason=row.reason)
    older = _predecessor(connection, row)
    if older is not None and older.state == RolloutState.SUPERSEDED:
        move(
            connection,
            locked(connection, older.id),
            Verb.REINSTATE,
            actor=actor,
            reason=f"rollout {row.id} was taken back; resume to go on re-embedding",
        )


def _check_rollback(connection: Connection, row: RolloutRow) -> None:
    if row.kind == "initial":
        raise ConflictError(
            f"rollout {row.id} is the gallery's first embedding; there is nothing to go back to."
        )
    latest = rollout_queries.latest_rollout(connection, row.gallery_id)
    if (
        latest is not None
        and latest.id != row.id
        and latest.state not in ("cancelled", "rolled_back", "failed")
    ):
        raise ConflictError(f"rollout {latest.id} came after rollout {row.id}; roll that one back first.")
    if row.finished_at is None:
        return
    if not rollout_queries.finished_within(connection, row.id, float(row.config["rollback_window_s"])):
        raise ConflictError(
            f"the rollback window of rollout {row.id} is closed: it was finalized at "
            f"{row.finished_at.isoformat(timespec='seconds')} with {row.config['rollback_window_s']:.0f} s to go back."
        )
    if _predecessor(connection, row) is None:
        raise ConflictError(f"the vectors from before rollout {row.id} were reclaimed; it cannot go back.")


def _predecessor(connection: Connection, row: RolloutRow) -> RolloutRow | None:
    older = [r for r in rollout_queries.effective_rollouts(connection, row.gallery_id) if r.id < row.id]
    return older[-1] if older else None


def _restore(connection: Connection, rollout: RolloutRow, actor: str, why: str) -> None:
    """Serve what was served before this rollout: a pointer move, the old extents were never touched.

    Items that came or changed while it served are embedded by the older model too, as late items of the older rollout.
    """
    log_queries.append_log_event(connection, rollout.gallery_id, rollout.id, "reset")
    serving = rollout_queries.serving_now(connection, rollout.gallery_id)
    if serving is None or serving.rollout_id != rollout.id:
        return  # it never came to serve
    older = _predecessor(connection, rollout)
    assert rollout.from_model_id is not None, "an upgrade has a model to go back to"
    assert older is not None, "an upgrade that serves has a predecessor"
    rollout_queries.flip_serving(
        connection,
        rollout.gallery_id,
        rollout.from_model_id,
        older.id,
        actor=actor,
        reason=f"rollout {rollout.id} {why}",
    )
    rows = item_queries.late_rows_alive(connection, rollout.id)
    holder = rollout_queries.newest_holder(connection, rollout.gallery_id, before=rollout.id)
    if rows and holder is not None:
        holder = locked(connection, holder.id)
        item_queries.supersede_rows(connection, holder.id, rows)
        item_queries.add_late(connection, holder, rows)
        request_wakeup(connection, "drain", holder.id)
