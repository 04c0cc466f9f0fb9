"""The verbs of a rollout. Each decides by the table in `core.states`, in one transaction with its audit row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.states import ACTIVE, IllegalTransition, RolloutState, Verb, next_state
from orchestrator.errors import (
    ConflictError,
    InconclusiveError,
    NotCertifiedError,
    NotFoundError,
    UnreachableError,
    UsageError,
)
from orchestrator.failpoints import reach
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import AdapterRow, CertificateRow, GalleryRow, ModelRow, RolloutRow
from orchestrator.service.names import find_adapter, find_gallery, find_model, find_rollout
from orchestrator.store.extents import new_folder

ROLLBACK_WINDOW = timedelta(days=7)


@dataclass(frozen=True)
class StartRequest:
    """What `plan` shows and `start` does.

    Attributes:
        order: name of a backfill order (`core.orders`).
        prototypes: auto, head (the new model's), classes (means by label) or clusters (k-means).
        temperature: of the softmax over prototypes.
    """

    gallery: str
    to_model: str
    adapter: str | None = None
    order: str = "entropy"
    batch_size: int | None = None
    prototypes: str = "auto"
    temperature: float = 0.05
    seed: int = 0
    lease_s: float | None = None


@dataclass(frozen=True)
class Checked:
    """A request with everything it names found and allowed."""

    gallery: GalleryRow
    old: ModelRow
    new: ModelRow
    adapter: AdapterRow | None
    certificate: CertificateRow
    batch_size: int
    config: dict[str, Any]


def check_start(context: Context, connection: Connection, request: StartRequest) -> Checked:
    """Everything that can be said against a start, before anything is written.

    Raises:
        NotFoundError, ConflictError: a name, or the gallery's state.
        NotCertifiedError: the pair of models was never measured, or was refused.
        InconclusiveError: it was measured on too little.
    """
    gallery = find_gallery(connection, request.gallery)
    new = find_model(connection, request.to_model)
    serving = rollout_queries.serving_now(connection, gallery.id)
    if serving is None:
        raise ConflictError(
            f"gallery {gallery.name!r} has no embeddings yet; run `hotrefresh gallery embed {gallery.name} --model NAME`."
        )
    latest = rollout_queries.latest_rollout(connection, gallery.id)
    if latest is not None and RolloutState(latest.state) in ACTIVE:
        raise _already_active(gallery, latest)
    old = model_queries.model_by_id(connection, serving.model_id)
    if new.id == old.id:
        raise ConflictError(f"gallery {gallery.name!r} already serves {new.name!r}; there is nothing to do.")
    if new.modality != gallery.modality:
        raise ConflictError(
            f"{new.name!r} embeds {new.modality}s, gallery {gallery.name!r} holds {gallery.modality}s."
        )
    adapter = find_adapter(connection, request.adapter) if request.adapter else None
    if adapter and (adapter.source_model_id, adapter.target_model_id) != (old.id, new.id):
        raise ConflictError(f"adapter {adapter.name!r} does not lead from {old.name!r} to {new.name!r}.")
    if adapter is None and new.dim != old.dim:
        raise NotCertifiedError(
            f"{new.name!r} has {new.dim} dimensions, the stored embeddings of {old.name!r} have {old.dim}: they cannot be "
            f"mixed without an adapter. Fit one with `hotrefresh model adapt {old.name} {new.name} --gallery {gallery.name}`."
        )
    certificate = require_certificate(connection, gallery, new, old, adapter)
    _check_order(request.order)
    config = {
        "prototypes": request.prototypes,
        "temperature": request.temperature,
        "seed": request.seed,
        "lease_s": request.lease_s or context.settings.lease_s,
        "rollback_window_s": ROLLBACK_WINDOW.total_seconds(),
    }
    return Checked(
        gallery, old, new, adapter, certificate, request.batch_size or context.settings.batch_size, config
    )


def _check_order(name: str) -> None:
    from orchestrator.core.orders import ORDERS

    if name not in ORDERS:
        raise UsageError(f"there is no order {name!r}; there are {', '.join(sorted(ORDERS))}.")


def require_certificate(
    connection: Connection, gallery: GalleryRow, new: ModelRow, old: ModelRow, adapter: AdapterRow | None
) -> CertificateRow:
    """The newest certificate of the pair, if it allows mixing."""
    through = f" --adapter {adapter.name}" if adapter else ""
    certificate = model_queries.newest_certificate(
        connection, gallery.id, new.id, old.id, adapter.id if adapter else None
    )
    if certificate is None:
        raise NotCertifiedError(
            f"{new.name!r} was never measured against the stored embeddings of {old.name!r}: same dimension is not same "
            f"space. Run `hotrefresh model certify {old.name} {new.name} --gallery {gallery.name}{through}` first."
        )
    if certificate.verdict == "inconclusive":
        raise InconclusiveError(
            f"the certificate of {new.name!r} against {old.name!r} is inconclusive: {certificate.reason.rstrip('.')}. "
            "Import a larger query set and certify again."
        )
    if certificate.verdict != "certified":
        raise NotCertifiedError(
            f"{new.name!r} against the stored embeddings of {old.name!r} was refused: {certificate.reason.rstrip('.')}. "
            + (
                "Train it compatibly, or lift the gallery with a forward adapter (`hotrefresh model adapt`)."
                if not adapter
                else "Fit a better adapter, or train the model compatibly."
            )
        )
    return certificate


def _already_active(gallery: GalleryRow, latest: RolloutRow) -> ConflictError:
    return ConflictError(
        f"gallery {gallery.name!r} has rollout {latest.id} in state {latest.state}; one at a time. "
        f"Look with `hotrefresh rollout status {latest.id}`; finalize, cancel or roll it back first."
    )


def start(
    context: Context, request: StartRequest, progress: Callable[[int, int], None] | None = None
) -> RolloutRow:
    """Check, create the rollout, adapt the gallery where there is an adapter, and flip serving to the new model.

    When this returns, every replica answers with the new model as soon as it has read the log. Planning and
    re-embedding are the workers'. Interrupted at any moment, the ledger says how far it came and a worker goes on.
    """
    with transaction(context.engine) as connection:
        checked = check_start(context, connection, request)
        folder = new_folder(context.settings.extents, checked.gallery.id)
        reach("before_insert")
        rollout_id = rollout_queries.insert_rollout(
            connection,
            gallery_id=checked.gallery.id,
            kind="upgrade",
            from_model_id=checked.old.id,
            to_model_id=checked.new.id,
            adapter_id=checked.adapter.id if checked.adapter else None,
            certificate_id=checked.certificate.id,
            order_name=request.order,
            config=checked.config,
            batch_size=checked.batch_size,
            n_items=checked.gallery.n_items,
            extent_uri=str(folder),
            actor=context.actor,
        )
        if rollout_id is None:
            latest = rollout_queries.latest_rollout(connection, checked.gallery.id)
            assert latest is not None
            raise _already_active(checked.gallery, latest)
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action="rollout.planned",
            target=str(rollout_id),
            after={
                "gallery": checked.gallery.name,
                "from": checked.old.name,
                "to": checked.new.name,
                "order": request.order,
            },
        )
    from orchestrator.service.advance import deploy

    reach("inserted")
    deploy(context, rollout_id, progress)
    wake(context, "advance", rollout_id)
    return reread(context, rollout_id)


def wake(context: Context, task: str, rollout_id: int) -> bool:
    """Ring the workers; False where the broker is away: the work is in the ledger, their own look-out finds it."""
    try:
        context.broker.ring(task, "control" if task == "advance" else "backfill", rollout_id)
    except UnreachableError:
        return False
    return True


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
    bump = verb in (Verb.PAUSE, Verb.CANCEL, Verb.ROLLBACK, Verb.FAIL)
    rollout_queries.set_state(connection, rollout.id, state.value, reason=reason, bump_generation=bump)
    reach("in_state_change")
    if bump:
        rollout_queries.release_leases(connection, rollout.id)
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


def pause(context: Context, name: str | int, reason: str | None = None) -> RolloutRow:
    """No batch claimed before this returns can commit after it. Pausing what is paused is done already."""
    with transaction(context.engine) as connection:
        row = locked(connection, name)
        if row.state != RolloutState.PAUSED:
            move(
                connection, row, Verb.PAUSE, actor=context.actor, reason=reason or f"asked by {context.actor}"
            )
    return reread(context, row.id)


def resume(context: Context, name: str | int) -> RolloutRow:
    """Go on after a pause."""
    with transaction(context.engine) as connection:
        row = locked(connection, name)
        if row.state not in (RolloutState.BACKFILLING, RolloutState.DEPLOYED, RolloutState.PLANNED):
            move(connection, row, Verb.RESUME, actor=context.actor)
    wake(context, "advance", row.id)
    return reread(context, row.id)


def cancel(context: Context, name: str | int, reason: str | None = None) -> RolloutRow:
    """Stop for good and serve what was served before, the old model with the old vectors."""
    with transaction(context.engine) as connection:
        row = locked(connection, name)
        if row.state != RolloutState.CANCELLED:
            move(connection, row, Verb.CANCEL, actor=context.actor, reason=reason)
            _restore(connection, row, context.actor, "cancelled")
            move(
                connection,
                locked(connection, row.id),
                Verb.ACKNOWLEDGE_CANCEL,
                actor=context.actor,
                reason=reason,
            )
    return reread(context, row.id)


def rollback(context: Context, name: str | int, reason: str | None = None) -> RolloutRow:
    """Restore the old model and the old vectors; possible until the window after finalize closes."""
    with transaction(context.engine) as connection:
        row = locked(connection, name)
        if row.state == RolloutState.ROLLED_BACK:
            return row
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
        if row.finished_at is not None:
            closes = row.finished_at + timedelta(seconds=float(row.config["rollback_window_s"]))
            if datetime.now(UTC) > closes:
                raise ConflictError(
                    f"the rollback window of rollout {row.id} closed at {closes.isoformat(timespec='seconds')}."
                )
        move(connection, row, Verb.ROLLBACK, actor=context.actor, reason=reason)
        _restore(connection, row, context.actor, "rolled back")
        move(
            connection,
            locked(connection, row.id),
            Verb.ACKNOWLEDGE_ROLLBACK,
            actor=context.actor,
            reason=reason,
        )
    return reread(context, row.id)


def _restore(connection: Connection, rollout: RolloutRow, actor: str, why: str) -> None:
    """Serve what was served before this rollout: a pointer move, the old extents were never touched."""
    rollout_queries.append_log_event(connection, rollout.gallery_id, rollout.id, "reset")
    serving = rollout_queries.serving_now(connection, rollout.gallery_id)
    if serving is None or serving.rollout_id != rollout.id:
        return  # it never came to serve
    older = [
        r for r in rollout_queries.effective_rollouts(connection, rollout.gallery_id) if r.id < rollout.id
    ]
    assert rollout.from_model_id is not None, "an upgrade has a model to go back to"
    assert older, "an upgrade that serves has a predecessor"
    rollout_queries.flip_serving(
        connection,
        rollout.gallery_id,
        rollout.from_model_id,
        older[-1].id,
        actor=actor,
        reason=f"rollout {rollout.id} {why}",
    )


def complete(context: Context, rollout_id: int) -> RolloutRow:
    """All batches committed → finalizable; the first embedding of a gallery is finalized at once and begins to serve.

    The counts are compared inside the transaction, under the lock that commits take.
    """
    with transaction(context.engine) as connection:
        row = locked(connection, rollout_id)
        if row.state not in (RolloutState.BACKFILLING, RolloutState.PAUSED) or not _all_committed(row):
            return row
        move(connection, row, Verb.COMPLETE, actor=context.actor)
        if row.kind == "initial":
            _finalize(connection, locked(connection, row.id), context.actor)
    return reread(context, rollout_id)


def _all_committed(row: RolloutRow) -> bool:
    return (
        row.n_batches > 0
        and row.committed_batches == row.n_batches
        and (row.committed_items + row.quarantined_items == row.n_items)
    )


def finalize(context: Context, name: str | int) -> RolloutRow:
    """Accept the upgrade; named blockers otherwise. The old vectors stay until the rollback window closes."""
    with transaction(context.engine) as connection:
        row = locked(connection, name)
        if row.state == RolloutState.FINALIZED:
            return row
        if row.state in (
            RolloutState.BACKFILLING,
            RolloutState.PAUSED,
            RolloutState.DEPLOYED,
            RolloutState.PLANNED,
        ):
            open_items = row.n_items - row.committed_items - row.quarantined_items
            raise ConflictError(
                f"rollout {row.id} is {row.state} and cannot be finalized: {open_items} of {row.n_items} items are not "
                f"re-embedded yet. Wait with `hotrefresh rollout status -w {row.id}`"
                + (", after `hotrefresh rollout resume`." if row.state == RolloutState.PAUSED else ".")
            )
        _finalize(connection, row, context.actor)
    wake(context, "evaluate", row.id)  # the last batches may not be counted yet
    return reread(context, row.id)


def _finalize(connection: Connection, row: RolloutRow, actor: str) -> None:
    move(connection, row, Verb.FINALIZE, actor=actor)
    if row.kind == "initial":
        rollout_queries.flip_serving(
            connection, row.gallery_id, row.to_model_id, row.id, actor=actor, reason="first embedding"
        )
    rollout_queries.append_log_event(connection, row.gallery_id, row.id, "finalized")
