"""The invariants of the engine, checked against the ledger and every stored byte: `hotrefresh doctor --deep`.

I4 (fence), I6 (all or nothing), I10 (serving never stops) and I12 (it ends) are about moments, not about what lies there
now; the fault suite shows them, and what they would leave behind when broken is seen here as I1, I2, I3 or I8.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core import plan
from orchestrator.core.states import ACTIVE, RolloutState
from orchestrator.errors import HotrefreshError
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import items as item_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import plans as plan_queries
from orchestrator.ledger.queries import recount as recount_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, RolloutRow
from orchestrator.service.poison import MAX_ATTEMPTS
from orchestrator.serving.calibration import calibrated, served_calibrations
from orchestrator.serving.matrix import adapted_table, load_matrix, plan_rows, read_batch
from orchestrator.serving.queries import serving_path
from orchestrator.serving.replica import Replica

# How far from 1 the length of a stored vector may be.
NORM_TOLERANCE = 1e-2


@dataclass(frozen=True)
class Finding:
    """One invariant of one gallery: whether it holds, and what was seen."""

    invariant: str
    gallery: str
    ok: bool
    message: str


def check_invariants(context: Context, gallery_name: str | None = None) -> Iterator[Finding]:
    """Check every gallery, or one; reads every committed byte. Each gallery is looked at in one snapshot of the ledger."""
    with context.engine.connect() as connection:
        galleries = gallery_queries.list_galleries(connection)
        without = recount_queries.states_without_audit(connection)
    yield Finding("I13", "all", without == 0, f"{without} rollouts whose state has no audit row")
    for gallery in galleries:
        if gallery_name in (None, gallery.name):
            yield from _check_gallery(context, gallery)


def _check_gallery(context: Context, gallery: GalleryRow) -> Iterator[Finding]:
    with context.engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
        rollouts = rollout_queries.list_rollouts(connection, gallery.id)
        kept = [r for r in rollouts if r.reclaimed_at is None]
        checks: dict[str, Callable[[], Finding]] = {
            "I1": lambda: _replica(context, connection, gallery),
            "I2": lambda: _complete(connection, gallery, rollouts),
            "I3": lambda: _once(connection, gallery, rollouts),
            "I3 plan": lambda: _planned(connection, gallery, kept),
            "I5": lambda: _one_active(gallery, rollouts),
            "I7": lambda: _served(connection, gallery),
            "I8": lambda: _bytes(connection, gallery, kept),
            "I9": lambda: _provenance(context, connection, gallery, kept),
            "I11": lambda: _bounded(connection, gallery, rollouts),
            "I14": lambda: _told(connection, gallery, rollouts),
        }
        for name, check in checks.items():
            try:
                yield check()
            except HotrefreshError as error:  # what is damaged cannot be looked at further
                yield Finding(name.split()[0], gallery.name, False, str(error))


def _one_active(gallery: GalleryRow, rollouts: list[RolloutRow]) -> Finding:
    active = [r.id for r in rollouts if RolloutState(r.state) in ACTIVE]
    return Finding("I5", gallery.name, len(active) <= 1, f"{len(active)} active rollouts")


def _served(connection: Connection, gallery: GalleryRow) -> Finding:
    overlaps = recount_queries.serving_overlaps(connection, gallery.id)
    return Finding("I7", gallery.name, overlaps == 0, f"{overlaps} gaps or overlaps in what served")


def _replica(context: Context, connection: Connection, gallery: GalleryRow) -> Finding:
    if rollout_queries.serving_now(connection, gallery.id) is None:
        return Finding("I1", gallery.name, True, "nothing serves yet")
    with Replica(context, gallery) as replica:
        served, version, seq = replica.snapshot()
    wanted = load_matrix(connection, gallery.id, up_to=seq)
    rows = calibrated(wanted.vectors, wanted.version, served_calibrations(connection, gallery.id))
    wrong = int(((served != rows).any(axis=1) | (version != wanted.version)).sum())
    return Finding(
        "I1", gallery.name, wrong == 0, f"{wrong} of {len(version)} vectors differ from the ledger's"
    )


def _complete(connection: Connection, gallery: GalleryRow, rollouts: list[RolloutRow]) -> Finding:
    """Finished: committed + quarantined = gallery; and every live item has a version or a reason."""
    missing = sum(
        r.n_items - r.committed_items - r.quarantined_items
        for r in rollouts
        if r.state == RolloutState.FINALIZED and r.committed_batches == r.n_batches
    )
    lost = 0
    if rollout_queries.serving_now(connection, gallery.id) is not None:
        version = load_matrix(connection, gallery.id).version
        version[item_queries.deleted_of_gallery(connection, gallery.id)] = -1
        expected: set[int] = set()
        for row in rollouts:
            expected |= set(item_queries.quarantined_rows(connection, row.id))
            expected |= set(item_queries.open_late_rows(connection, row.id))
        lost = int(sum(int(row) not in expected for row in np.flatnonzero(version == 0)))
    ok = missing == 0 and lost == 0
    return Finding(
        "I2",
        gallery.name,
        ok,
        f"{missing} items uncounted in finished rollouts, {lost} without vector or reason",
    )


def _once(connection: Connection, gallery: GalleryRow, rollouts: list[RolloutRow]) -> Finding:
    uncovered = sum(recount_queries.ranks_not_covered(connection, r.id) for r in rollouts if r.n_batches)
    gaps = recount_queries.log_gaps(connection, gallery.id)
    return Finding(
        "I3",
        gallery.name,
        uncovered == 0 and gaps == 0,
        f"{uncovered} ranks in no batch or in two, {gaps} places of the log missing or doubled",
    )


def _planned(connection: Connection, gallery: GalleryRow, rollouts: list[RolloutRow]) -> Finding:
    """Each plan is a permutation, and the ledger and the files beside the extents say the same of it: of the newest revision
    at all ranks, of the one that a batch names at the ranks of that batch."""
    wrong = []
    for row in rollouts:
        chunks = rollout_queries.plan_chunks(connection, row.id)
        try:
            row_of = plan.invert(plan.from_chunks(chunks))
        except ValueError as error:
            wrong.append(f"rollout {row.id}: {error}")
            continue
        newest = plan_queries.newest_revision(connection, row.id)
        if chunks and (row_of != plan_rows(connection, row, 0 if newest is None else newest.no)).any():
            wrong.append(f"rollout {row.id}: the plan in the ledger is not the one beside the extents")
        by_revision: dict[int, Any] = {}
        for first, n, revision in recount_queries.planned_batches(connection, row.id, row.plan_items):
            if revision not in by_revision:
                by_revision[revision] = plan_rows(connection, row, revision)
            if (by_revision[revision][first : first + n] != row_of[first : first + n]).any():
                wrong.append(f"rollout {row.id} at rank {first}: revision {revision} has other rows there")
    return Finding("I3", gallery.name, not wrong, "; ".join(wrong[:3]) or "plans are permutations")


def _bytes(connection: Connection, gallery: GalleryRow, rollouts: list[RolloutRow]) -> Finding:
    batches, wrong = 0, []
    for row in rollouts:
        for entry in log_queries.committed_batches(connection, row.id, 2**62):
            batches += 1
            try:
                vectors = read_batch(connection, row, entry).vectors
            except HotrefreshError as error:
                wrong.append(str(error))
                continue
            norms = np.linalg.norm(vectors, axis=1)
            if not (np.isfinite(norms) & (np.abs(norms - 1) < NORM_TOLERANCE)).all():
                wrong.append(
                    f"rollout {row.id} at rank {entry.first_rank}: a vector is not finite or not of length 1"
                )
    wrong += [
        f"rollout {row.id}: a lifted vector is not finite or not of length 1"
        for row in rollouts
        if row.adapted_uri is not None and not _lifted_sound(connection, row)
    ]
    found = f"{batches} batches read" + (f", {len(wrong)} wrong; the first: {wrong[0]}" if wrong else "")
    return Finding("I8", gallery.name, not wrong, found)


def _lifted_sound(connection: Connection, row: RolloutRow) -> bool:
    """Every lifted vector has length 1; where there was none to lift it is zero."""
    norms = np.linalg.norm(adapted_table(connection, row).map(), axis=1)
    return bool((np.isfinite(norms) & ((norms == 0) | (np.abs(norms - 1) < NORM_TOLERANCE))).all())


def _provenance(
    context: Context, connection: Connection, gallery: GalleryRow, rollouts: list[RolloutRow]
) -> Finding:
    models = {r.to_model_id for r in rollouts}
    for model_id in models:
        context.encoder(model_queries.model_by_id(connection, model_id))
    adapters = {r.adapter_id for r in rollouts if r.adapter_id is not None}
    for adapter_id in adapters:
        context.adapter(model_queries.adapter_by_id(connection, adapter_id))
    message = f"{len(models)} models and {len(adapters)} adapters have the digests they were registered with"
    if (serving := rollout_queries.serving_now(connection, gallery.id)) is None:
        return Finding("I9", gallery.name, True, message)
    holder = rollout_queries.newest_holder(connection, gallery.id)
    path = serving_path(connection, serving)
    meets = path.model.id if path.adapter is None else path.adapter.target_model_id
    ok = holder is not None and holder.to_model_id == meets
    return Finding(
        "I9", gallery.name, ok, message if ok else "queries are not embedded where the stored vectors are"
    )


def _bounded(connection: Connection, gallery: GalleryRow, rollouts: list[RolloutRow]) -> Finding:
    """Attempts are bounded, and no lease outlives its rollout by more than its length."""
    over = 0
    for row in rollouts:
        attempts = batch_queries.attempts_histogram(connection, row.id)
        over += sum(count for attempt, count in attempts.items() if attempt > MAX_ATTEMPTS + 1)
        over += recount_queries.endless_leases(connection, row.id, float(row.config.get("lease_s", 0)))
    return Finding(
        "I11", gallery.name, over == 0, f"{over} batches with too many attempts or an endless lease"
    )


def _told(connection: Connection, gallery: GalleryRow, rollouts: list[RolloutRow]) -> Finding:
    wrong = [
        f"rollout {row.id}: {name} is {getattr(row, name)}, counted {value}"
        for row in rollouts
        for name, value in recount_queries.count_batches(connection, row.id).items()
        if getattr(row, name) != value
    ]
    return Finding("I14", gallery.name, not wrong, "; ".join(wrong) or "counters equal a recount")
