"""`hotrefresh ledger shadow`: what both systems answered to the same live queries."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import Limit, RolloutName
from cli.output import Format, Output, show_rows
from cli.session import next_step, open_ledger


def shadow(
    rollout: RolloutName,
    samples: Annotated[
        bool, typer.Option("--samples", help="The newest queries that were answered differently.")
    ] = False,
    limit: Limit = 1000,
    output: Output = Format.TABLE,
) -> None:
    """Show how the answers of the old and the new system to live queries differ, for each 5 % of coverage.

    label_…: queries by an item that has a label, right where the first other answer has the same one. Query sets count apart.
    """
    with open_ledger() as context:
        from orchestrator.service.listings import rollout as find
        from orchestrator.service.listings import view

        rollout_id = find(context, rollout).id
        rows = view(context, "shadow_samples" if samples else "shadow", limit=limit, rollout=rollout_id)
    if samples:
        columns: tuple[str, ...] = ("at", "served", "coverage", "old_rows", "new_rows", "content")
    else:
        columns = (
            "coverage_from", "n", "k", "overlap", "rbo", "first_changed", "label_n", "label_negative_flips",
            "label_positive_flips", "dropped", "failed",
        )  # fmt: skip
    show_rows("shadow", rows, columns, output)
    next_step(f"rollout canary {rollout_id} 10")
