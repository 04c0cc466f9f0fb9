"""`hotrefresh ledger thresholds` and `ledger verify`: what may be accepted along a refresh, and which answer is a copy."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from cli.options import Limit, RolloutName
from cli.output import Format, Output, show, show_rows
from cli.progress import progress
from cli.session import next_step, open_ledger, say

QuerySet = Annotated[str | None, typer.Option(help="Only this query set.")]
Newest = Annotated[bool, typer.Option("--newest", help="Only the newest of each query set.")]

Scores = StrEnum("Scores", ["SERVED", "ADJUSTED"])


def thresholds(
    rollout: RolloutName,
    queryset: QuerySet = None,
    newest: Newest = False,
    scores: Annotated[
        Scores,
        typer.Option(
            help="As they are served, or less those of the gallery's background set (`queryset background`)."
        ),
    ] = Scores.SERVED,
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
            rows = listings.newest_of_query_sets(context, "match_threshold", row.id, queryset, scores=scores)[
                :limit
            ]
        else:
            rows = listings.view(
                context, "match_threshold", limit=limit, rollout=row.id, queryset=queryset, scores=scores
            )
        none = None
        if scores is Scores.ADJUSTED and not rows:
            from orchestrator.service.background_sets import why_none

            none = why_none(context, row)
    columns: tuple[str, ...] = (
        "queryset", "coverage", "n", "true_pairs", "micro_ap", "recall_at_p90", "threshold", "old_threshold", "accepted",
        "accepted_right", "lost", "gained",
    )  # fmt: skip
    if scores is Scores.ADJUSTED:
        columns += ("background_n", "neighbour", "beta")
    show_rows("thresholds", rows, columns, output)
    if none is not None:
        say(none)
    if len(rows) == limit:
        say(f"only the first {limit} rows are shown; raise --limit, or use `hotrefresh ledger export`")
    next_step(f"ledger flips {row.id}")


def verify(
    rollout: RolloutName,
    limit: Annotated[
        int, typer.Option(min=0, help="Compare so many flips at most; again for the rest.")
    ] = 1000,
    export: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.csv",
            help="Write all verified pairs of the rollout, also those of before: query, item (URIs), matches.",
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Verify flips of pictures by local matching: is the old answer a copy of the query, or the new one?"""
    with open_ledger() as context:
        from orchestrator.service import listings
        from orchestrator.service.verify import export_verified, verify_flips

        row = listings.rollout(context, rollout)
        with progress("verifying", "flips") as update:
            done = verify_flips(context, row, limit, update)
        pairs = None if export is None else export_verified(context, row, export)
    document = {
        "rollout": row.id,
        **vars(done),
        **({} if export is None else {"path": export, "pairs": pairs}),
    }
    if not show(document, output):
        say(
            f"{done.compared} flips compared, {done.unread} with a picture that cannot be read, {done.waiting} wait"
        )
        if export is not None:
            say(f"{pairs} verified pairs in {export}")
    next_step(f"ledger flips {row.id}")
