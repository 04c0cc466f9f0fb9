"""`hotrefresh demo`: the whole story on real parts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.output import Format, Output, show
from cli.session import current, next_step, say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: hotrefresh demo --fast --report demo-report")(demo)


def demo(
    fast: Annotated[bool, typer.Option("--fast", help="Smaller, about 90 seconds.")] = False,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat the measurements with this many seeds.")] = 1,
    report: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("demo-report"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the demo's ledger and extents.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Hot-refresh 20,000 glyphs for real: train, certify, upgrade, kill the worker half-way, and report."""
    from orchestrator.demo.story import run_demo

    current.interrupted = "The demo's servers and worker stop with it; run it again."
    summary = run_demo(fast=fast, seeds=seeds, report=report, keep=keep)
    if not show({"report": report / "index.html", "summary": summary}, output):
        say(f"report: {report / 'index.html'}")
    next_step("init")
