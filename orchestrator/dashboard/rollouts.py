"""`/`: every gallery with what serves it and the rollout that goes on; below, the rollouts of before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.context import Context
from orchestrator.core.states import ACTIVE, RolloutState
from orchestrator.dashboard.paging import Page, number_of
from orchestrator.dashboard.site import Site
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import dashboard as dashboard_queries
from orchestrator.ledger.queries import gates as gate_queries
from orchestrator.ledger.queries import metrics as metric_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import guide, listings
from orchestrator.service.background import live_workers

MOST_ROLLOUTS = 500
EARLIER_A_PAGE = 20


def routes(site: Site) -> list[Route]:
    """The page's address."""

    async def show(request: Request) -> Response:
        page = number_of(request.query_params.get("page"))
        return site.page(request, "rollouts.html", **await site.read(read, site.context, page))

    return [Route("/", show)]


def read(context: Context, page: int) -> dict[str, Any]:
    """What the page shows: the rows of the views that `rollout status` reads, for all galleries at once."""
    galleries = listings.galleries(context)
    with snapshot(context.engine) as connection:
        shown = metric_queries.rollouts_shown(connection, MOST_ROLLOUTS)
        ids = [row["id"] for row in shown]
        summaries = dashboard_queries.newest_summaries(connection, ids)
        churn = dashboard_queries.churn_without_relevance(connection, ids)
        gates = gate_queries.answers_shown(connection, ids)
        coverage = read_view(connection, "coverage_by_model")
        earlier = read_view(
            connection,
            "rollout_status",
            limit=EARLIER_A_PAGE + 1,
            offset=(page - 1) * EARLIER_A_PAGE,
        )
    status = told_of(shown)
    return {
        "galleries": [
            {
                **gallery,
                "live_items": gallery["n_items"] - gallery["n_deleted"],
                "status": status.get(gallery["name"]),
                "is_active": _is_active(status.get(gallery["name"])),
                "coverage": [row for row in coverage if row["gallery"] == gallery["name"]],
                "flips": _of(summaries, status.get(gallery["name"])),
                "churn": _of(churn, status.get(gallery["name"])),
                "gates": _of(gates, status.get(gallery["name"])),
            }
            for gallery in galleries
        ],
        "workers_alive": len(live_workers(context)),
        "rollouts": earlier[:EARLIER_A_PAGE],
        "page": Page(page, EARLIER_A_PAGE, more=len(earlier) > EARLIER_A_PAGE),
        "next_command": guide.next_command(context),
    }


def told_of(rollouts: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Gallery → the rollout to tell of, out of rows of `rollout_status`, newest first: the one that goes on, or the newest.

    They differ where a newer one was taken back and the older one goes on.
    """
    chosen: dict[str, dict[str, Any]] = {}
    for row in rollouts:
        if row["gallery"] not in chosen or (_is_active(row) and not _is_active(chosen[row["gallery"]])):
            chosen[row["gallery"]] = row
    return chosen


def _is_active(row: dict[str, Any] | None) -> bool:
    return row is not None and RolloutState(row["state"]) in ACTIVE


def _of(rows: list[dict[str, Any]], rollout: dict[str, Any] | None) -> list[dict[str, Any]]:
    return [row for row in rows if rollout is not None and row["rollout"] == rollout["id"]]
