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
    supervise: Annotated[
        bool,
        typer.Option(help="Run worker processes under a supervisor that replaces stuck and dead ones."),
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, max=64, help="Worker processes; more than 1 needs --supervise.")
    ] = 1,
    stuck_s: Annotated[
        float | None,
        typer.Option(
            min=1,
            help="With --supervise: replace a worker that finishes no batch for this long; a batch must take less.",
            metavar="SECONDS",
        ),
    ] = None,
    output: Output = Format.TABLE,
) -> None:
    """Consume backfill jobs until SIGTERM or Ctrl-C; the batch at hand is finished first. One worker a GPU."""
    from models.errors import UsageError
    from orchestrator.service.background import worker_command, worker_environment

    if processes > 1 and not supervise:
        raise UsageError(
            f"--processes {processes} needs --supervise; add it, or start {processes} workers yourself."
        )
    resolved = settings()
    command = worker_command(exit_when_idle)
    if supervise:
        command = [sys.executable, "-P", "-m", "workers.supervisor"]
        command += ["--processes", str(processes), "--stuck-s", str(stuck_s or resolved.stuck_s)]
        command += [] if exit_when_idle is None else ["--exit-when-idle", str(exit_when_idle)]
    show({"pid": os.getpid(), "command": command}, output, lines=True)
    say("worker: log lines follow on stderr; stop with Ctrl-C. Watch: hotrefresh rollout status -w GALLERY")
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, command, worker_environment(resolved))  # noqa: S606 - no shell is wanted
