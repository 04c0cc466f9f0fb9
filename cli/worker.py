"""`hotrefresh worker`: this process becomes a worker."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from cli.output import Format, Output, show
from cli.session import say, settings


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: hotrefresh worker --exit-when-idle 60")(worker)


def worker(
    exit_when_idle: Annotated[
        float | None,
        typer.Option(min=0.1, help="Leave after this many seconds without work.", metavar="SECONDS"),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Consume backfill jobs until SIGTERM or Ctrl-C; the batch at hand is finished first. One worker a GPU."""
    from orchestrator.service.background import worker_command, worker_environment

    resolved = settings()
    command = worker_command(exit_when_idle)
    show({"pid": os.getpid(), "command": command}, output, lines=True)
    say("worker: log lines follow on stderr; stop with Ctrl-C. Watch: hotrefresh rollout status -w GALLERY")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, worker_environment(resolved))  # noqa: S606 - no shell is wanted
