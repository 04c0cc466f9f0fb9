"""`hotrefresh config`: the settings as they are resolved."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer

from cli.output import Format, Output, show, show_rows
from cli.session import current, next_step, settings

app = typer.Typer(no_args_is_help=True, help="Look at the configuration.")


@app.command("show", epilog="Example: hotrefresh config show --resolved -o json")
def show_config(
    resolved: Annotated[
        bool, typer.Option("--resolved", help="All settings, also those that have their default.")
    ] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show what is configured and where each value comes from; passwords are masked."""
    values = settings().shown()
    origins = {name: _origin(name) for name in values}
    wanted = {name: value for name, value in values.items() if resolved or origins[name] != "default"}
    document = {"settings": wanted, "origins": {name: origins[name] for name in wanted}}
    if not show(document, output):
        rows = [{"name": n, "value": v, "from": origins[n]} for n, v in wanted.items()]
        show_rows("settings", rows, ("name", "value", "from"), output)
    next_step("doctor")


def _origin(name: str) -> str:
    from orchestrator.settings import config_file

    if current.flags.get(name) is not None:
        return "flag"
    if f"HOTREFRESH_{name.upper()}" in os.environ:
        return "environment"
    return str(config_file()) if name in _in_file() else "default"


def _in_file() -> dict[str, Any]:
    import tomllib

    from orchestrator.settings import config_file

    try:
        return tomllib.loads(config_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
