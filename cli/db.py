"""`hotrefresh db`: the ledger's schema."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.output import Format, Output, show
from cli.progress import working
from cli.session import confirm, next_step, open_ledger, say

app = typer.Typer(no_args_is_help=True, help="The ledger's schema.")


@app.command(epilog="Example: hotrefresh db upgrade")
def upgrade(output: Output = Format.TABLE) -> None:
    """Bring the schema to this release's head; done already is fine. Two at once take turns."""
    with open_ledger(migrate=False) as context:
        from orchestrator.ledger import database

        before = database.current(context.engine)
        with working("upgrading the schema"):
            database.upgrade(context.engine)
        after = database.current(context.engine)
    if not show({"before": before, "after": after}, output):
        say(f"schema {after}" + (" already" if before == after else f", was {before or 'empty'}"))
    next_step("doctor")


@app.command(epilog="Example: hotrefresh db current -o json")
def current(output: Output = Format.TABLE) -> None:
    """Show the schema's revision and this release's head."""
    with open_ledger(migrate=False) as context:
        from orchestrator.ledger import database

        found = database.current(context.engine)
    if not show({"current": found, "head": database.HEAD, "up_to_date": found == database.HEAD}, output):
        typer.echo(
            f"{found or 'none'}{' (head)' if found == database.HEAD else f', head is {database.HEAD}'}"
        )
    next_step("doctor" if found == database.HEAD else "db upgrade")


@app.command(epilog="Example: hotrefresh db downgrade 0001")
def downgrade(
    revision: Annotated[str, typer.Argument(help="A revision, or base: nothing is left.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Take the schema back to an older revision. What stands in dropped tables is lost."""
    with open_ledger(migrate=False) as context:
        from orchestrator.ledger import database
        from orchestrator.service.listings import held

        before = database.current(context.engine)
        counts = held(context)
        confirm(
            f"This takes the schema of {database_name(context)} from {before or 'empty'} back to {revision}. "
            f"It holds {', '.join(f'{n} {what}' for what, n in counts.items()) or 'nothing'}; "
            "what stands in dropped tables is lost.",
            yes=yes,
        )
        with working("downgrading the schema"):
            database.downgrade(context.engine, revision)
        after = database.current(context.engine)
    if not show({"before": before, "after": after}, output):
        say(f"schema {after or 'empty'}, was {before or 'empty'}")
    next_step("db upgrade")


def database_name(context: object) -> str:
    """The database's URL without its password."""
    from orchestrator.settings import masked

    engine = context.engine  # type: ignore[attr-defined]
    return masked(engine.url.render_as_string(hide_password=True)) or ""
