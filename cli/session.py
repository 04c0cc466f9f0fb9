"""What one run of the command knows: its root options, and how it talks to the person on stderr."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from orchestrator.context import Context
    from orchestrator.settings import Settings

NOTHING_GOES_ON = "Nothing was left half-done; run the command again."


@dataclass
class Session:
    """The root options.

    Attributes:
        flags: settings given on the command line; None means "not given".
        interrupted: the sentence for Ctrl-C: what goes on, and how to watch it.
    """

    flags: dict[str, Any] = field(default_factory=dict)
    quiet: bool = False
    debug: bool = False
    interrupted: str = NOTHING_GOES_ON


current = Session()


def configure(flags: dict[str, Any], *, quiet: bool, debug: bool) -> None:
    """Begin a run with these root options."""
    current.flags, current.quiet, current.debug = flags, quiet, debug
    current.interrupted = NOTHING_GOES_ON


def settings() -> Settings:
    """The resolved settings: flag, environment, file, default."""
    from orchestrator.settings import load_settings

    return load_settings(**current.flags)


@contextmanager
def open_ledger(*, migrate: bool = True) -> Iterator[Context]:
    """The context that every verb works with; embedded servers are started when none are configured."""
    from cli.progress import working

    with working("opening the ledger"):
        from orchestrator.bootstrap import open_context

        context = open_context(settings(), migrate=migrate)
    with context:
        yield context


def say(text: str) -> None:
    """Narration: stderr, not with --quiet."""
    if not current.quiet:
        typer.echo(text, err=True)


def warn(text: str) -> None:
    """A warning: stderr, --quiet or not."""
    typer.echo(f"warning: {text}", err=True)


def next_step(arguments: str) -> None:
    """The one exact next command, with the flags of this one, so that it reaches the same ledger."""
    say(f"next: {command(arguments)}")


def command(arguments: str) -> str:
    """`hotrefresh` with this run's flags and these arguments, ready to paste. Passwords are not repeated."""
    from orchestrator.settings import masked

    parts = ["hotrefresh"]
    for name, value in current.flags.items():
        if value is not None:
            parts += [f"--{name.replace('_', '-')}", shlex.quote(masked(str(value)) or "")]
    return " ".join([*parts, arguments])


def interactive() -> bool:
    """Whether a person looks at stderr."""
    return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def confirm(effect: str, *, yes: bool) -> None:
    """Show what a destructive verb will do, and ask.

    Raises:
        UsageError: nobody to ask, and no --yes.
        typer.Exit: the answer was no.
    """
    from models.errors import UsageError

    typer.echo(effect, err=True)
    if yes:
        return
    if not sys.stdin.isatty():
        raise UsageError("there is no terminal to ask on; add --yes to do this without asking.")
    if not typer.confirm("Go on?", err=True):
        say("Nothing was changed.")
        raise typer.Exit(1)
