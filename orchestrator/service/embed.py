"""The first embedding of a gallery: by the workers, or taken from a file of embeddings that exist already."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from orchestrator.context import Context
from orchestrator.core.strategies import REEMBED
from orchestrator.errors import ConflictError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import items as item_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import ModelRow, RolloutRow
from orchestrator.service.advance import Progress, deploy, write_plan
from orchestrator.service.finish import complete
from orchestrator.service.modalities import check_embeddable
from orchestrator.service.names import find_gallery, find_model
from orchestrator.service.rollouts import reread
from orchestrator.service.start import FAILURE_BUDGET
from orchestrator.service.wakeups import relay, request_wakeup
from orchestrator.serving.matrix import extents_of
from orchestrator.store import new_folder
from orchestrator.throttles import resolved

_CHECKED_TOGETHER = 65_536


def embed_gallery(
    context: Context, gallery_name: str, model_name: str, batch_size: int | None = None
) -> RolloutRow:
    """The first, cold embedding: a rollout of its own kind, through the same workers.

    Raises:
        ConflictError: the gallery has embeddings already, or is being embedded.
    """
    gallery_id, model, _ = _embeddable(context, gallery_name, model_name)
    rollout_id = _insert_initial(context, gallery_id, model, batch_size or context.settings.batch_size)
    deploy(context, rollout_id)
    relay(context)
    return reread(context, rollout_id)


def import_embeddings(
    context: Context,
    gallery_name: str,
    model_name: str,
    vectors: npt.NDArray[np.float32],
    progress: Progress | None = None,
) -> RolloutRow:
    """Take embeddings that exist already, (n, dim) float32 in the gallery's row order, instead of computing them.

    Raises:
        UsageError: another number of rows, another dim, or a vector that is not finite and of length 1.
    """
    gallery_id, model, n_items = _embeddable(context, gallery_name, model_name)
    if vectors.shape != (n_items, model.dim):
        raise UsageError(
            f"the embeddings are {' × '.join(map(str, vectors.shape))}, gallery {gallery_name!r} with model {model.name!r} "
            f"needs {n_items} × {model.dim}; export them again in the gallery's row order."
        )
    # All of it before anything is begun: a rollout that stops half-way would hold the gallery.
    for first in range(0, n_items, _CHECKED_TOGETHER):
        _check_norms(np.asarray(vectors[first : first + _CHECKED_TOGETHER], np.float32), first)
    rollout_id = _insert_initial(context, gallery_id, model, context.settings.batch_size, n_items)
    deploy(context, rollout_id)
    write_plan(context, rollout_id)
    row = reread(context, rollout_id)
    with context.engine.connect() as connection:
        extents = extents_of(connection, row)
    sums = []
    for first in range(0, n_items, row.batch_size):
        batch = np.ascontiguousarray(vectors[first : first + row.batch_size], np.float32)
        _check_norms(batch, first)
        sums.append(extents.write(first, 1, batch))
        if progress:
            progress(min(first + row.batch_size, n_items), n_items)
    extents.close()
    with transaction(context.engine) as connection:
        batch_queries.import_committed(connection, rollout_id, sums)
    return complete(context, rollout_id)


def _check_norms(batch: npt.NDArray[np.float32], first: int) -> None:
    with np.errstate(over="ignore", invalid="ignore"):  # that is what is looked for
        norms = np.linalg.norm(batch, axis=1)
    bad = np.flatnonzero(~(np.abs(norms - 1) < 1e-2))
    if len(bad):
        raise UsageError(
            f"row {first + int(bad[0])} has length {norms[bad[0]]}; embeddings must be finite and L2-normalised."
        )


def _embeddable(context: Context, gallery_name: str, model_name: str) -> tuple[int, ModelRow, int]:
    with transaction(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        model = find_model(connection, model_name)
        serving = rollout_queries.serving_now(connection, gallery.id)
        if serving is not None:
            raise ConflictError(
                f"gallery {gallery.name!r} has embeddings already; to change the model run "
                f"`hotrefresh rollout start {gallery.name} --to {model.name}`."
            )
        check_embeddable(connection, gallery, model)
    context.encoder(model)  # a tampered artifact shows here, not in a worker
    return gallery.id, model, gallery.n_items


def _insert_initial(
    context: Context, gallery_id: int, model: ModelRow, batch_size: int, expected: int | None = None
) -> int:
    folder = new_folder(context.settings.extents, gallery_id)
    with transaction(context.engine) as connection:
        n_items = item_queries.lock_gallery(connection, gallery_id).n_items
        if expected not in (None, n_items):
            raise ConflictError("items were added to the gallery meanwhile; export the embeddings again.")
        rollout_id = rollout_queries.insert_rollout(
            connection,
            gallery_id=gallery_id,
            kind="initial",
            from_model_id=None,
            to_model_id=model.id,
            adapter_id=None,
            strategy=REEMBED.name,
            certificate_id=None,
            order_name="row",
            config={
                "lease_s": context.settings.lease_s,
                "rollback_window_s": 0,
                "lane": "backfill",
                "speed": 1.0,
                "failure_budget": FAILURE_BUDGET,
                "throttles": resolved(context.settings.throttle),
            },
            batch_size=batch_size,
            n_items=n_items,
            extent_uri=folder,
            actor=context.actor,
        )
        if rollout_id is None:
            latest = rollout_queries.latest_rollout(connection, gallery_id)
            assert latest is not None
            raise ConflictError(
                f"the gallery is being embedded already (rollout {latest.id}, {latest.state}); "
                f"watch it with `hotrefresh rollout status -w {latest.id}`."
            )
        rollout_queries.write_audit(
            connection,
            actor=context.actor,
            action="rollout.planned",
            target=str(rollout_id),
            after={"model": model.name, "kind": "initial"},
        )
        request_wakeup(connection, "deploy", rollout_id)
    return rollout_id
