"""A rollout on one screen."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cli import watch
from cli.output import Format, draw
from orchestrator.errors import UnreachableError
from orchestrator.service.wait import RolloutStatus


def snapshot(**changes):
    at = datetime(2026, 1, 1, tzinfo=UTC)
    row = {
        "id": 3, "gallery": "pics", "kind": "upgrade", "from_model": "old", "to_model": "new", "adapter": "lift",
        "strategy": "transform-then-reembed",
        "state": "backfilling", "sub_state": None, "reason": None, "total": 200, "pending": 100, "leased": 50,
        "committed": 48, "quarantined": 2, "rate_per_s": 12.5, "eta_s": 12.0, "coverage": 0.24, "started_at": at,
        "last_progress_at": at, "paused_s": 0.0, "actor": "me", "plan_revision": 0,
    }  # fmt: skip
    band = {"rollout": 3, "band": 0, "queue_state": "active", "depth": 4, "leased": 1, "oldest_age_s": 1.0}
    flips = {
        "queryset": "asked", "coverage": 0.24, "n": 100, "nfr": 0.02, "ci_low": 0.005, "ci_high": 0.07,
        "negative_flips": 2, "positive_flips": 9,
    }  # fmt: skip
    cover = ({"gallery": "pics", "model": "new", "items": 48, "ratio": 0.24},)
    alive = changes.pop("workers_alive", 1)
    return RolloutStatus(row | changes, (band,), alive, cover, (flips,), ())


def test_one_screen_shows_state_and_reason_progress_rate_queue_workers_coverage_and_flips(capsys):
    draw(watch.screen(snapshot(state="paused", reason="asked by me")))
    shown = capsys.readouterr().out
    for part in (
        "old → new through lift", "paused: asked by me", "50/200 (25.0%), 2 quarantined", "12.5 items/s, 12 s left",
        "band 0: 4 waiting, 1 leased", "1 alive", "new 24.0%", "2 negative (2.00%, 0.50% to 7.00%), 9 positive",
    ):  # fmt: skip
        assert part in shown
    assert len(shown.splitlines()) <= 24


def test_a_revision_of_the_plan_is_named_once_there_is_one(capsys):
    draw(watch.screen(snapshot(plan_revision=3)))
    assert "transform-then-reembed, plan 3" in capsys.readouterr().out
    draw(watch.screen(snapshot()))
    assert ", plan" not in capsys.readouterr().out


def test_query_sets_of_which_nobody_knows_what_is_right_have_lines_of_their_own(capsys):
    churn = {
        "queryset": "logged", "relevance": "none", "coverage": 0.24, "n": 50, "k": 10, "overlap": 0.925, "rbo": 0.9312,
        "first_changed": 0.04,
    }  # fmt: skip
    unread = churn | {"queryset": "unread", "n": 0, "overlap": None, "rbo": None, "first_changed": None}
    clicks = {
        "queryset": "clicked", "coverage": None, "n": 40, "click_losses": 2, "click_gains": 1, "loss_rate": 0.05,
        "ci_low": 0.01, "ci_high": 0.2,
    }  # fmt: skip
    status = replace(snapshot(), churn=(churn, unread, churn | {"relevance": "label", "queryset": "asked"}))
    draw(watch.screen(replace(status, clicks=(clicks,))))
    shown = " ".join(capsys.readouterr().out.split())
    assert (
        "logged: overlap 92.50% of the first 10, rank-biased 93.12%, first answer changed for 4.00% of 50"
        in shown
    )
    assert "unread: no query could be read by both models" in shown
    assert "asked: overlap" not in shown
    assert "clicked: 2 lost (5.00%, 1.00% to 20.00%), 1 gained, of 40 queries" in shown
    assert set(watch.document(status)) >= {"churn", "clicks"}
    draw(watch.screen(replace(status, flips=())))
    assert "not counted: no query set has labels or pairs" in " ".join(capsys.readouterr().out.split())


def test_json_lines_come_only_when_something_changed(capsys):
    lines = watch._Lines(Format.JSON)
    for status in (snapshot(), snapshot(), snapshot(committed=64)):
        lines.look(status)
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [d["committed"] for d in documents] == [48, 64]
    assert {d["schema_version"] for d in documents} == {1}


def test_a_log_gets_a_line_when_the_state_changes_not_at_every_batch(capsys):
    lines = watch._Lines(Format.TABLE)
    for status in (snapshot(), snapshot(committed=64), snapshot(committed=80), snapshot(state="paused")):
        lines.look(status)
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "rollout 3 backfilling",
        "rollout 3 paused",
    ]


class Place:
    embedded = True

    def __init__(self, tmp_path):
        from orchestrator.settings import Settings

        self.settings = Settings(data_dir=tmp_path)


def test_a_worker_that_dies_again_and_again_ends_the_waiting(tmp_path, monkeypatch):
    started = []
    monkeypatch.setattr(watch, "start_worker", lambda context, rollout: started.append(rollout))
    supervisor = watch.Supervisor(Place(tmp_path))
    for _ in range(watch.RESTARTS):
        supervisor.look(snapshot(workers_alive=0))
    assert started == [3] * watch.RESTARTS
    with pytest.raises(UnreachableError, match="rollout resume 3"):
        supervisor.look(snapshot(workers_alive=0))


def test_no_worker_is_started_for_a_rollout_that_waits_for_a_person(tmp_path, monkeypatch):
    monkeypatch.setattr(watch, "start_worker", lambda context, rollout: pytest.fail("nothing to do"))
    watch.Supervisor(Place(tmp_path)).look(snapshot(workers_alive=0, state="finalizable"))
