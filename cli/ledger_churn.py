"""`hotrefresh ledger churn` and `ledger clicks`: what changes where nobody knows, or only clicks tell, what is right."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import Limit, RolloutName
from cli.output import Format, Output, show_rows
from cli.session import next_step, open_ledger, say
from models.errors import UsageError

if TYPE_CHECKING:
    from orchestrator.context import Context

QuerySet = Annotated[str | None, typer.Option(help="Only this query set.")]
History = Annotated[
    bool, typer.Option("--history", help="After every batch, as it was written, instead of only now.")
]
Slice = Annotated[
    str,
    typer.Option("--slice", help="all, or one such as tenant=acme; with --history also each for every one."),
]


class ClickKind(StrEnum):
    """What became of a clicked item."""

    LOSS = "loss"
    GAIN = "gain"


def add_commands(app: typer.Typer) -> None:
    """Make both commands of a group."""
    app.command(epilog="Example: hotrefresh ledger churn photos")(churn)
    app.command(epilog="Example: hotrefresh ledger clicks photos --items --kind loss")(clicks)


def churn(
    rollout: RolloutName,
    queryset: QuerySet = None,
    of_slice: Slice = "all",
    history: History = False,
    limit: Limit = 1000,
    output: Output = Format.TABLE,
) -> None:
    """Show how far the queries' answers are from the old system's: overlap, rank-biased overlap, first answers changed."""
    rollout_id, rows = _counts("churn_summary", rollout, queryset, of_slice, history, limit)
    columns = ("queryset", "relevance", "slice", "coverage", "n", "k", "overlap", "rbo", "p", "first_changed")
    show_rows("churn", rows, columns, output)
    _cut(rows, limit)
    next_step(f"rollout status {rollout_id}")


def clicks(
    rollout: RolloutName,
    queryset: QuerySet = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="At this k; the counts: 1 unless given.")
    ] = None,
    of_slice: Slice = "all",
    history: History = False,
    items: Annotated[bool, typer.Option("--items", help="Each query instead of the counts.")] = False,
    kind: Annotated[ClickKind | None, typer.Option(help="Of --items: only these.")] = None,
    limit: Limit = 1000,
    output: Output = Format.TABLE,
) -> None:
    """Show what became of clicked items: lost or gained among the k first answers. Clicks are weak: these are no flips."""
    if items:
        with open_ledger() as context:
            from orchestrator.service.listings import view

            rollout_id = _rollout_id(context, rollout, queryset)
            known: dict[str, Any] = {"queryset": queryset, "k": k, "kind": kind, "reference": "old_system"}
            rows = view(context, "click_items", limit=limit, rollout=rollout_id, **known)
        columns: tuple[str, ...] = (
            "queryset", "query", "kind", "k", "old_item", "new_item", "old_score", "new_score", "cause", "healed_at",
        )  # fmt: skip
        show_rows("clicks", rows, columns, output)
    else:
        if kind is not None:
            raise UsageError("--kind is about single queries; add --items.")
        rollout_id, rows = _counts("click_summary", rollout, queryset, of_slice, history, limit, k=k or 1)
        columns = (
            "queryset", "slice", "coverage", "n", "k", "click_losses", "click_gains", "loss_rate", "gain_rate", "ci_low",
            "ci_high",
        )  # fmt: skip
        show_rows("click_summary", rows, columns, output)
    _cut(rows, limit)
    next_step(f"ledger churn {rollout_id}")


def _counts(
    name: str, rollout: str, queryset: str | None, of_slice: str, history: bool, limit: int, **filters: Any
) -> tuple[int, list[dict[str, Any]]]:
    """The rollout's id, and the view's rows: the newest of each query set, or all of them."""
    if of_slice == "each" and not history:
        raise UsageError("--slice each lists what was written when; add --history.")
    with open_ledger() as context:
        rollout_id = _rollout_id(context, rollout, queryset)
        if history:
            from orchestrator.service.listings import view

            named = None if of_slice == "each" else of_slice
            asked = {"rollout": rollout_id, "queryset": queryset, "slice": named, **filters}
            return rollout_id, view(context, name, limit=limit, **asked)
        from orchestrator.service.listings import newest_of_query_sets

        asked = {"slice": of_slice, **filters}
        return rollout_id, newest_of_query_sets(context, name, rollout_id, queryset, **asked)[:limit]


def _rollout_id(context: Context, name: str, queryset: str | None) -> int:
    from orchestrator.service.listings import rollout, rollouts_query_set

    row = rollout(context, name)
    if queryset is not None:
        rollouts_query_set(context, row, queryset)
    return row.id


def _cut(rows: list[dict[str, Any]], limit: int) -> None:
    if len(rows) == limit:
        say(f"only the first {limit} rows are shown; raise --limit, or use `hotrefresh ledger export`")
