"""`/audit`: who did what, when, to what."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.context import Context
from orchestrator.dashboard.paging import Page, number_of
from orchestrator.dashboard.site import Site
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import dashboard as dashboard_queries

A_PAGE = 50
FILTERS = ("actor", "action", "target")


def routes(site: Site) -> list[Route]:
    """The page's address."""

    async def show(request: Request) -> Response:
        filters = {name: request.query_params.get(name) or None for name in FILTERS}
        page = number_of(request.query_params.get("page"))
        return site.page(request, "audit.html", **await site.read(read, site.context, filters, page))

    return [Route("/audit", show)]


def read(context: Context, filters: dict[str, str | None], number: int) -> dict[str, Any]:
    """What the page shows."""
    with snapshot(context.engine) as connection:
        rows = dashboard_queries.audit_page(
            connection, filters, limit=A_PAGE + 1, offset=(number - 1) * A_PAGE
        )
    return {
        "filters": filters,
        "rows": rows[:A_PAGE],
        "page": Page(number, A_PAGE, more=len(rows) > A_PAGE),
    }
