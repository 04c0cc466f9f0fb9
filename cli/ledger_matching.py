"""`hotrefresh ledger thresholds`: at which score answers may be accepted, along a refresh."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Limit, RolloutName
from cli.output import Format, Output, show_rows
from cli.session import next_step, open_ledger, say

QuerySet = Annotated[str | None, typer.Option(help="Only this query set.")]
Newest = Annotated[bool, typer.Option("--newest", help="Only the newest of each query set.")]


def thresholds(
    rollout: RolloutName,
    queryset: QuerySet = None,
    newest: Newest = False,
    limit: Limit = 1000,
    output: Output = Format.TABLE,
) -> None:
    """Show the score at 90 % precision by coverage, and who is lost or gained at the old system's: matching flips."""
    with open_ledger() as context:
        from orchestrator.service import listings

        row = listings.rollout(context, rollout)
        if queryset is not None:
            listings.rollouts_query_set(context, row, queryset)
        if newest:
            rows = listings.newest_of_query_sets(context, "match_threshold", row.id, queryset)[:limit]
        else:
            rows = listings.view(context, "match_threshold", limit=limit, rollout=row.id, queryset=queryset)
    columns = (
        "queryset", "coverage", "n", "true_pairs", "micro_ap", "recall_at_p90", "threshold", "old_threshold", "accepted",
        "accepted_right", "lost", "gained",
    )  # fmt: skip
    show_rows("thresholds", rows, columns, output)
    if len(rows) == limit:
        say(f"only the first {limit} rows are shown; raise --limit, or use `hotrefresh ledger export`")
    next_step(f"ledger flips {row.id}")
