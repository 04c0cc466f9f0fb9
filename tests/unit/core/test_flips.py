"""Flip counts, and the events of a query that turns."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.flips import FlipCounts, FlipKind, FlipTracker, Reference
from orchestrator.core.metrics import Relevance

OLD, PREVIOUS = Reference.OLD_SYSTEM, Reference.PREVIOUS_STAGE
NEGATIVE, POSITIVE = FlipKind.NEGATIVE, FlipKind.POSITIVE
answers = st.lists(st.tuples(st.booleans(), st.booleans()), max_size=40)


@settings(derandomize=True, deadline=None)
@given(answers)
def test_recall_gained_equals_positive_minus_negative_flips_in_whole_numbers(pairs):
    before, after = np.array(pairs, bool).reshape(-1, 2).T
    counts = FlipCounts.of(before, after)
    assert counts.n == len(pairs)
    assert counts.right_before == sum(b for b, _ in pairs)
    assert counts.right_now == sum(a for _, a in pairs)
    assert counts.right_now - counts.right_before == counts.positive_flips - counts.negative_flips


def test_each_of_the_four_fates_is_counted_where_it_belongs():
    before = np.array([1, 1, 1, 0, 0, 0, 0, 1, 1, 1], bool)
    after = np.array([1, 0, 0, 1, 1, 1, 0, 1, 1, 1], bool)
    counts = FlipCounts.of(before, after)
    assert counts == FlipCounts(both_right=4, negative_flips=2, positive_flips=3, both_wrong=1)
    assert (counts.nfr, counts.pfr) == (0.2, 0.3)


def test_without_queries_a_rate_is_missing_not_zero():
    counts = FlipCounts(0, 0, 0, 0)
    assert (counts.nfr, counts.pfr) == (None, None)


def test_counts_of_different_queries_are_refused():
    with pytest.raises(ValueError, match="same queries"):
        FlipCounts.of(np.ones(2, bool), np.ones(3, bool))


def column(*values):
    return np.array(values, np.int64)[:, None]


def scores(*values):
    return np.array(values, np.float32)[:, None]


@pytest.fixture
def tracker():
    """Query 0 was right (row 10), query 1 wrong (row 90), query 2 has no relevant row."""
    relevance = Relevance.from_pairs(3, [0, 0, 1], [10, 11, 20])
    return FlipTracker(relevance, scores(0.9, 0.5, 0.4), column(10, 90, 91))


def seen(stage):
    return [(e.query, e.reference, e.kind, e.healed) for e in stage.events]


def test_a_query_that_turns_wrong_opens_a_flip_against_both_references_with_both_answers(tracker):
    stage = tracker.update(np.array([0]), scores(0.7), column(99))
    assert seen(stage) == [(0, OLD, NEGATIVE, False), (0, PREVIOUS, NEGATIVE, False)]
    event = stage.events[0]
    assert (event.old_row, event.new_row) == (10, 99)
    assert (event.old_score, event.new_score) == pytest.approx((0.9, 0.7))
    assert stage.against_old == FlipCounts(both_right=0, negative_flips=1, positive_flips=0, both_wrong=1)
    assert stage.against_previous == stage.against_old


def test_a_query_that_recovers_heals_its_flip_and_is_a_positive_flip_of_its_stage(tracker):
    tracker.update(np.array([0]), scores(0.7), column(99))
    stage = tracker.update(np.array([0]), scores(0.8), column(11))
    assert seen(stage) == [
        (0, OLD, NEGATIVE, True),
        (0, PREVIOUS, NEGATIVE, True),
        (0, PREVIOUS, POSITIVE, False),
    ]
    against_old, against_previous = stage.events[0], stage.events[2]
    assert (against_old.old_row, against_old.new_row) == (10, 11)
    assert (against_previous.old_row, against_previous.new_row) == (99, 11)
    assert stage.against_old == FlipCounts(both_right=1, negative_flips=0, positive_flips=0, both_wrong=1)
    assert stage.against_previous == FlipCounts(
        both_right=0, negative_flips=0, positive_flips=1, both_wrong=1
    )


def test_a_gain_that_is_lost_again_is_a_regression_of_its_stage_but_not_against_the_old_system(tracker):
    tracker.update(np.array([1]), scores(0.8), column(20))
    stage = tracker.update(np.array([1]), scores(0.8), column(92))
    assert seen(stage) == [
        (1, OLD, POSITIVE, True),
        (1, PREVIOUS, POSITIVE, True),
        (1, PREVIOUS, NEGATIVE, False),
    ]
    assert stage.against_old.negative_flips == 0
    assert stage.against_previous.negative_flips == 1


def test_another_answer_that_is_as_right_or_as_wrong_is_no_flip(tracker):
    assert tracker.update(np.array([0, 1]), scores(0.8, 0.6), column(11, 93)).events == ()


def test_a_quiet_stage_moves_the_previous_stage_along(tracker):
    tracker.update(np.array([0]), scores(0.7), column(99))
    stage = tracker.update(np.array([], np.int64), np.empty((0, 1), np.float32), np.empty((0, 1), np.int64))
    assert stage.events == ()
    assert stage.against_previous.negative_flips == 0
    assert stage.against_old.negative_flips == 1


def test_a_query_without_relevant_rows_never_counts_and_never_flips(tracker):
    stage = tracker.update(np.array([2]), scores(0.8), column(10))
    assert stage.events == ()
    assert stage.against_old.n == 2


def test_a_query_is_right_when_any_of_its_k_answers_is_relevant():
    relevance = Relevance.from_pairs(1, [0], [5])
    tracker = FlipTracker(relevance, np.array([[0.9, 0.8]], np.float32), np.array([[1, 5]]))
    assert tracker.old_right.tolist() == [True]
    assert tracker.update(np.array([0]), np.array([[0.9, 0.8]], np.float32), np.array([[2, 5]])).events == ()
    assert (
        len(tracker.update(np.array([0]), np.array([[0.9, 0.8]], np.float32), np.array([[5, 1]])).events) == 0
    )
    assert (
        len(tracker.update(np.array([0]), np.array([[0.9, 0.8]], np.float32), np.array([[2, 1]])).events) == 2
    )


@settings(derandomize=True, deadline=None)
@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=2, max_size=12))
def test_open_flips_always_equal_the_counts(stages):
    """Opened minus healed negative flips against the old system = its negative flips now, whatever happened before."""
    relevance = Relevance.from_pairs(4, range(4), range(4))

    def rows(right):
        return np.where(right, np.arange(4), 100)[:, None]

    tracker = FlipTracker(relevance, np.ones((4, 1), np.float32), rows(stages[0]))
    balance = {(r, k): 0 for r in Reference for k in FlipKind}
    for before, right in pairwise(stages):
        stage = tracker.update(np.arange(4), np.ones((4, 1), np.float32), rows(right))
        for event in stage.events:
            balance[event.reference, event.kind] += -1 if event.healed else 1
        assert (
            balance[OLD, NEGATIVE]
            == stage.against_old.negative_flips
            == sum(o and not r for o, r in zip(stages[0], right, strict=True))
        )
        assert balance[OLD, POSITIVE] == stage.against_old.positive_flips
        assert stage.against_previous == FlipCounts.of(np.array(before), np.array(right))
        assert min(balance.values()) >= 0


def test_answers_that_do_not_fit_the_queries_are_refused():
    with pytest.raises(ValueError, match="3 queries need"):
        FlipTracker(Relevance.from_pairs(3, [0], [0]), scores(0.1), column(1))
