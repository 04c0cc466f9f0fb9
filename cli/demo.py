"""`hotrefresh demo`: the whole story on real parts."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from cli.output import Format, Output, show
from cli.progress import shares
from cli.session import current, next_step, say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: hotrefresh demo --fast --report demo-report")(demo)


def demo(
    fast: Annotated[
        bool, typer.Option("--fast", help="One seed and less training, about 90 seconds.")
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(min=1, help="Seeds that are trained and measured. Default: 3, with --fast 1."),
    ] = None,
    report: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("demo-report"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the demo's embeddings and extents.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Hot-refresh over 30,000 pictures for real: train, certify, upgrade, kill the worker half-way, and report."""
    from orchestrator.demo.story import run_demo

    current.interrupted = "The demo's worker and servers leave by themselves; run it again for a fresh start."
    for name, value in current.flags.items():  # the demo resolves its settings itself
        if value is not None:
            os.environ[f"HOTREFRESH_{name.upper()}"] = str(value)
    with shares() as bar:
        page = run_demo(fast=fast, seeds=seeds, report_dir=report, keep=keep, say=say, bar=bar)
    summary = json.loads(page.with_name("summary.json").read_text(encoding="utf-8"))
    if not show({"report": page, "summary": summary}, output):
        say(f"report: {page}")
    next_step("init")
