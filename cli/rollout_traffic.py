"""`hotrefresh rollout canary` and `rollout promote`: how much of the traffic the new system answers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import RolloutName
from cli.output import Format, Output, show
from cli.session import next_step, open_ledger, say

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.context import Context
    from orchestrator.ledger.rows import RolloutRow

Canary = Annotated[
    float | None,
    typer.Option(
        "--canary",
        min=0,
        max=100,
        help="Percent of the traffic that the new model answers; 0: none, it is only measured. Unless given: all of it.",
    ),
]
Shadow = Annotated[
    float,
    typer.Option(
        "--shadow",
        min=0,
        max=1,
        help="Part of the queries that both systems answer; alone it means --canary 0. It ends with the canary.",
    ),
]


def add_commands(app: typer.Typer, finalize: Callable[..., None]) -> None:
    """Make both commands of a group. `finalize`: what `promote` does where no canary goes on."""
    app.command(epilog="Example: hotrefresh rollout canary photos 10")(canary)

    @app.command(epilog="Example: hotrefresh rollout promote photos")
    def promote(rollout: RolloutName, output: Output = Format.TABLE) -> None:
        """End a canary: all traffic goes to the new system. Without a canary it finalizes, as `rollout finalize`."""
        with open_ledger() as context:
            from orchestrator.service.traffic import change, under_way

            going_on = under_way(context, rollout) is not None
            if going_on:
                _changed(context, change(context, rollout, 100.0), output)
        if not going_on:
            finalize(rollout, when_ready=False, output=output)


def canary(
    rollout: RolloutName,
    percent: Annotated[
        float | None,
        typer.Argument(min=0, max=100, help="Of the traffic, to the new system; 100 ends the canary."),
    ] = None,
    shadow: Annotated[
        float | None, typer.Option(min=0, max=1, help="Part of the queries that both systems answer.")
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Change how much of the traffic the new system answers; every server follows within two seconds.

    Raising it moves nobody back to the old system. Exit code 4: the rollout has no canary, or its state allows none.
    """
    with open_ledger() as context:
        from orchestrator.service.traffic import change

        _changed(context, change(context, rollout, percent, shadow), output)


def _changed(context: Context, row: RolloutRow, output: Format) -> None:
    from orchestrator.service.traffic import under_way

    split = under_way(context, row.id)
    values: dict[str, Any] = {
        "rollout": row.id,
        "state": row.state,
        "canary": 100.0 if split is None else split.canary,
        "shadow": 0.0 if split is None else split.shadow,
    }
    if not show(values, output):
        say(
            f"the new system answers {values['canary']:g} % of the traffic of rollout {row.id}"
            + (f", both answer {100 * split.shadow:g} %" if split is not None and split.shadow else "")
        )
    next_step(f"ledger shadow {row.id}" if split is not None else f"rollout status {row.id}")
