"""`hotrefresh init`: a commented configuration file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from cli.output import Format, Output, show
from cli.session import next_step, say


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command(epilog="Example: hotrefresh init")(init)


def init(
    folder: Annotated[Path, typer.Argument(help="Where to write it.")] = Path(),
    output: Output = Format.TABLE,
) -> None:
    """Write hotrefresh.toml with every setting, its default and what it means. Never overwrites."""
    from models.errors import UsageError
    from orchestrator.settings import DEFAULT_FILE

    path = folder / DEFAULT_FILE
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(configuration_text())
    except FileExistsError:
        from orchestrator.errors import ConflictError

        raise ConflictError(
            f"{path} is there already and stays as it is; edit it, or remove it first."
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}. Name another folder.") from error
    if not show({"path": path}, output):
        say(f"wrote {path}: everything in it is a default; change what you need.")
    next_step("doctor")


def configuration_text() -> str:
    """The file: every setting commented out, with its default."""
    from orchestrator.settings import Settings

    lines = [
        "# hotrefresh: a flag wins over the environment (HOTREFRESH_<NAME>), that over this file, that over the default.",
        "# Passwords inside URLs belong into the environment or into this file, never on a command line.",
        "",
    ]
    for name, field in Settings.model_fields.items():
        lines += [f"# {field.description}", f"# {name} = {_toml(field.default)}", ""]
    return "\n".join(lines)


def _toml(value: Any) -> str:
    if value is None:
        return '"…"'
    return json.dumps(str(value)) if isinstance(value, (str, Path)) else json.dumps(value)
