"""`hotrefresh doctor`: is everything there."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.output import Format, Output, show
from cli.progress import working
from cli.session import next_step, settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: hotrefresh doctor")(doctor)


def doctor(
    deep: Annotated[
        bool,
        typer.Option(
            "--deep", help="Also read every stored vector and check the invariants of every gallery."
        ),
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Check Python, packages, servers, schema, store, models and workers. Exit code 1 when something is found."""
    from orchestrator.errors import ExitCode

    resolved = settings()
    with working("looking"):
        from orchestrator.bootstrap import open_context
        from orchestrator.service.doctor import diagnose

        checks = list(diagnose(resolved, lambda: open_context(resolved, migrate=False), deep=deep))
    findings = [check for check in checks if not check.ok]
    if not show({"ok": not findings, "checks": checks}, output):
        for check in checks:
            typer.echo(f"{'ok     ' if check.ok else 'finding'}  {check.name:<14} {check.found}")
    if findings:
        next_step("doctor")
        raise typer.Exit(ExitCode.ERROR)
    next_step("gallery list")
