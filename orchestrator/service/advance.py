"""What moves a rollout on by itself: adapt, deploy, plan. Idempotent; one process at a time by an advisory lock."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core import plan
from orchestrator.core.states import RolloutState, Verb
from orchestrator.errors import ConflictError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import locks
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import ModelRow, RolloutRow
from orchestrator.service.names import find_gallery, find_model
from orchestrator.service.rollouts import locked, move, reread, wake
from orchestrator.serving.matrix import adapted_file, extent_file, load_matrix
from orchestrator.store.extents import new_folder, write_rows

Progress = Callable[[int, int], None]
ADAPT_CHUNK = 65_536


@contextmanager
def sole_mover(context: Context, rollout_id: int) -> Iterator[bool]:
    """Whether this process alone may move the rollout; the lock ends with the connection, so with the process."""
    with context.engine.connect() as connection:
        got = locks.try_lock_rollout(connection, rollout_id)
        try:
            yield got
        finally:
            if got:
                locks.unlock_rollout(connection, rollout_id)
            connection.rollback()


def advance(context: Context, rollout_id: int) -> RolloutRow:
    """Do the next steps that stand out: deploy, plan, begin the backfill. Called by workers, safe to call any time."""
    row = reread(context, rollout_id)
    if row.state == RolloutState.PLANNED:
        deploy(context, rollout_id)
        row = reread(context, rollout_id)
    if _wants_plan(row):
        with sole_mover(context, rollout_id) as alone:
            if alone:
                write_plan(context, rollout_id)
        row = reread(context, rollout_id)
    return row


def _wants_plan(row: RolloutRow) -> bool:
    """Deployed, or resumed after a pause that came before the plan was written."""
    return row.n_batches == 0 and row.state in (RolloutState.DEPLOYED, RolloutState.BACKFILLING)


def deploy(context: Context, rollout_id: int, progress: Progress | None = None) -> None:
    """Adapt the stored embeddings where there is an adapter, then flip the serving row in one transaction."""
    with sole_mover(context, rollout_id) as alone:
        if not alone:
            return
        row = reread(context, rollout_id)
        if row.state != RolloutState.PLANNED:
            return
        if row.adapter_id is not None and row.adapted_uri is None:
            adapt_gallery(context, row, progress or (lambda done, total: None))
        with transaction(context.engine) as connection:
            row = locked(connection, rollout_id)
            move(connection, row, Verb.DEPLOY, actor=row.actor)
            if row.kind == "upgrade":
                rollout_queries.flip_serving(
                    connection,
                    row.gallery_id,
                    row.to_model_id,
                    row.id,
                    actor=row.actor,
                    reason=f"rollout {row.id} deployed",
                )
            rollout_queries.append_log_event(connection, row.gallery_id, row.id, "deployed")


def adapt_gallery(context: Context, row: RolloutRow, progress: Progress) -> None:
    """Lift every stored vector into the new space, in chunks, without reading an item: adapted.f32 in row order."""
    with context.engine.connect() as connection:
        assert row.adapter_id is not None
        adapter = context.adapter(model_queries.adapter_by_id(connection, row.adapter_id))
        old = load_matrix(connection, row.gallery_id, before=row.id)
        target = adapted_file(connection, row)
    target.create()
    started = time.monotonic()
    for first in range(0, row.n_items, ADAPT_CHUNK):
        lifted, _ = adapter.transform(old.vectors[first : first + ADAPT_CHUNK])
        lifted[old.version[first : first + ADAPT_CHUNK] == 0] = 0  # no vector before, none after
        target.write(first, lifted)
        progress(min(first + ADAPT_CHUNK, row.n_items), row.n_items)
    target.close()
    with transaction(context.engine) as connection:
        rollout_queries.set_adapted(connection, row.id, str(target.path))
        rollout_queries.set_config(connection, row.id, {"adapted_s": time.monotonic() - started})


def write_plan(context: Context, rollout_id: int) -> None:
    """Score, order, and store the plan; the rollout backfills when its transaction commits."""
    row = reread(context, rollout_id)
    if not _wants_plan(row):
        return
    scores = score_rows(context, row)
    row_of = plan.order_rows(scores)
    n_batches = plan.batch_count(row.n_items, row.batch_size)
    starts = np.arange(0, row.n_items, row.batch_size)
    sizes = np.diff(np.append(starts, row.n_items))
    means = np.add.reduceat(scores[row_of].astype(np.float64), starts) / sizes
    with context.engine.connect() as connection:
        extent_file(connection, row).create()
    write_rows(Path(row.extent_uri), row_of)
    with transaction(context.engine) as connection:
        row = locked(connection, rollout_id)
        if not _wants_plan(row):
            return  # paused or cancelled meanwhile
        rollout_queries.copy_plan(connection, rollout_id, plan.to_chunks(plan.invert(row_of)))
        rollout_queries.insert_batches(
            connection,
            rollout_id,
            [
                (
                    no,
                    int(sizes[no]),
                    plan.band_of(no, n_batches),
                    None if row.kind == "initial" else float(means[no]),
                )
                for no in range(n_batches)
            ],
        )
        if row.state == RolloutState.DEPLOYED:
            move(connection, row, Verb.BEGIN_BACKFILL, actor=row.actor)


def score_rows(context: Context, row: RolloutRow) -> npt.NDArray[np.float32]:
    """The order's score of every row, from stored (adapted, where there is an adapter) embeddings: (n,) float32."""
    from orchestrator.core.orders import ORDERS, Input, order_scores

    rng = np.random.default_rng(int(row.config.get("seed", 0)))
    if Input.EMBEDDINGS not in ORDERS[row.order_name].needs:
        return order_scores(row.order_name, n=row.n_items, rng=rng)
    with context.engine.connect() as connection:
        vectors = load_matrix(connection, row.gallery_id).vectors
        prototypes = choose_prototypes(context, connection, row, vectors, rng)
    return order_scores(
        row.order_name,
        n=row.n_items,
        embeddings=vectors,
        prototypes=prototypes,
        temperature=float(row.config["temperature"]),
        rng=rng,
    )


def choose_prototypes(
    context: Context,
    connection: Connection,
    row: RolloutRow,
    vectors: npt.NDArray[np.float32],
    rng: np.random.Generator,
) -> npt.NDArray[np.float32]:
    """Prototypes of the new space: the new model's head, class means, or k-means where nothing is labelled."""
    from orchestrator.core.prototypes import class_means, kmeans_centroids

    wanted = str(row.config["prototypes"])
    head = context.prototypes(model_queries.model_by_id(connection, row.to_model_id))
    if wanted in ("auto", "head") and head is not None:
        return head
    if wanted == "head":
        raise UsageError(
            f"the new model of rollout {row.id} stores no head; use --prototypes classes or clusters."
        )
    labels = (
        gallery_queries.labels_of_gallery(connection, row.gallery_id) if wanted in ("auto", "classes") else []
    )
    if labels:
        rows = np.fromiter((r for r, _ in labels), np.int64, len(labels))
        classes = np.unique([label for _, label in labels], return_inverse=True)[1]
        return class_means(vectors[rows], classes)
    if wanted == "classes":
        raise UsageError(f"the gallery of rollout {row.id} has no labels; use --prototypes clusters.")
    return kmeans_centroids(vectors, max(2, min(1000, len(vectors) // 20)), rng)


def embed_gallery(
    context: Context, gallery_name: str, model_name: str, batch_size: int | None = None
) -> RolloutRow:
    """The first, cold embedding: a rollout of its own kind, through the same workers.

    Raises:
        ConflictError: the gallery has embeddings already, or is being embedded.
    """
    gallery_id, model, n_items = _embeddable(context, gallery_name, model_name)
    rollout_id = _insert_initial(
        context, gallery_id, model, n_items, batch_size or context.settings.batch_size
    )
    deploy(context, rollout_id)
    wake(context, "advance", rollout_id)
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
    rollout_id = _insert_initial(context, gallery_id, model, n_items, context.settings.batch_size)
    deploy(context, rollout_id)
    write_plan(context, rollout_id)
    row = reread(context, rollout_id)
    with context.engine.connect() as connection:
        extents = extent_file(connection, row)
    sums = []
    for first in range(0, n_items, row.batch_size):
        batch = np.ascontiguousarray(vectors[first : first + row.batch_size], np.float32)
        _check_norms(batch, first)
        sums.append(extents.write(first, batch))
        if progress:
            progress(min(first + row.batch_size, n_items), n_items)
    extents.close()
    with transaction(context.engine) as connection:
        batch_queries.import_committed(connection, rollout_id, sums)
    from orchestrator.service.rollouts import complete

    return complete(context, rollout_id)


def _check_norms(batch: npt.NDArray[np.float32], first: int) -> None:
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
        if model.modality != gallery.modality:
            raise ConflictError(
                f"{model.name!r} embeds {model.modality}s, gallery {gallery.name!r} holds {gallery.modality}s."
            )
    context.encoder(model)  # a tampered artifact shows here, not in a worker
    return gallery.id, model, gallery.n_items


def _insert_initial(context: Context, gallery_id: int, model: ModelRow, n_items: int, batch_size: int) -> int:
    folder = new_folder(context.settings.extents, gallery_id)
    with transaction(context.engine) as connection:
        rollout_id = rollout_queries.insert_rollout(
            connection,
            gallery_id=gallery_id,
            kind="initial",
            from_model_id=None,
            to_model_id=model.id,
            adapter_id=None,
            certificate_id=None,
            order_name="row",
            config={"lease_s": context.settings.lease_s, "rollback_window_s": 0},
            batch_size=batch_size,
            n_items=n_items,
            extent_uri=str(folder),
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
    return rollout_id
