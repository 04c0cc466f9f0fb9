"""From what stands in an address to what the ledger holds: rollouts, galleries, the contents of items and queries."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection

from models.errors import ItemError, UsageError
from orchestrator.context import Context
from orchestrator.dashboard.words import excerpt
from orchestrator.errors import NotFoundError
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import dashboard as dashboard_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import modalities as modality_queries
from orchestrator.ledger.rows import GalleryRow, ItemRow
from orchestrator.service import listings
from orchestrator.service.names import find_gallery, find_item
from orchestrator.service.wait import RolloutStatus, read_status

BIGGEST_ID = 2**63 - 1


def status_of(context: Context, rollout_id: int) -> RolloutStatus:
    """The snapshot of a rollout. Raises NotFoundError."""
    if rollout_id > BIGGEST_ID:
        raise NotFoundError(f"there is no rollout {str(rollout_id)[:20]}.")
    return read_status(context, rollout_id)


def gallery_names(connection: Connection) -> list[str]:
    """All galleries, oldest first."""
    return [gallery.name for gallery in gallery_queries.list_galleries(connection)]


@dataclass(frozen=True)
class Shown:
    """What a page shows of an item or a query.

    Attributes:
        version: of an item, its row of `embedding_versions`; None for a query, or an item that is not embedded.
        text: of a text, its beginning; None for a picture or a clip.
        fault: why it cannot be shown; None where it can.
    """

    key: str
    label: str | None
    text: str | None
    fault: str | None
    version: dict[str, Any] | None


def items_shown(connection: Connection, gallery: str, keys: Iterable[str]) -> dict[str, Shown]:
    """Key → what to show of these items; one that was deleted is named as such."""
    wanted = sorted(set(keys))
    found = {row["item"]: row for row in dashboard_queries.items_by_key(connection, gallery, wanted)}
    return {
        key: _shown(key, found[key], found[key] if found[key]["model"] else None)
        if key in found
        else Shown(key, None, None, "it is not in the gallery any more", None)
        for key in wanted
    }


def queries_shown(
    connection: Connection, gallery_id: int, asked: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Shown]:
    """(query set, key) → what to show of these queries."""
    shown = {}
    for queryset in sorted({name for name, _ in asked}):
        keys = sorted({key for name, key in asked if name == queryset})
        for row in dashboard_queries.queries_by_key(connection, gallery_id, queryset, keys):
            shown[queryset, row["key"]] = _shown(row["key"], row, None)
    return shown


def _shown(key: str, row: dict[str, Any], version: dict[str, Any] | None) -> Shown:
    from models.datasets import SHOWN_BY_WORDS

    text, fault = beginning(row["uri"]) if row["uri"].partition(":")[0] in SHOWN_BY_WORDS else (None, None)
    return Shown(key, row["label"], text, fault, version)


def others_shown(connection: Connection, gallery: GalleryRow, item: ItemRow) -> dict[str, Shown]:
    """Modality → what to show of an item in each modality but the gallery's."""
    uris = modality_queries.uris_of_item(connection, gallery.id, item.row)
    return {
        modality: with_fault(_shown(item.key, {"label": item.label, "uri": uri}, None), uri)
        for modality, uri in uris.items()
        if modality != gallery.modality
    }


def with_fault(shown: Shown, uri: str) -> Shown:
    """Of a picture that cannot be read: the same with its fault. It is decoded, so only for one at a time."""
    if shown.text is not None:
        return shown
    from orchestrator.dashboard.pictures import thumbnail

    try:
        thumbnail(uri)
    except (ItemError, UsageError) as error:
        return replace(shown, fault=str(error).rstrip("."))
    return shown


def beginning(uri: str) -> tuple[str | None, str | None]:
    """The beginning of a text, or why it cannot be read."""
    from models.datasets import read_item

    try:
        content = read_item(uri)
    except (ItemError, UsageError) as error:
        return None, str(error)
    if not isinstance(content, str):
        content = getattr(content, "sentence", content)  # of a plot segment there is no picture
    return (excerpt(content), None) if isinstance(content, str) else (None, "it is no text")


def uri_of_item(context: Context, gallery_name: str, key: str, modality: str | None = None) -> str:
    """Where an item lies, by the ledger; None: in its gallery's own modality. Raises NotFoundError."""
    if modality is None:
        return listings.item_uri(context, gallery_name, key)
    with snapshot(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        item = find_item(connection, gallery, key)
        uri = modality_queries.uris_of_item(connection, gallery.id, item.row).get(modality)
    if uri is None:
        raise NotFoundError(f"item {key[:200]!r} of gallery {gallery.name!r} has no {modality[:80]}.")
    return uri


def uri_of_query(context: Context, gallery_name: str, queryset: str, key: str) -> str:
    """Where a query lies, by the ledger. Raises NotFoundError."""
    with snapshot(context.engine) as connection:
        gallery = find_gallery(connection, gallery_name)
        rows = dashboard_queries.queries_by_key(connection, gallery.id, queryset, [key])
    if not rows:
        raise NotFoundError(
            f"query set {queryset[:200]!r} of gallery {gallery.name!r} has no query {key[:200]!r}."
        )
    return str(rows[0]["uri"])
