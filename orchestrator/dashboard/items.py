"""`/items`: one item's embedding versions over time, and what serves it now."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.context import Context
from orchestrator.dashboard.lookups import gallery_names, items_shown, others_shown, with_fault
from orchestrator.dashboard.site import Site
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import dashboard as dashboard_queries
from orchestrator.ledger.queries import directory as directory_queries
from orchestrator.ledger.queries import log as log_queries
from orchestrator.service.names import find_gallery, find_item
from orchestrator.serving.filters import attributes_of

FIRST_ITEMS = 12


def routes(site: Site) -> list[Route]:
    """The page's address."""

    async def show(request: Request) -> Response:
        gallery, key = request.query_params.get("gallery") or None, request.query_params.get("key") or None
        return site.page(request, "items.html", **await site.read(read, site.context, gallery, key))

    return [Route("/items", show)]


def read(context: Context, gallery_name: str | None, key: str | None) -> dict[str, Any]:
    """What the page shows; without a key some to begin with.

    Raises:
        NotFoundError: no such gallery, or no such item in it.
    """
    with snapshot(context.engine) as connection:
        galleries = gallery_names(connection)
        base: dict[str, Any] = {
            "galleries": galleries,
            "gallery": None,
            "item": None,
            "first": [],
            "key": key,
        }
        if gallery_name is None and len(galleries) == 1:
            gallery_name = galleries[0]
        if gallery_name is None:
            return base
        gallery = find_gallery(connection, gallery_name)
        base["gallery"] = gallery
        if key is None:
            return base | {"first": directory_queries.items_from(connection, gallery.id, 0, FIRST_ITEMS)}
        item = find_item(connection, gallery, key)
        shown = items_shown(connection, gallery.name, [key])[key]
        return base | {
            "item": with_fault(shown, item.uri),
            "others": others_shown(connection, gallery, item),
            "row": item.row,
            "attributes": _attributes(connection, gallery.id, item.row, shown.version),
            "history": dashboard_queries.item_history(connection, gallery.id, item.row),
        }


def _attributes(
    connection: Connection, gallery_id: int, row: int, version: dict[str, Any] | None
) -> dict[str, str]:
    """Of the content that the item's vector was made of; its present ones where it has none."""
    versions = {row: None if version is None else version["rollout"]}
    return attributes_of(connection, gallery_id, versions, log_queries.last_seq(connection, gallery_id))[row]
