"""`/certificates`: may these two models meet in one search? A matrix, model by model, for one query set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.context import Context
from orchestrator.dashboard.site import Site
from orchestrator.errors import NotFoundError
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import dashboard as dashboard_queries
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries

# Shades of a cell: recall 0..1 in so many steps.
SHADES = 5
Row = dict[str, Any]


def routes(site: Site) -> list[Route]:
    """The page's address."""

    async def show(request: Request) -> Response:
        chosen = request.query_params.get("set") or None
        return site.page(request, "certificates.html", **await site.read(read, site.context, chosen))

    return [Route("/certificates", show)]


def read(context: Context, wanted: str | None) -> dict[str, Any]:
    """What the page shows. `wanted`: GALLERY/QUERYSET; unless given, the query set that was certified on last, or the newest.

    Raises:
        NotFoundError: no such query set.
    """
    with snapshot(context.engine) as connection:
        sets = [
            (each, row)
            for each in gallery_queries.list_galleries(connection)
            for row in gallery_queries.query_sets_of_gallery(connection, each.id)
        ]
        found = {
            row.id: dashboard_queries.newest_certificates(connection, row.id)
            for each, row in sets
            if wanted in (None, f"{each.name}/{row.name}")
        }
        models = model_queries.list_models(connection)
        modules = dashboard_queries.modules_page(connection)
    if wanted is not None and not found:
        raise NotFoundError(
            f"there is no query set {wanted[:200]!r}; `hotrefresh queryset list` shows those there are."
        )
    last = max(found, key=lambda id_: (max((c["id"] for c in found[id_]), default=0), id_), default=None)
    chosen = next(((each, row) for each, row in sets if row.id == last), None)
    certificates = found[last] if last is not None else []
    modality = chosen[0].modality if chosen else None
    measured = {row[end] for row in certificates for end in ("query_model", "gallery_model")}
    names = [model.name for model in models if model.modality == modality or model.name in measured]
    return {
        "sets": [(each.name, row.name) for each, row in sets],
        "chosen": None if chosen is None else (chosen[0].name, chosen[1].name),
        "models": names,
        "cells": cells_of(names, certificates),
        "certificates": certificates,
        "modules": modules,
    }


def cells_of(models: Sequence[str], certificates: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    """(query model, gallery model) → what was measured, the best first; a model with itself from its pairs' measurements."""
    cells: dict[tuple[str, str], list[Row]] = {}
    for row in certificates:
        measured = row["measured"]
        cells.setdefault((row["query_model"], row["gallery_model"]), []).append(
            row | _shown(measured.get("new_old"), measured)
        )
    for row in certificates:
        measured = row["measured"]
        # Of the new model's own gallery the end of a simulated refresh speaks, where no adapter stands in between.
        alone = [(row["gallery_model"], measured.get("old_old"))]
        if row["adapter"] is None or measured.get("adapter_maps") == "gallery":
            alone.append((row["query_model"], measured.get("new_new")))
        for name, value in alone:
            if value is not None and name in models:
                cells.setdefault(
                    (name, name),
                    [{"verdict": None, "adapter": None} | _shown(value, measured)],
                )
    order = {"certified": 0, "inconclusive": 1, "refused": 2, None: 3}
    return {pair: sorted(rows, key=lambda row: order[row["verdict"]]) for pair, rows in cells.items()}


def _shown(value: float | None, measured: Row) -> Row:
    """A recall in its cell, and among how many items it was measured."""
    return {"value": value, "shade": shade(value), "sampled_items": measured.get("sampled_items")}


def shade(value: float | None) -> int:
    """0 (no value, or the lowest) … SHADES - 1."""
    return 0 if value is None else min(SHADES - 1, max(0, int(value * SHADES)))
