"""Data on stdout: a table for people, one JSON or YAML document with `schema_version` for programs."""

from __future__ import annotations

import io
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum, StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

SCHEMA_VERSION = 1


class Format(StrEnum):
    """How data is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Output = Annotated[Format, typer.Option("--output", "-o", help="How the data on stdout is printed.")]


def plain(value: Any) -> Any:
    """Values as JSON knows them: ISO-8601 UTC times, numbers that are not numbers as null."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each) for each in value]
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (Decimal, float)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Path):
        return str(value)
    return value


def show(document: Any, output: Format, *, lines: bool = False) -> bool:
    """Print a mapping or a dataclass as JSON or YAML; False for a table, which only the caller can draw.

    Args:
        lines: JSON Lines, one document a line (under --watch).
    """
    if output is Format.TABLE:
        return False
    full = {"schema_version": SCHEMA_VERSION, **plain(document)}
    if output is Format.JSON:
        typer.echo(json.dumps(full, indent=None if lines else 2, ensure_ascii=False))
    else:
        import yaml

        head = "---\n" if lines else ""
        typer.echo(head + yaml.safe_dump(full, sort_keys=False, allow_unicode=True).rstrip())
    sys.stdout.flush()
    return True


def show_rows(name: str, rows: Sequence[Any], columns: Sequence[str], output: Format) -> None:
    """A list: `{name: [...]}` with every field, or a table of the columns named."""
    values = [plain(row) for row in rows]
    if not show({name: values}, output):
        draw(make_table(values, columns))


def show_object(values: Any, output: Format) -> None:
    """One thing: its fields as a document, or as two columns."""
    fields = plain(values)
    if not show(fields, output):
        draw(make_pairs(fields))


def make_pairs(values: Mapping[str, Any]) -> Table:
    """One thing in two columns."""
    from rich.table import Table

    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in plain(values).items():
        table.add_row(_text(key.replace("_", " ")), _text(cell(value)))
    return table


def make_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> Table:
    """A table of some columns of JSON-like rows; numbers to the right."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        numeric = bool(rows) and all(
            isinstance(row.get(column), (int, float, type(None))) and not isinstance(row.get(column), bool)
            for row in rows
        )
        table.add_column(column.replace("_", " "), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_text(cell(row.get(column))) for column in columns))
    return table


def cell(value: Any) -> str:
    """One value for a person."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 10_000 else f"{value:.0f}"
    if isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=False) if value else "-"
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def _text(value: str) -> Any:
    from rich.text import Text

    return Text(value)  # never markup: keys and labels are a user's


def draw(*renderables: Any) -> None:
    """Print tables on stdout, with a blank line between them. NO_COLOR is rich's business.

    Off a terminal nothing is wrapped or padded: what reads it wants one line a row.
    """
    from rich.console import Console

    if sys.stdout.isatty():
        console = Console()
        for place, each in enumerate(renderables):
            console.print(*([""] if place else []), each, sep="\n")
        return
    console = Console(width=10_000, file=io.StringIO(), color_system=None)
    for each in renderables:
        with console.capture() as captured:
            console.print(each)
        blank = "\n" if each is not renderables[0] else ""
        typer.echo(blank + "\n".join(line.rstrip() for line in captured.get().splitlines()))
