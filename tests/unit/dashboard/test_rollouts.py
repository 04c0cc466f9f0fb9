"""Which rollout the overview tells of."""

from __future__ import annotations

from orchestrator.dashboard.rollouts import told_of


def row(id_, gallery, state):
    return {"id": id_, "gallery": gallery, "state": state}


def test_the_rollout_that_goes_on_is_told_of_or_else_the_newest():
    rows = [
        row(9, "a", "rolled_back"),
        row(8, "b", "finalized"),
        row(7, "a", "paused"),  # reinstated when 9 was taken back
        row(6, "c", "backfilling"),
        row(5, "b", "superseded"),
        row(4, "a", "finalized"),
    ]
    assert {gallery: each["id"] for gallery, each in told_of(rows).items()} == {"a": 7, "b": 8, "c": 6}
    assert told_of([]) == {}
