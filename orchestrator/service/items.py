"""Items that come, change or go while their gallery is served, also in the middle of a rollout.

New and changed content becomes a late item of whatever rollout serves: its workers embed it before anything else. A delete
is an entry of the log, so every replica forgets the item at the same place, and no later batch brings it back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.core.states import RolloutState, Verb
from orchestrator.errors import ConflictError, NotFoundError, UsageError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import items as item_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.ledger.queries import modalities as modality_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import GalleryRow, RolloutRow
from orchestrator.service.modalities import modalities_in_use
from orchestrator.service.names import find_gallery
from orchestrator.service.rollouts import locked, move
from orchestrator.service.wakeups import relay, request_wakeup

if TYPE_CHECKING:
    from models.datasets import Item, ItemListing


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

    An item is refused that lacks a modality in which a model of the gallery embeds it.
    """
    return _take(context, gallery_name, source, split, new=True)


def update_items(context: Context, gallery_name: str, source: str, split: str | None = None) -> Changed:
    """Give items the content that a source has under their keys. A key that the gallery does not have is refused.

    Content in other modalities stays where the source has none; a source without the gallery's own modality changes nothing else.
    """
    return _take(context, gallery_name, source, split, new=False)


def _take(context: Context, gallery_name: str, source: str, split: str | None, *, new: bool) -> Changed:
    from models.datasets import list_items, modalities_of

    with transaction(context.engine) as connection:
        own = find_gallery(connection, gallery_name).modality
    held = modalities_of(source)
    if new and own not in held:
        raise UsageError(f"gallery {gallery_name!r} holds {own}s, but {source!r} holds {held[0]}s.")
    # Content in another modality alone leaves an item's own as it is.
    taken = own if own in held else held[0]
    listing = list_items(source, split, taken)
    with transaction(context.engine) as connection:
        gallery = item_queries.lock_gallery(connection, find_gallery(connection, gallery_name).id)
        in_use = modalities_in_use(connection, gallery)
        known = gallery_queries.rows_of_keys(connection, gallery.id, [i.key for i in listing.items])
        items, rejected = _sorted_out(listing, known, in_use - {own}, new=new)
        if not items:
            raise UsageError(_nothing_to_do(gallery, source, rejected, new=new))
        if new:
            rows = list(range(gallery.n_items, gallery.n_items + len(items)))
            gallery_queries.copy_items(
                connection,
                gallery.id,
                (
                    (row, i.key, i.uri, i.label, i.attributes, i.other_uris)
                    for row, i in zip(rows, items, strict=True)
                ),
            )
        else:
            rows = [known[i.key] for i in items]
            _rewrite(connection, gallery, list(zip(rows, items, strict=True)), taken)
        modality_queries.note_modalities(connection, gallery.id, _modalities(items, taken))
        gallery_queries.copy_rejected(connection, gallery.id, None, rejected)
        # What no model embeds, nor one that a rollback would return to, changes no vector.
        late = [row for row, i in zip(rows, items, strict=True) if {taken, *i.other_uris} & in_use]
        rollout = _embed_late(connection, gallery, late, context.actor) if late else None
        _audit(connection, context.actor, gallery, "added" if new else "updated", len(rows))
    relay(context)
    reasons: dict[str, int] = {}
    for _, _, reason in rejected:
        reasons[reason] = reasons.get(reason, 0) + 1
    return Changed(gallery.name, len(rows), len(rejected), reasons, rollout.id if rollout else None)


def _sorted_out(
    listing: ItemListing, known: Mapping[str, int], needed: AbstractSet[str], *, new: bool
) -> tuple[list[Item], list[tuple[str, str, str]]]:
    """The items that can be taken, and those refused as (key, URI, reason). `needed`: what each new one must be besides."""
    items, rejected = [], [(r.key, r.uri, r.reason) for r in listing.rejected]
    for item in listing.items:
        if (item.key in known) == new:
            rejected.append((item.key, item.uri, "exists" if new else "unknown"))
        elif new and (missing := sorted(needed - item.other_uris.keys())):
            rejected.append((item.key, item.uri, f"no {missing[0]}"))
        else:
            items.append(item)
    return items, rejected


def _modalities(items: Sequence[Item], of_uri: str) -> set[str]:
    return {of_uri}.union(*(item.other_uris for item in items))


def _rewrite(
    connection: Connection, gallery: GalleryRow, items: Sequence[tuple[int, Item]], of_uri: str
) -> None:
    """Give rows their items' content. `of_uri`: the modality of their `uri`; where it is not the gallery's, label and attributes
    stay as well.
    """
    others = [(row, dict(i.other_uris)) for row, i in items]
    if of_uri == gallery.modality:
        item_queries.rewrite_items(
            connection, gallery.id, [(row, i.uri, i.label, i.attributes) for row, i in items]
        )
    else:
        others = [(row, {of_uri: i.uri, **i.other_uris}) for row, i in items]
    modality_queries.add_uris(connection, gallery.id, [(row, uris) for row, uris in others if uris])


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
