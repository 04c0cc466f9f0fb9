"""Benchmarks run through the real parts and leave nothing behind; how long they take is not looked at."""

from __future__ import annotations

import json

import psycopg
import pytest

from bench import core, engine, restart, revision, serving, views
from orchestrator.ledger.queries.reporting import VIEWS


def _databases(url: str) -> set[str]:
    with psycopg.connect(url) as connection:
        return {name for (name,) in connection.execute("SELECT datname FROM pg_database")}


def test_a_quick_run_measures_in_a_database_and_a_folder_of_its_own(settings, tmp_path):
    settings = settings.model_copy(update={"store_dir": tmp_path / "store"})
    before = _databases(settings.database_url)
    said: list[str] = []
    result = core.run(settings, repeats=1, rows=[1, 14], quick=True, say=said.append, folder=tmp_path / "out")
    assert said == ["row 1: committing batches", "row 14: deploying a new model"]
    assert [row["row"] for row in result["rows"]] == [1, 1, 1, 1, 1, 1, 1, 14, 14]
    assert {row["holds"] for row in result["rows"]} == {None}, "smaller sizes than the targets' claim nothing"
    assert json.loads((tmp_path / "out" / "core.json").read_text()) == result
    assert result["host"]["postgresql"]["synchronous_commit"] == "on"
    assert result["host"]["postgresql"]["same_disk"] is True
    assert _databases(settings.database_url) == before
    assert not list(settings.data_dir.glob("bench-*"))
    assert not [path for path in (tmp_path / "store").rglob("*") if path.is_file()]


def test_the_engine_measures_its_three_rows(settings, tmp_path):
    said: list[str] = []
    result = engine.run(settings, repeats=1, quick=True, say=said.append, folder=tmp_path)
    assert result["bench"] == "engine"
    assert {row["row"] for row in result["rows"]} == {1, 5, 6}
    assert len(said) == 3
    assert json.loads((tmp_path / "engine.json").read_text()) == result
    memory = [row for row in result["rows"] if row["row"] == 6]
    first, last = memory[0], memory[-3]
    assert last["value"] <= 1.1 * first["value"], "flat, ten times the batches"
    assert memory[-1]["value"] > 5 * last["value"], "enqueueing everything is not"


def test_every_view_is_read_from_a_ledger_that_is_not_empty(settings):
    before = _databases(settings.database_url)
    result = views.run(settings, repeats=2, quick=True)
    assert [row["row"] for row in result["rows"]] == [3] * len(VIEWS)
    assert [row["name"].split(",")[0] for row in result["rows"]] == list(views.reads(1))
    assert {row["holds"] for row in result["rows"]} == {None}, "a small ledger claims nothing"
    curve = next(row for row in result["rows"] if row["name"].startswith("refresh_curve"))
    assert "244 rows read" in curve["name"], "200 points, and two stored curves of 22"
    assert _databases(settings.database_url) == before


def test_a_revision_is_measured_on_a_plan_of_its_own(settings):
    before = _databases(settings.database_url)
    [row] = revision.run(settings, repeats=2, quick=True)
    assert "20,000 items" in row.name
    assert row.value > 0
    assert _databases(settings.database_url) == before


@pytest.mark.faults  # forty seconds; `bench serving` is run by hand anyway
def test_serving_is_measured_beside_its_peers(settings, tmp_path):
    result = serving.run(settings, repeats=2, quick=True, only=["10", "11", "12"], folder=tmp_path)
    assert {row["row"] for row in result["rows"]} == {10, 11, 12}
    assert {row["holds"] for row in result["rows"]} == {None}, "smaller sizes than the targets' claim nothing"
    assert json.loads((tmp_path / "serving.json").read_text()) == result
    names = " ".join(row["name"] for row in result["rows"])
    for peer in ("two indexes", "pgvector", "milvus-lite"):
        assert peer in names
    assert "not measured" not in names
    refreshed = [row for row in result["rows"] if row["name"].startswith("QPS")]
    assert all(row["value"] > 0 for row in refreshed)


def test_a_restart_is_measured_fresh_and_from_a_snapshot(settings, monkeypatch):
    monkeypatch.setattr(restart, "BEFORE", 16)
    monkeypatch.setattr(restart, "BEHIND", 3)
    monkeypatch.setattr(restart, "RATE_PER_S", 2048)  # the batches beside a snapshot that is written
    before = _databases(settings.database_url)
    result = restart.run(settings, repeats=1, quick=True, n=16_384)
    ready, size, written, *waits = result["rows"]
    assert "3 batches of 1,024" in ready["name"]
    assert ready["value"] > 0
    assert size["value"] > 16_384 * 64 * 4 / 1e6, "all vectors, and the items"
    assert written["value"] > 0
    assert len(waits) == 2
    assert {row["holds"] for row in result["rows"]} == {None}
    assert _databases(settings.database_url) == before
