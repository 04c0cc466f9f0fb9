"""`/serving`: which model answered a gallery's queries, from when to when, and who switched."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.context import Context
from orchestrator.dashboard.lookups import gallery_names
from orchestrator.dashboard.paging import Page, number_of
from orchestrator.dashboard.site import Site
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import dashboard as dashboard_queries
from orchestrator.service.names import find_gallery

A_PAGE = 50


def routes(site: Site) -> list[Route]:
    """The page's address."""

    async def show(request: Request) -> Response:
        gallery, page = (
            request.query_params.get("gallery") or None,
            number_of(request.query_params.get("page")),
        )
        return site.page(request, "serving.html", **await site.read(read, site.context, gallery, page))

    return [Route("/serving", show)]


def read(context: Context, gallery: str | None, number: int) -> dict[str, Any]:
    """What the page shows. Raises NotFoundError for no such gallery."""
    with snapshot(context.engine) as connection:
        if gallery is not None:
            find_gallery(connection, gallery)
        rows = dashboard_queries.serving_page(
            connection, gallery, limit=A_PAGE + 1, offset=(number - 1) * A_PAGE
        )
        galleries = gallery_names(connection)
    return {
        "gallery": gallery,
        "galleries": galleries,
        "rows": rows[:A_PAGE],
        "page": Page(number, A_PAGE, more=len(rows) > A_PAGE),
    }
