"""The end of a rollout: complete, finalize with named blockers, and giving the old vectors' space back."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.gates import Effect, Result
from orchestrator.core.states import RolloutState, Verb
from orchestrator.errors import ConflictError, HotrefreshError, InconclusiveError, NotCertifiedError
from orchestrator.gates import parse_gates
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import flips as flip_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import gates as gate_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries import traffic as traffic_queries
from orchestrator.ledger.rows import RolloutRow
from orchestrator.service.contracts import obstacles_of
from orchestrator.service.gates import Gatekeeper
from orchestrator.service.names import find_gallery
from orchestrator.service.rollouts import locked, move, reread
from orchestrator.service.wakeups import relay, request_wakeup
from orchestrator.serving.matrix import HOLDS_ALL, extents_of, load_matrix
from orchestrator.store import remove_folder

# How long a `finalize` waits for the last flips to be counted before it names them as a blocker.
COUNTING_S = 10.0
_POLL_S = 0.1
_GIVEN_UP = ("cancelled", "rolled_back", "failed")


@dataclass(frozen=True)
class Blocker:
    """One reason why a rollout cannot be finalized: its stable name, and the sentence for people."""

    name: str
    message: str


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
        elif row.finalize_asked_by is not None:
            request_wakeup(connection, "finalize", row.id)
    relay(context)
    return reread(context, rollout_id)


def _all_committed(row: RolloutRow) -> bool:
    return (
        row.n_batches > 0
        and row.committed_batches == row.n_batches
        and row.committed_items + row.quarantined_items == row.n_items
    )


def blockers(connection: Connection, row: RolloutRow) -> list[Blocker]:
    """Everything that stands between a rollout and its finalization."""
    found = []
    if row.state == RolloutState.PAUSED:
        found.append(Blocker("paused", f"it is paused: {row.reason}"))
    open_items = row.n_items - row.committed_items - row.quarantined_items
    if open_items or row.state in (RolloutState.PLANNED, RolloutState.DEPLOYED):
        found.append(Blocker("open_items", f"{open_items} of {row.n_items} items are not re-embedded yet"))
    if row.state == RolloutState.FINALIZABLE and _uncounted(connection, row):
        found.append(Blocker("flips_not_counted", "the flips of the last batches are not counted yet"))
    if split := traffic_queries.canary_under_way(connection, row.id):
        found.append(Blocker("canary", f"the new system answers {split.canary:g} % of the traffic"))
    if row.kind == "upgrade":
        found += _closed_gates(connection, row)
        gallery = gallery_queries.gallery_by_id(connection, row.gallery_id)
        found += [Blocker("downstream", each) for each in obstacles_of(connection, gallery, row)]
    return found


def _closed_gates(connection: Connection, row: RolloutRow) -> list[Blocker]:
    """The gates that did not pass at their newest evaluation; those of a dry run, or that only alert, close nothing."""
    found = []
    for gate in (each.gate for each in parse_gates(row.config.get("gates") or [])):
        if gate.dry_run or gate.effect is Effect.ALERT:
            continue
        answers = gate_queries.newest_decisions(connection, row.id, gate.name)
        if not answers:
            found.append(Blocker("gate_inconclusive", f"gate {gate.name} has judged nothing yet"))
        for answer in answers:
            if answer.result != Result.PASS:
                about = f" on {answer.query_set}" if answer.query_set else ""
                name = "gate_failed" if answer.result == Result.FAIL else "gate_inconclusive"
                found.append(Blocker(name, f"gate {gate.name}{about}: {gate.measure} {answer.reason}"))
    return found


def _uncounted(connection: Connection, row: RolloutRow) -> bool:
    """Whether a query set of the gallery has not seen the rollout's last batch; without any, its deployment."""
    last = log_queries.last_batch_seq(connection, row.id)
    if not last and row.kind == "upgrade":
        last = log_queries.deployed_seq(connection, row.id)
    return any(
        (flip_queries.last_evaluated(connection, row.id, query_set.id) or 0) < last
        for query_set in gallery_queries.query_sets_of_gallery(connection, row.gallery_id)
        if last
    )


def finalize(context: Context, name: str | int, *, when_ready: bool = False) -> RolloutRow:
    """Accept the upgrade. The old vectors stay until the rollback window closes and they are reclaimed.

    Args:
        when_ready: where something blocks it, finalize as soon as nothing does.

    Raises:
        ConflictError: something blocks it; the message names each blocker.
        NotCertifiedError: nothing but gates, and one failed; or nothing but a downstream module that it would break.
        InconclusiveError: nothing but gates, and one could not decide.
    """
    deadline = time.monotonic() + COUNTING_S
    with transaction(context.engine) as connection:
        row = locked(connection, name)
    if row.state != RolloutState.FINALIZED:
        Gatekeeper(
            context, row.id
        ).ask_outside()  # what somebody else measures may have changed since the last batch
    while True:
        with transaction(context.engine) as connection:
            row = locked(connection, name)
            if row.state == RolloutState.FINALIZED:
                return row
            found = blockers(connection, row)
            if not found:
                _finalize(connection, row, context.actor)
                break
            counting = [b.name for b in found] == ["flips_not_counted"]
            if counting:
                request_wakeup(connection, "evaluate", row.id)
            if when_ready:
                _postpone(connection, row, context.actor, found)
                break
        relay(context)
        if not counting or time.monotonic() > deadline:
            raise _blocked(row, found)
        time.sleep(_POLL_S)
    relay(context)
    return reread(context, row.id)


def _blocked(row: RolloutRow, found: list[Blocker]) -> HotrefreshError:
    named = "; ".join(f"{b.name}: {b.message}" for b in found)
    names = {b.name for b in found}
    if names <= {"gate_failed", "gate_inconclusive"}:
        kind = NotCertifiedError if "gate_failed" in names else InconclusiveError
        return kind(
            f"rollout {row.id} cannot be finalized ({named}). Take it back with `hotrefresh rollout rollback {row.id}`, or "
            f"accept it by changing its gates: `hotrefresh rollout set {row.id} gates=FILE.toml` (or gates=none)."
        )
    if names == {"downstream"}:
        return NotCertifiedError(f"rollout {row.id} cannot be finalized: {named}")
    advice = (
        f"Go on with `hotrefresh rollout resume {row.id}`"
        if row.state == RolloutState.PAUSED
        else f"End it with `hotrefresh rollout promote {row.id}`"
        if names == {"canary"}
        else f"Wait with `hotrefresh rollout status -w {row.id}`"
    )
    return ConflictError(
        f"rollout {row.id} is {row.state} and cannot be finalized ({named}). {advice}, or let it be finalized by "
        f"itself with `hotrefresh rollout finalize {row.id} --when-ready`."
    )


def _postpone(connection: Connection, row: RolloutRow, actor: str, found: list[Blocker]) -> None:
    if row.state not in (
        RolloutState.PLANNED, RolloutState.DEPLOYED, RolloutState.BACKFILLING, RolloutState.PAUSED, RolloutState.FINALIZABLE,
    ):  # fmt: skip
        move(connection, row, Verb.FINALIZE, actor=actor)  # raises, naming the state
    if row.finalize_asked_by is None:
        rollout_queries.ask_finalize(connection, row.id, actor)
        rollout_queries.write_audit(
            connection,
            actor=actor,
            action="rollout.finalize_postponed",
            target=str(row.id),
            after={"blockers": [b.name for b in found]},
        )


def finalize_if_asked(context: Context, rollout_id: int) -> RolloutRow:
    """Do a postponed finalization if nothing blocks it any more; under the name of who asked."""
    with transaction(context.engine) as connection:
        row = locked(connection, rollout_id)
        asked = row.finalize_asked_by
        if row.state == RolloutState.FINALIZABLE and asked and not blockers(connection, row):
            _finalize(connection, row, asked)
    return reread(context, rollout_id)


def _finalize(connection: Connection, row: RolloutRow, actor: str) -> None:
    move(connection, row, Verb.FINALIZE, actor=actor)
    if row.kind == "initial":
        rollout_queries.flip_serving(
            connection, row.gallery_id, row.to_model_id, row.id, actor=actor, reason="first embedding"
        )
    seq = log_queries.append_log_event(connection, row.gallery_id, row.id, "finalized")
    codes = model_queries.model_by_id(connection, row.to_model_id).codes
    if codes and row.how.reembeds and not row.quarantined_items:
        rollout_queries.set_config(connection, row.id, {HOLDS_ALL: seq})


@dataclass(frozen=True)
class Reclaimed:
    """What `reclaim` gave back, or would: rollouts, bytes, and how many items lose the only vector they have.

    `kept_floats`: rollouts that would go too, if codes did not stand on their vectors.
    """

    gallery: str
    rollouts: tuple[int, ...]
    freed_bytes: int
    items_without_vector: int
    kept_floats: tuple[int, ...] = ()


def reclaim(
    context: Context, gallery_name: str, *, dry_run: bool = False, drop_unreadable: bool = False
) -> Reclaimed:
    """Remove the extents that no search and no rollback can need any more.

    These are of rollouts that were cancelled, rolled back or failed, and of everything older than the newest finalized
    rollout that embedded every item anew, once that one's rollback window is closed. Behind a finalized rollout that only
    lifted, what a model once made of an item is kept: it may be the only thing left of it, and lifting loses some of it.
    Tables that were lifted in between, and hold no item's embedding of their own, are given back.

    Embeddings that codes were made of are kept as long as such codes are: another codec encodes them, and answers of codes
    are ranked again by them.

    Raises:
        ConflictError: items are in quarantine and only have an old vector, and `drop_unreadable` was not said.
    """
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        kept = load_matrix(connection, gallery.id)
        chosen = _reclaimable(connection, gallery.id, set(np.unique(kept.version).tolist()))
        needed = _encoded(connection, gallery.id, {r.id for r in chosen})
        floats = tuple(r.id for r in chosen if _holds(r) and r.to_model_id in needed)
        chosen = [r for r in chosen if r.id not in floats]
        without = int(np.isin(kept.version, [r.id for r in chosen]).sum())
        if without and not drop_unreadable and not dry_run:
            raise ConflictError(
                f"{without} items of gallery {gallery.name!r} could not be embedded anew and are found by their old vectors "
                "only; mend them and `hotrefresh rollout retry`, or say --drop-unreadable to give these vectors up."
            )
        freed = sum((r.committed_items + r.lifted_items) * _row_bytes(connection, r) for r in chosen)
        if not dry_run:
            for row in chosen:
                rollout_queries.mark_reclaimed(connection, row.id)
                rollout_queries.write_audit(
                    connection, actor=context.actor, action="rollout.reclaimed", target=str(row.id)
                )
    if not dry_run:
        for row in chosen:
            remove_folder(context.settings.extents, row.extent_uri)
    return Reclaimed(gallery.name, tuple(r.id for r in chosen), freed, without, floats)


def _row_bytes(connection: Connection, row: RolloutRow) -> int:
    return extents_of(connection, row).format.row_bytes


def _holds(row: RolloutRow) -> bool:
    """Whether a rollout's vectors are in use or a rollback's; those of others were given up."""
    return row.state not in _GIVEN_UP


def _encoded(connection: Connection, gallery_id: int, gone: set[int]) -> set[int]:
    """The models whose embeddings codes of a gallery stand on, of rollouts that stay."""
    stay = [r for r in rollout_queries.list_rollouts(connection, gallery_id) if r.id not in gone]
    models = [
        model_queries.model_by_id(connection, r.to_model_id)
        for r in stay
        if r.reclaimed_at is None and _holds(r)
    ]
    return {model.base_model_id for model in models if model.base_model_id is not None}


def _reclaimable(connection: Connection, gallery_id: int, in_use: set[int]) -> list[RolloutRow]:
    """The rollouts to give back. `in_use`: those that some item's vector comes from."""
    rollouts = [r for r in rollout_queries.list_rollouts(connection, gallery_id) if r.reclaimed_at is None]
    over = [r for r in rollouts if r.state in _GIVEN_UP]
    for at, row in enumerate(rollouts):  # newest first
        if not row.how.holds_vectors:
            continue
        if row.state == RolloutState.FINALIZED and row.committed_batches == row.n_batches:
            window = float(row.config.get("rollback_window_s", 0))
            if rollout_queries.finished_within(connection, row.id, window):
                break
            older = [r for r in rollouts[at + 1 :] if r not in over]
            return over + [r for r in older if row.how.reembeds or _only_lifted(r, in_use)]
    return over


def _only_lifted(row: RolloutRow, in_use: set[int]) -> bool:
    """Whether all that a rollout holds is made of older vectors, which are kept."""
    return not row.how.reembeds and row.id not in in_use
