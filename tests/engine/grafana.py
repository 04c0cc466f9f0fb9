"""The dashboards under deploy/grafana as Grafana reads them: panels, expressions, queries with their variables filled in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[2] / "deploy" / "grafana"
BOARDS = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(FOLDER.glob("dashboards/*.json"))}
"""File name without its end -> dashboard."""

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(?!__)(\w+))")
_SELECTOR = re.compile(r"(hotrefresh_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"')


def panels(board: str) -> list[dict[str, Any]]:
    """A dashboard's panels that show something."""
    return [each for each in BOARDS[board]["panels"] if each["type"] != "row"]


def variables(board: str) -> list[dict[str, Any]]:
    """A dashboard's variables, those that others read first."""
    found: list[dict[str, Any]] = BOARDS[board]["templating"]["list"]
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Every PromQL expression: where it stands, and its text."""
    for board in BOARDS:
        for panel in panels(board):
            for target in panel["targets"]:
                if "expr" in target:
                    yield f"{board}: {panel['title']}", target["expr"]


def queries(board: str) -> Iterator[tuple[str, str]]:
    """Every SQL query of a dashboard's panels: the panel's title, and its text."""
    for panel in panels(board):
        for target in panel["targets"]:
            if "rawSql" in target:
                yield panel["title"], target["rawSql"]


def as_sql(text: str, values: Mapping[str, Sequence[str]]) -> str:
    """A query as Grafana sends it: a variable of several values is a list of quoted texts."""

    def quoted(match: re.Match[str]) -> str:
        return ",".join("'" + each.replace("'", "''") + "'" for each in values[match[1] or match[2]])

    text = re.sub(
        r"\$__timeFilter\(([\w.]+)\)", r"\1 BETWEEN '2000-01-01T00:00:00Z' AND '2100-01-01T00:00:00Z'", text
    )
    return _VARIABLE.sub(quoted, text)


def as_promql(text: str, values: Mapping[str, Sequence[str]]) -> str:
    """An expression as Grafana sends it: a variable of several values is an alternative of a regular expression."""

    def joined(match: re.Match[str]) -> str:
        return "(" + "|".join(map(re.escape, values[match[1] or match[2]])) + ")"

    return _VARIABLE.sub(joined, text.replace("$__rate_interval", "1m").replace("$__interval", "15s"))


def selectors(expression: str) -> list[tuple[str, list[tuple[str, str, str]]]]:
    """The metrics that an expression asks for, each with its matchers: label, operator, value."""
    return [(name, _MATCHER.findall(inner)) for name, inner in _SELECTOR.findall(expression)]


def grouped_by(expression: str) -> set[str]:
    """The labels that an expression groups or matches by."""
    lists = re.findall(r"\b(?:by|on|without|ignoring)\s*\(([^)]*)\)", expression)
    return {label.strip() for each in lists for label in each.split(",") if label.strip()}


def matches(labels: Mapping[str, str], matchers: Sequence[tuple[str, str, str]]) -> bool:
    """Whether Prometheus would select a sample with these labels; a label that is absent is empty."""
    for label, operator, value in matchers:
        has = labels.get(label, "")
        found = bool(re.fullmatch(value, has)) if operator.endswith("~") else has == value
        if found is operator.startswith("!"):
            return False
    return True
