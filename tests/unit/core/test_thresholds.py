"""The threshold at 90 % precision and matching flips: against the metrics of copy detection, and slow counts query by query."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.matching_metrics import matching_metrics
from orchestrator.core.thresholds import ThresholdTracker

Q = 60


def answers(rng):
    """Right or wrong, and scores that mostly say which; with ties."""
    right = rng.random(Q) < 0.6
    scores = np.round(rng.normal(0.5, 0.1, Q) + 0.25 * right, 2).astype(np.float32)
    return right, scores


def test_each_ranking_is_that_of_the_metrics_of_copy_detection():
    rng = np.random.default_rng(0)
    asked = np.flatnonzero(rng.random(Q) < 0.9)
    before, now = answers(rng), answers(rng)
    true_pairs = Q - 5
    found = ThresholdTracker(asked, true_pairs, *before).measure(*now)
    for point, (right, scores) in ((found.old, before), (found.now, now)):
        truth = np.arange(true_pairs)
        said = [q if right[q] else 1000 + q for q in asked]
        truth = [*(q for q in asked if right[q]), *(2000 + n for n in range(Q))][:true_pairs]
        whole = matching_metrics(truth, truth, asked, said, scores[asked])
        assert point.micro_ap == pytest.approx(whole.micro_ap, abs=1e-12)
        assert (point.recall_at_precision, point.threshold) == (whole.recall_at_precision, whole.threshold)
        assert whole.threshold is not None
    assert (found.queries, found.true_pairs) == (len(asked), true_pairs)


def test_matching_flips_are_counted_at_the_old_systems_threshold():
    rng = np.random.default_rng(1)
    asked = np.arange(Q)
    (old_right, old_scores), (right, scores) = answers(rng), answers(rng)
    found = ThresholdTracker(asked, Q, old_right, old_scores).measure(right, scores)
    cut, lost, gained, accepted = found.old.threshold, 0, 0, 0
    for q in asked:
        before = bool(old_right[q]) and float(old_scores[q]) >= cut
        now = bool(right[q]) and float(scores[q]) >= cut
        lost += before and not now
        gained += now and not before
        accepted += float(scores[q]) >= cut
    assert (found.lost, found.gained, found.accepted) == (lost, gained, accepted)
    assert min(lost, gained) > 0


def test_nothing_changes_where_the_answers_are_the_same_but_all_are_lost_where_scores_sink():
    right, scores = answers(np.random.default_rng(2))
    tracker = ThresholdTracker(np.arange(Q), Q, right, scores)
    same = tracker.measure(right, scores)
    assert (same.lost, same.gained, same.now) == (0, 0, same.old)
    sunk = tracker.measure(right, scores - 1)
    assert (sunk.accepted, sunk.right, sunk.lost) == (0, 0, same.right)
    assert sunk.now.micro_ap == same.now.micro_ap, "the ranking is the same; only its scores moved"
    assert sunk.now.recall_at_precision == same.now.recall_at_precision


def test_without_a_threshold_before_nothing_is_called_lost():
    wrong, scores = np.zeros(Q, np.bool_), np.linspace(0, 1, Q).astype(np.float32)
    found = ThresholdTracker(np.arange(Q), Q, wrong, scores).measure(~wrong, scores)
    assert found.old.threshold is None
    assert (found.accepted, found.right, found.lost, found.gained) == (None,) * 4
    assert found.now.recall_at_precision == 1
    with pytest.raises(ValueError, match="no query has an answer"):
        ThresholdTracker(np.arange(Q), 0, wrong, scores)
