"""`hotrefresh queryset background`: items that answer no query, by which scores are made comparable."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.options import GalleryName, Split
from cli.output import Format, Output, draw, make_pairs, plain, show
from cli.progress import progress
from cli.session import confirm, next_step, open_ledger, say


def background(
    gallery: GalleryName,
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE",
            help="Items that answer no query, in place of those there are. Without it: show.",
        ),
    ] = None,
    split: Split = None,
    neighbour: Annotated[
        int, typer.Option(min=1, help="A query's level is its score with the so-many-th nearest of them.")
    ] = 10,
    beta: Annotated[float, typer.Option(min=0, help="How many times the level is taken off a score.")] = 2.0,
    remove: Annotated[bool, typer.Option("--remove", help="Take the set away.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Of --remove: do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show, set, replace or remove a gallery's background set: rollouts then track adjusted thresholds too.

    A rollout keeps the set it was first measured with.
    """
    from models.errors import UsageError

    if remove and source is not None:
        raise UsageError("--remove takes no SOURCE; to replace the set, give the SOURCE alone.")
    with open_ledger() as context:
        from orchestrator.service import background_sets
        from orchestrator.service.guide import next_command

        if remove:
            effect = f"Removing the background set of gallery {gallery}: later rollouts have no adjusted thresholds."
            shown = background_sets.show_background(context, gallery)
            confirm(effect, yes=yes)
            background_sets.remove_background(context, gallery)
        elif source is None:
            shown = background_sets.show_background(context, gallery)
        else:
            with progress("reading the background", "items") as update:
                shown = background_sets.set_background(
                    context,
                    gallery,
                    source,
                    split=split,
                    neighbour=neighbour,
                    beta=beta,
                    progress=update,
                )
        then = next_command(context, gallery)
    row = plain(shown) | {"removed": remove}
    if not show(row, output):
        if source is None and not remove:
            draw(
                make_pairs(
                    {name: row[name] for name in ("source", "items", "neighbour", "beta", "created_at")}
                )
            )
        elif remove:
            say(f"gallery {gallery} has no background set any more")
        else:
            left_out = f", {shown.rejected} left out that cannot be read" if shown.rejected else ""
            say(f"background of {gallery}: {shown.items} items{left_out}; n = {neighbour}, beta = {beta:g}")
    next_step(then)
