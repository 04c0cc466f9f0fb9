"""What can still heal a wrong answer during a refresh, against every way in which the refresh could go on."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from orchestrator.core.causes import NOTHING, Cause, waiting_row
from orchestrator.core.flips import FlipTracker, Reference
from orchestrator.core.metrics import Relevance, top_k


def beyond_healing(answers, queries, relevance, done):
    """Which of the queries wait for nothing; what the others wait for is really waiting."""
    rows = waiting_row(answers, queries, relevance, done)
    for query, found, row in zip(queries, answers, rows, strict=True):
        if row != NOTHING:
            assert not done[row]
            waiting = [each for each in relevance.of(int(query)) if not done[each]]
            assert row in (waiting or found)
    return rows == NOTHING


def settled(*rows, n=6):
    found = np.zeros(n, np.bool_)
    found[list(rows)] = True
    return found


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ((4, 0, 1), True),  # the wrong answer and all relevant rows have their new vectors
        ((4, 0), False),  # row 1 waits: its new vector may come first
        ((0, 1), False),  # the wrong answer waits: its new vector may leave
        ((), False),
    ],
)
def test_a_wrong_answer_is_beyond_healing_when_nothing_that_decides_it_can_move(rows, expected):
    relevance = Relevance.from_pairs(2, [0, 0, 1], [0, 1, 2])
    found = beyond_healing(np.array([[4]]), np.array([0]), relevance, settled(*rows))
    assert found.tolist() == [expected]


def test_with_several_answers_each_of_them_must_be_settled():
    relevance = Relevance.from_pairs(1, [0], [0])
    answers = np.array([[3, 4]])
    assert beyond_healing(answers, np.array([0]), relevance, settled(0, 3, 4)).tolist() == [True]
    assert beyond_healing(answers, np.array([0]), relevance, settled(0, 3)).tolist() == [False]


def test_without_queries_there_is_nothing():
    empty = np.empty((0, 1), np.int64)
    assert beyond_healing(
        empty, np.empty(0, np.int64), Relevance.from_pairs(1, [0], [0]), settled()
    ).shape == (0,)


@pytest.mark.parametrize("k", [1, 2])
def test_what_is_beyond_healing_stays_wrong_in_every_continuation_and_the_end_has_no_other(k):
    """Ten random little galleries, every subset refreshed, every continuation in which rows move to where they may."""
    places = np.array([[1, 0], [0, 1], [-1, 0]], np.float32)
    queries = np.array([[1, 0.1], [0.1, 1]], np.float32)
    relevance = Relevance.from_pairs(2, [0, 1, 1], [0, 1, 2])
    seen = set()
    for seed in range(10):
        rng = np.random.default_rng(seed)
        gallery = places[rng.integers(0, 3, 4)] + 0.01 * rng.standard_normal((4, 2)).astype(np.float32)
        for bits in itertools.product([False, True], repeat=4):
            done = np.array(bits)
            found = top_k(queries, gallery, k)[1]
            wrong = np.flatnonzero(~relevance.hits(found))
            blamed = beyond_healing(found[wrong], wrong, relevance, done)
            seen.update(blamed.tolist())
            if done.all():
                assert blamed.all()
            waiting = np.flatnonzero(~done)
            for moves in itertools.product(places, repeat=len(waiting)):
                after = gallery.copy()
                for row, vector in zip(waiting, moves, strict=True):
                    after[row] = vector
                still = relevance.hits(top_k(queries, after, k)[1])
                assert not still[wrong[blamed]].any()
    assert seen == {False, True}


@pytest.fixture
def tracker():
    """Query 0 was right; rows 0 and 1 answer it."""
    relevance = Relevance.from_pairs(1, [0, 0], [0, 1])
    return FlipTracker(relevance, np.array([[0.9]], np.float32), np.array([[0]]))


def update(tracker, row, *rows):
    moved = np.array([0]) if row is not None else np.empty(0, np.int64)
    answers = np.full((len(moved), 1), row or 0)
    return tracker.update(moved, np.full((len(moved), 1), 0.5, np.float32), answers, settled(*rows))


def test_a_flip_that_opens_while_something_waits_is_the_mixtures_until_nothing_does(tracker):
    stage = update(tracker, 4, 4)
    assert [(e.reference, e.cause) for e in stage.events] == [
        (Reference.OLD_SYSTEM, Cause.MIXED_STAGE),
        (Reference.PREVIOUS_STAGE, Cause.MIXED_STAGE),
    ]
    assert update(tracker, None, 4, 0).blamed == ()
    assert update(tracker, None, 4, 0, 1).blamed == (0,)
    assert update(tracker, None, 4, 0, 1).blamed == (), "it is said once"


def test_a_flip_that_opens_when_nothing_waits_is_the_models_at_once(tracker):
    stage = update(tracker, 4, 4, 0, 1)
    assert {e.cause for e in stage.events} == {Cause.MODEL}
    assert stage.blamed == ()


def test_what_nothing_heals_while_stored_vectors_are_recoded_is_the_codecs(tracker):
    tracker.settled_cause = Cause.QUANTISATION
    assert {e.cause for e in update(tracker, 4, 4).events} == {Cause.MIXED_STAGE}
    assert update(tracker, None, 4, 0, 1).blamed == (0,)
    update(tracker, 0, 4, 0, 1)
    assert {e.cause for e in update(tracker, 4, 4, 0, 1).events if not e.healed} == {Cause.QUANTISATION}


def test_what_heals_has_no_cause_and_can_be_blamed_again(tracker):
    update(tracker, 4, 4, 0, 1)
    healed = update(tracker, 1, 4, 0, 1)  # an item was changed after all
    assert [e.cause for e in healed.events] == [None] * 3
    again = update(tracker, 5, 4, 0, 1)  # row 5 waits
    assert {e.cause for e in again.events if not e.healed} == {Cause.MIXED_STAGE}
    assert update(tracker, None, 4, 0, 1, 5).blamed == (0,)


def test_a_wrong_answer_that_leaves_for_a_settled_one_is_not_waited_for_any_more(tracker):
    assert {e.cause for e in update(tracker, 4, 0, 1).events} == {Cause.MIXED_STAGE}
    assert update(tracker, 5, 0, 1, 5).blamed == (0,)


def test_a_query_that_was_always_wrong_is_nobodys_flip():
    tracker = FlipTracker(Relevance.from_pairs(1, [0], [0]), np.array([[0.9]], np.float32), np.array([[3]]))
    assert update(tracker, 4, 4, 0).blamed == ()
    assert update(tracker, None, 4, 0).events == ()
