"""`hotrefresh gallery demand`: how often items are retrieved."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.gallery import app
from cli.options import GalleryName, Yes
from cli.output import Format, Output, draw, make_pairs, make_table, plain, show
from cli.progress import working
from cli.session import confirm, next_step, open_ledger, say

demand = typer.Typer(no_args_is_help=True, help="How often a gallery's items are retrieved.")
app.add_typer(demand, name="demand")


@demand.command("import", epilog="Example: hotrefresh gallery demand import photos searches.csv")
def import_(
    name: GalleryName,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="CSV or Parquet: column item (a key), optionally count.")
    ],
    output: Output = Format.TABLE,
) -> None:
    """Add a query log to what `serve` has counted. Lines of one item add up; without a count each is one retrieval."""
    with open_ledger() as context:
        with working(f"importing {file.name}"):
            from orchestrator.service.demand import import_demand

            done = import_demand(context, name, file)
        from orchestrator.service.guide import next_command

        then = next_command(context, name)
    if not show(done, output):
        say(
            f"gallery {done.gallery}: {done.retrievals} retrievals of {done.items} items"
            + (f"; {done.unknown} lines' items are not in it" if done.unknown else "")
        )
    next_step(then)


@demand.command("show", epilog="Example: hotrefresh gallery demand show photos")
def show_(
    name: GalleryName,
    first: Annotated[int, typer.Option(min=0, help="How many of the most retrieved items to show.")] = 10,
    output: Output = Format.TABLE,
) -> None:
    """Show how much was retrieved, since when, and which items most often."""
    with open_ledger() as context:
        from orchestrator.service.demand import show_demand
        from orchestrator.service.guide import next_command

        found = plain(show_demand(context, name, first))
        then = next_command(context, name)
    if not show(found, output):
        most = found.pop("most_retrieved")
        draw(make_pairs(found), make_table(most, ("key", "count", "share")))
    next_step(then)


@demand.command(epilog="Example: hotrefresh gallery demand decay photos --keep 0.5")
def decay(
    name: GalleryName,
    keep: Annotated[
        float, typer.Option(min=0, max=1, help="The part of every count that stays; 0 forgets all.")
    ] = 0.5,
    yes: Yes = False,
    output: Output = Format.TABLE,
) -> None:
    """Let old retrievals count less than those to come. Rounded down: what was retrieved once is forgotten first."""
    confirm(
        f"Every count of gallery {name} becomes {keep:g} of what it is; this cannot be taken back.", yes=yes
    )
    with open_ledger() as context:
        from orchestrator.service.demand import decay_demand
        from orchestrator.service.guide import next_command

        left = decay_demand(context, name, keep)
        then = next_command(context, name)
    if not show({"gallery": name, "retrievals": left}, output):
        say(f"gallery {name}: {left} retrievals are left")
    next_step(then)
