"""The dashboard views, read as they stand: what the CLI prints is what a dashboard reads."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection

from orchestrator.errors import UsageError
from orchestrator.ledger.queries.run import execute

# View -> (columns that may filter, order). Names never come from a user: they are looked up here.
VIEWS: dict[str, tuple[frozenset[str], str]] = {
    "rollout_status": (frozenset({"id", "gallery"}), "id DESC"),
    "queue_status": (frozenset({"rollout"}), "rollout, band"),
    "worker_health": (frozenset({"live"}), "last_heartbeat DESC"),
    # No order either: its parts are long, and come in an order of their own.
    "errors": (frozenset({"rollout", "gallery", "class"}), ""),
    # No order: a version is looked up an item at a time, and sorting would look up all of them.
    "embedding_versions": (frozenset({"gallery", "item"}), ""),
    "coverage_by_model": (frozenset({"gallery"}), "gallery, items DESC"),
    "flip_summary": (
        frozenset({"rollout", "gallery", "queryset", "slice", "k"}),
        "rollout, queryset, k, slice, seq",
    ),
    "flip_items": (
        frozenset({"rollout", "queryset", "kind", "reference", "cause", "k"}),
        "opened_seq, queryset, query, k, reference",
    ),
    "churn_summary": (
        frozenset({"rollout", "gallery", "queryset", "relevance", "slice", "point"}),
        "rollout, queryset, slice, seq",
    ),
    "click_summary": (
        frozenset({"rollout", "gallery", "queryset", "slice", "k"}),
        "rollout, queryset, k, slice, seq",
    ),
    "click_items": (
        frozenset({"rollout", "queryset", "kind", "reference", "cause", "k"}),
        "opened_seq, queryset, query, k, reference",
    ),
    "match_threshold": (
        frozenset({"rollout", "gallery", "queryset", "scores"}),
        "rollout, queryset, scores, seq",
    ),
    "refresh_curve": (
        frozenset({"rollout", "metric", "against_order", "queryset"}),
        "metric, against_order, queryset, coverage",
    ),
    "gate_decisions": (frozenset({"rollout", "gate", "queryset", "newest"}), "decided_at, gate, queryset"),
    "traffic": (frozenset({"rollout", "gallery"}), "rollout, revision"),
    "shadow": (frozenset({"rollout", "gallery"}), "rollout, coverage_from"),
    "shadow_samples": (frozenset({"rollout", "served"}), "rollout, id"),
    "downstream_modules": (frozenset({"module", "model"}), "module"),
    "downstream_certificates": (frozenset({"module", "model", "verdict", "newest"}), "id"),
    "serving_history": (frozenset({"gallery"}), "gallery, valid_from"),
    "audit": (frozenset({"actor", "action", "target"}), "at"),
}


def read_view(
    connection: Connection,
    view: str,
    *,
    limit: int = 1000,
    offset: int = 0,
    newest: bool = False,
    **filters: Any,
) -> list[dict[str, Any]]:
    """Rows of a reporting view; filters with value None are left out.

    Args:
        newest: only the last row in the view's order (with its filters).

    Raises:
        UsageError: no such view, or a column that may not filter it.
    """
    if view not in VIEWS:
        raise UsageError(f"there is no reporting view {view!r}; there are {', '.join(sorted(VIEWS))}.")
    allowed, order = VIEWS[view]
    given = {name: value for name, value in filters.items() if value is not None}
    if unknown := set(given) - allowed:
        raise UsageError(
            f"view {view} cannot be filtered by {', '.join(sorted(unknown))}; use {', '.join(sorted(allowed))}."
        )
    where = " AND ".join(f'"{name}" = :{name}' for name in given) or "true"
    if newest:
        order = ", ".join(f"{column} DESC" for column in order.split(", "))
        limit = 1
    ordered = f"ORDER BY {order}" if order else ""
    sql = f"SELECT * FROM reporting.{view} WHERE {where} {ordered} LIMIT :row_limit OFFSET :row_offset"  # noqa: S608
    result = execute(connection, f"read_view.{view}", sql, row_limit=limit, row_offset=offset, **given)
    return [dict(row) for row in result.mappings()]


def column_types(connection: Connection, view: str) -> dict[str, str]:
    """Column -> type, as SQL names it, of a reporting view, in its order."""
    found = execute(
        connection,
        "column_types",
        """SELECT column_name, data_type FROM information_schema.columns
           WHERE table_schema = 'reporting' AND table_name = :view ORDER BY ordinal_position""",
        view=view,
    )
    return {str(name): str(kind) for name, kind in found}
