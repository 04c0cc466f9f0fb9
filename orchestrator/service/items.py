"""Items that come, change or go while their gallery is served, also in the middle of a rollout.

New and changed content becomes a late item of whatever rollout serves: its workers embed it before anything else. A delete
is an entry of the log, so every replica forgets the item at the same place, and no later batch brings it back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.states import RolloutState, Verb
from orchestrator.errors import ConflictError, NotFoundError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import items as item_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, RolloutRow
from orchestrator.service.names import find_gallery
from orchestrator.service.rollouts import locked, move
from orchestrator.service.wakeups import relay, request_wakeup


@dataclass(frozen=True)
class Changed:
    """What a change did: items taken, items refused with the reasons counted, and the rollout that embeds them."""

    gallery: str
    items: int
    rejected: int
    reasons: dict[str, int]
    rollout_id: int | None


def add_items(context: Context, gallery_name: str, source: str, split: str | None = None) -> Changed:
    """Add the items of a source. A key that the gallery has already is refused: `update_items` changes it.

    Raises:
        UsageError: a source that cannot be read, holds no usable item, or is of another modality.
    """
    return _take(context, gallery_name, source, split, new=True)


def update_items(context: Context, gallery_name: str, source: str, split: str | None = None) -> Changed:
    """Give items the content that a source has under their keys. A key that the gallery does not have is refused."""
    return _take(context, gallery_name, source, split, new=False)


def _take(context: Context, gallery_name: str, source: str, split: str | None, *, new: bool) -> Changed:
    from models.datasets import list_items, modality_of

    listing = list_items(source, split)
    with transaction(context.engine) as connection:
        gallery = item_queries.lock_gallery(connection, find_gallery(connection, gallery_name).id)
        if modality_of(source) != gallery.modality:
            raise UsageError(
                f"gallery {gallery.name!r} holds {gallery.modality}s, but {source!r} holds {modality_of(source)}s."
            )
        known = gallery_queries.rows_of_keys(connection, gallery.id, [i.key for i in listing.items])
        items = [i for i in listing.items if (i.key in known) != new]
        wrong = "exists" if new else "unknown"
        rejected = [(r.key, r.uri, r.reason) for r in listing.rejected]
        rejected += [(i.key, i.uri, wrong) for i in listing.items if (i.key in known) == new]
        if not items:
            raise UsageError(_nothing_to_do(gallery, source, rejected, new=new))
        if new:
            rows = list(range(gallery.n_items, gallery.n_items + len(items)))
            gallery_queries.copy_items(
                connection,
                gallery.id,
                ((row, i.key, i.uri, i.label, i.attributes) for row, i in zip(rows, items, strict=True)),
            )
        else:
            rows = [known[i.key] for i in items]
            item_queries.rewrite_items(
                connection,
                gallery.id,
                [(row, i.uri, i.label, i.attributes) for row, i in zip(rows, items, strict=True)],
            )
        gallery_queries.copy_rejected(connection, gallery.id, None, rejected)
        rollout = _embed_late(connection, gallery, rows, context.actor)
        _audit(connection, context.actor, gallery, "added" if new else "updated", len(rows))
    relay(context)
    reasons: dict[str, int] = {}
    for _, _, reason in rejected:
        reasons[reason] = reasons.get(reason, 0) + 1
    return Changed(gallery.name, len(rows), len(rejected), reasons, rollout.id if rollout else None)


def _nothing_to_do(
    gallery: GalleryRow, source: str, rejected: Sequence[tuple[str, str, str]], *, new: bool
) -> str:
    if not rejected:
        return f"{source!r} holds no usable item."
    if new:
        return (
            f"{source!r} holds no item that gallery {gallery.name!r} lacks ({len(rejected)} refused); "
            f"`hotrefresh gallery update {gallery.name} SOURCE` changes those it has."
        )
    return (
        f"{source!r} holds no item that gallery {gallery.name!r} has ({len(rejected)} refused); "
        f"`hotrefresh gallery add {gallery.name} SOURCE` adds new ones."
    )


def delete_items(context: Context, gallery_name: str, keys: Sequence[str]) -> Changed:
    """Take items out of a gallery. Searches stop finding them as soon as replicas have read the log.

    Raises:
        NotFoundError: a key that the gallery does not have; nothing is deleted then.
    """
    if not keys:
        raise UsageError("name at least one key to delete.")
    with transaction(context.engine) as connection:
        gallery = item_queries.lock_gallery(connection, find_gallery(connection, gallery_name).id)
        known = gallery_queries.rows_of_keys(connection, gallery.id, list(keys))
        missing = [key for key in keys if key not in known]
        if missing:
            raise NotFoundError(
                f"gallery {gallery.name!r} has no item {missing[0]!r}"
                + (f" (and {len(missing) - 1} more)" if len(missing) > 1 else "")
                + "; nothing was deleted."
            )
        rows = sorted(set(known.values()))
        if gallery.n_items - gallery.n_deleted == len(rows):
            raise ConflictError(
                f"these are all items of gallery {gallery.name!r}; a gallery keeps at least one."
            )
        item_queries.mark_deleted(connection, gallery.id, rows)
        for rollout in _rollouts_to_tell(connection, gallery.id):
            item_queries.supersede_rows(connection, rollout.id, rows)
        log_queries.append_log_event(connection, gallery.id, None, "deleted", rows)
        _audit(connection, context.actor, gallery, "deleted", len(rows))
    return Changed(gallery.name, len(rows), 0, {}, None)


def _embed_late(
    connection: Connection, gallery: GalleryRow, rows: Sequence[int], actor: str
) -> RolloutRow | None:
    """Have rows embedded by the rollout that serves, and by one that is planned behind it; None: by none yet."""
    told = _rollouts_to_tell(connection, gallery.id)
    for row in told:
        if row.state == RolloutState.FINALIZABLE:
            move(connection, row, Verb.REOPEN, actor=actor, reason=f"{len(rows)} items were added or changed")
        # Before the plan is written its rows have no rank yet: their content is read when their batch is done. Not so where
        # their stored embeddings are read: these are of their former content.
        planned = row.n_batches > 0 or not row.how.reembeds or row.how.recodes
        late = rows if planned else [r for r in rows if r >= row.plan_items]
        if planned:
            item_queries.supersede_rows(connection, row.id, late)
        if late:
            item_queries.add_late(connection, row, late)
        request_wakeup(connection, "drain", row.id)
    return told[-1] if told else None


def _rollouts_to_tell(connection: Connection, gallery_id: int) -> list[RolloutRow]:
    """Locked, oldest first: the newest rollout that holds the gallery's vectors, and one that is planned and will.

    Under a query adapter the stored vectors stay those of the model before, so that model embeds what is new.
    """
    holder = rollout_queries.newest_holder(connection, gallery_id)
    latest = rollout_queries.latest_rollout(connection, gallery_id)
    planned = latest is not None and latest.state == RolloutState.PLANNED and latest.how.holds_vectors
    told = [holder, latest if planned else None]
    return [locked(connection, row.id) for row in told if row is not None]


def _audit(connection: Connection, actor: str, gallery: GalleryRow, what: str, items: int) -> None:
    rollout_queries.write_audit(
        connection, actor=actor, action=f"items.{what}", target=gallery.name, after={"items": items}
    )
