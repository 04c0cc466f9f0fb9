"""The `hotrefresh` command: the root options, the groups, and what becomes of an error.

Nothing heavy is imported here or in a group's module: torch, faiss, SQLAlchemy come when a command needs them.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from cli import (
    bench,
    codec,
    config,
    dashboard,
    db,
    demand,
    demo,
    doctor,
    downstream,
    init,
    ledger,
    model_adapt,
    queryset,
    rollout_settings,
    serve,
    version,
    worker,
)
from cli.session import configure, current
from orchestrator.errors import ExitCode, HotrefreshError

app = typer.Typer(
    name="hotrefresh",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Begin with: hotrefresh demo --fast",
)
for group in (demo, init, doctor, worker, serve, dashboard, version):
    group.register(app)
for name, group in (
    ("config", config),
    ("db", db),
    ("model", model_adapt),  # adds to the commands of cli.model
    ("codec", codec),
    ("downstream", downstream),
    ("gallery", demand),  # adds to the commands of cli.gallery
    ("queryset", queryset),
    ("rollout", rollout_settings),  # adds to the commands of cli.rollout
    ("ledger", ledger),
):
    app.add_typer(group.app, name=name)
bench.register(app)


def _print_version(wanted: bool) -> None:
    if wanted:
        from orchestrator import __version__

        typer.echo(f"hotrefresh {__version__}")
        raise typer.Exit


@app.callback()
def root(
    database_url: Annotated[
        str | None, typer.Option(help="PostgreSQL URL of the ledger; without one an embedded server is used.")
    ] = None,
    broker_url: Annotated[
        str | None,
        typer.Option(help="Redis, Valkey or RabbitMQ URL; without one an embedded server is used."),
    ] = None,
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of embedded servers, models and extents (default .hotrefresh)."),
    ] = None,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="No narration and no progress on stderr.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    """Upgrade the embedding model of a search gallery now, re-embed behind."""
    configure(
        {"database_url": database_url, "broker_url": broker_url, "data_dir": data_dir},
        quiet=quiet,
        debug=debug,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Every error is one line on stderr that says what to do."""
    configure({}, quiet=False, debug=False)
    try:
        code = app(args=arguments, prog_name="hotrefresh", standalone_mode=False)
        if code == ExitCode.INTERRUPTED:
            return _interrupted()
        return int(code or 0)
    except HotrefreshError as error:
        return _failed(str(error), int(error.exit_code))
    except typer.TyperException as error:
        return _misused(error)
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except Exception as error:  # noqa: BLE001 - the last line of defence: no traceback reaches a user
        advice = "" if current.debug else " Run again with --debug before the command to see where."
        first = (str(error).strip().splitlines() or [""])[0]
        return _failed(f"unexpected {type(error).__name__}: {first}.{advice}", ExitCode.ERROR)


def _failed(message: str, code: int) -> int:
    if current.debug:
        traceback.print_exc()
    typer.echo(f"error: {message}", err=True)
    return code


def _misused(error: typer.TyperException) -> int:
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        typer.echo(error.format_message(), err=True)
        return error.exit_code
    typer.echo(f"error: {error.format_message()}", err=True)
    if context is not None:
        typer.echo(f"usage: {context.get_usage().removeprefix('Usage: ')}", err=True)
        typer.echo(f"help:  {context.command_path} --help", err=True)
    return error.exit_code


def _interrupted() -> int:
    typer.echo(f"\ninterrupted. {current.interrupted}", err=True)
    return ExitCode.INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
