"""Data on stdout: documents for programs, tables for people."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest
import yaml

from cli.output import Format, cell, draw, make_table, plain, show, show_object, show_rows


def test_a_list_is_one_json_document_with_its_schema_version(capsys):
    show_rows("things", [{"name": "a", "hidden": 1}, {"name": "b", "hidden": 2}], ("name",), Format.JSON)
    found = json.loads(capsys.readouterr().out)
    assert found == {"schema_version": 1, "things": [{"name": "a", "hidden": 1}, {"name": "b", "hidden": 2}]}


def test_yaml_holds_what_json_holds(capsys):
    show_object({"name": "größe", "n": 3}, Format.YAML)
    assert yaml.safe_load(capsys.readouterr().out) == {"schema_version": 1, "name": "größe", "n": 3}


def test_json_lines_are_one_line_each(capsys):
    for n in range(3):
        assert show({"n": n, "text": "a\nb"}, Format.JSON, lines=True)
    assert [json.loads(line)["n"] for line in capsys.readouterr().out.splitlines()] == [0, 1, 2]


def test_times_are_utc_and_iso_8601():
    east = datetime(2026, 1, 2, 3, 4, 5, 678_000, timezone(timedelta(hours=2)))
    assert plain({"at": east}) == {"at": "2026-01-02T01:04:05.678Z"}
    assert plain(datetime(2026, 1, 2, tzinfo=UTC)) == "2026-01-02T00:00:00.000Z"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Decimal("NaN")])
def test_what_is_no_number_is_null(value):
    assert plain([value, Decimal("0.5")]) == [None, 0.5]


def test_a_table_off_a_terminal_has_a_line_a_row_and_no_padding(capsys):
    long = "k" * 300
    show_rows("things", [{"key": long, "n": 1}, {"key": "b", "n": None}], ("key", "n"), Format.TABLE)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == [long, "1"]
    assert lines[2].split() == ["b", "-"]
    assert all(line == line.rstrip() for line in lines)


def test_keys_are_never_markup_nor_terminal_codes(capsys):
    draw(make_table([{"key": "[bold]x[/bold]\x1b[2J"}], ("key",)))
    shown = capsys.readouterr().out
    assert "[bold]x[/bold]" in shown
    assert "\x1b" not in shown


def test_cells_are_short():
    assert [cell(v) for v in (None, True, 0.123456, 123456.7, [], {"a": 1})] == [
        "-",
        "yes",
        "0.1235",
        "123457",
        "-",
        '{"a": 1}',
    ]
