"""`/rollouts/ID`: one rollout as it goes on. The numbers are those of `hotrefresh rollout status`."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.context import Context
from orchestrator.core.states import TERMINAL
from orchestrator.dashboard import curves
from orchestrator.dashboard.actions import offered
from orchestrator.dashboard.lookups import status_of
from orchestrator.dashboard.site import Site
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import dashboard as dashboard_queries
from orchestrator.ledger.queries.reporting import read_view
from orchestrator.service import guide, listings

ERRORS = HAPPENED = 8
# What a verb says on the page that it leads to.
DONE = {
    "pause": "The rollout is paused: nothing that was claimed before is committed any more.",
    "resume": "The rollout goes on.",
    "finalize": "The upgrade is accepted.",
    "cancel": "The rollout is cancelled: the old model serves with the old vectors again.",
    "rollback": "The rollout is rolled back: the old model serves with the old vectors again.",
}


def routes(site: Site) -> list[Route]:
    """The page's address."""

    async def show(request: Request) -> Response:
        data = await site.read(read, site.context, request.path_params["rollout_id"])
        said = DONE.get(request.query_params.get("done", ""))
        return site.page(request, "rollout.html", said=said, **data)

    return [Route("/rollouts/{rollout_id:int}", show)]


def read(context: Context, rollout_id: int) -> dict[str, Any]:
    """What the page shows."""
    status = status_of(context, rollout_id)
    rollout = status.rollout
    row = listings.rollout(context, str(rollout_id))
    order = row.order_name
    with snapshot(context.engine) as connection:
        measured = dashboard_queries.measured_points(connection, rollout_id)
        others = [
            row
            for row in read_view(connection, "refresh_curve", rollout=rollout_id, limit=20_000)
            if row["against_order"] != "measured"
        ]
        seqs = sorted({row["seq"] for row in measured if row["k"] == 1})
        causes = dashboard_queries.flips_by_cause(connection, rollout_id, seqs)
        thresholds = read_view(connection, "match_threshold", rollout=rollout_id, limit=20_000)
        split = read_view(connection, "traffic", rollout=rollout_id, newest=True)
        shadow = read_view(connection, "shadow", rollout=rollout_id)
        errors = read_view(connection, "errors", rollout=rollout_id, limit=ERRORS + 1)
        workers = read_view(connection, "worker_health", live=True, limit=50)
        happened = dashboard_queries.audit_page(
            connection, {"target": str(rollout_id)}, limit=HAPPENED, offset=0
        )
    recall_charts = curves.recall_charts(measured, others, order)
    return {
        "status": status,
        "rollout": rollout,
        "done": int(rollout["committed"]) + int(rollout["quarantined"]),
        "is_over": status.state in TERMINAL,
        "order": order,
        "reorder": row.config.get("reorder"),
        "offered": offered(status),
        "recall_charts": recall_charts,
        "charts": curves.in_order(
            recall_charts, curves.cause_charts(measured, causes), curves.threshold_charts(thresholds)
        ),
        "has_random": any(line.style == "random" for chart in recall_charts for line in chart.lines),
        "split": split[0] if split else None,
        "shadow": shadow,
        "errors": errors[:ERRORS],
        "more_errors": len(errors) > ERRORS,
        "workers": workers,
        "happened": happened,
        "next_command": guide.next_command(context, rollout["gallery"]),
    }
