"""The benchmark of flips, in small: what it compares, and that it notices what is wrong."""

from __future__ import annotations

import numpy as np

from bench import flips
from orchestrator.core.incremental import IncrementalTopK

TINY = flips.Size(N=900, Q=40, d=8, B=100, buffer=10)


def test_a_quick_run_measures_every_drift_and_claims_nothing(monkeypatch):
    monkeypatch.setattr(flips, "QUICK", TINY)
    said = []
    result = flips.run(quick=True, say=said.append)
    assert [row["row"] for row in result["rows"]] == [9] * 4
    assert [name for name in flips.DRIFTS if any(name in text for text in said)] == list(flips.DRIFTS)
    for row in result["rows"]:
        assert ", exact, " in row["name"]
        assert row["holds"] is None
        assert row["ratio"] > 0


def test_answers_that_are_not_those_of_a_full_search_are_noticed(monkeypatch):
    refresh = flips.refresh_of(TINY, 0.3)

    def exact():
        answers = IncrementalTopK(refresh.queries, refresh.old.copy(), 3, TINY.buffer)
        return flips.is_exact(answers, refresh, TINY, 3)

    assert exact()
    monkeypatch.setattr(IncrementalTopK, "_drop", lambda self, rows: None)
    assert not exact()


def test_drift_moves_scores_as_it_is_named():
    def mean_score(drift):
        refresh = flips.refresh_of(TINY, drift)
        owner = np.repeat(np.arange(TINY.Q), refresh.relevance.counts)
        return (refresh.new[refresh.relevance.rows] * refresh.queries[owner]).sum(axis=1).mean()

    assert mean_score(0.3) > mean_score(0.0) + 0.05 > mean_score(-0.3) + 0.1
