"""The shape of what benchmarks return, and how they take turns; never how long anything takes."""

from __future__ import annotations

import json

import pytest

from bench import core
from bench.result import Row, document, in_turns, median, quartiles
from orchestrator.errors import UsageError

FIELDS = {"row", "name", "value", "unit", "against", "ratio", "target", "holds"}


def test_a_document_has_the_published_fields_and_is_json():
    rows = [Row(4, "write", 1.5, "ms", "raw, 1 ms", 1.5, "<= 1.5", True), Row(4, "floor", 1.0, "ms", "-")]
    read = json.loads(json.dumps(document("core", rows, seed=7)))
    assert set(read) == {"schema_version", "bench", "host", "rows"}
    assert (read["schema_version"], read["bench"], read["host"]["seed"]) == (1, "core", 7)
    assert [set(row) for row in read["rows"]] == [FIELDS, FIELDS]
    assert read["rows"][1]["holds"] is None, "a row without a target claims nothing"
    assert {"processor", "cores", "threads", "load_average", "versions"} <= set(read["host"])


def test_works_take_turns_and_every_second_turn_goes_the_other_way_round():
    done: list[str] = []
    works = {"a": lambda: done.append("a"), "b": lambda: done.append("b")}
    taken = in_turns(works, 3, before=lambda name: done.append(f"before {name}"))
    assert done == [
        *("before a", "a", "before b", "b"),
        *("before b", "b", "before a", "a"),
        *("before a", "a", "before b", "b"),
    ]
    assert {name: len(values) for name, values in taken.items()} == {"a": 3, "b": 3}


def test_one_slow_sample_does_not_move_the_median():
    assert median([1.0, 1.1, 900.0, 0.9, 1.0]) == 1.0


def test_the_spread_is_printed_in_the_unit_of_the_row():
    assert quartiles([0.001, 0.002, 0.003], scale=1e3) == "quartiles 1.00–3.00"
    assert quartiles([1.0]) == "one sample"


def test_a_row_that_is_not_measured_is_refused_before_anything_is_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"row 3; it measures 1, 2, 4, 5, 8, 14\."):
        core.run(rows=[4, 3])
    assert not list(tmp_path.iterdir())
