"""What to refresh next, against loops that do it the slow way."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.healing import (
    MOST_REVISIONS,
    flip_credit,
    priorities,
    revision_is_due,
)
from orchestrator.core.incremental import IncrementalTopK
from orchestrator.core.metrics import Relevance, top_k


def slow_credit(answers, flipped, relevance, settled, weights):
    credit = [0.0] * len(settled)
    for found, query, weight in zip(answers, flipped, weights, strict=True):
        waits_for = [row for row in [*relevance.of(int(query)), *found] if row >= 0 and not settled[row]]
        for row in waits_for:
            credit[row] += weight / len(waits_for)
    return credit


@st.composite
def worlds(draw):
    n, queries, k = draw(st.integers(1, 12)), draw(st.integers(0, 6)), draw(st.integers(1, 3))
    pairs = draw(st.lists(st.tuples(st.integers(0, max(queries - 1, 0)), st.integers(0, n - 1)), max_size=20))
    relevance = Relevance.from_pairs(
        queries, *([list(x) for x in zip(*pairs, strict=True)] if pairs and queries else ([], []))
    )
    flipped = np.array(sorted(draw(st.sets(st.integers(0, queries - 1)))) if queries else [], np.int64)
    answers = []
    for query in flipped:
        wrong = [row for row in range(n) if row not in relevance.of(int(query))]
        answers.append((draw(st.permutations(wrong))[:k] + [-1] * k)[:k])
    settled = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    weights = np.array(draw(st.lists(st.integers(0, 5), min_size=len(flipped), max_size=len(flipped))), float)
    return np.array(answers, np.int64).reshape(len(flipped), k), flipped, relevance, settled, weights


@settings(derandomize=True, deadline=None, max_examples=300)
@given(worlds())
def test_each_open_flip_shares_itself_among_the_rows_it_waits_for(world):
    answers, flipped, relevance, settled, weights = world
    expected = slow_credit(answers, flipped, relevance, settled, weights)
    np.testing.assert_allclose(
        flip_credit(answers, flipped, relevance, settled, weights), expected, atol=1e-12
    )
    ones = slow_credit(answers, flipped, relevance, settled, np.ones(len(flipped)))
    np.testing.assert_allclose(flip_credit(answers, flipped, relevance, settled), ones, atol=1e-12)


def test_the_credit_of_all_rows_is_the_number_of_flips_that_can_still_heal():
    relevance = Relevance.from_pairs(3, [0, 0, 1, 2], [0, 1, 2, 3])
    settled = np.array([False, False, True, True, True, False])
    # Query 0 waits for rows 0 and 1, query 1 for nothing: its answer and its only relevant row are settled; query 2 for row 5.
    credit = flip_credit(np.array([[4], [4], [5]]), np.array([0, 1, 2]), relevance, settled)
    assert credit.tolist() == [0.5, 0.5, 0, 0, 0, 1.0]


def test_refreshing_what_has_the_most_credit_heals_a_flip():
    """The reasoning in small: a new-to-new wrong row outranks a new-to-old right one until the right one is refreshed."""
    query, old, new = np.array([[1.0, 0.0]], np.float32), 0.6, 0.9
    gallery = np.array(
        [[old, 0], [new - 0.2, 0], [0.1, 0], [0.2, 0]], np.float32
    )  # row 1 is refreshed, and wrong
    relevance, settled = Relevance.from_pairs(1, [0], [0]), np.array([False, True, False, False])
    found = top_k(query, gallery, 1)[1]
    assert not relevance.hits(found)[0]
    credit = flip_credit(found, np.array([0]), relevance, settled)
    assert credit.argmax() == 0
    answers = IncrementalTopK(query, gallery.copy(), 1)
    answers.apply(np.array([0]), np.array([[new, 0]], np.float32))
    assert relevance.hits(answers.top(1)[1])[0]


def test_flips_and_demand_are_shares_of_their_wholes_among_the_rows_that_wait():
    waiting = np.array([True, True, True, False])
    credit, demand = np.array([3.0, 1.0, 0.0, 9.0]), np.array([0.0, 5.0, 15.0, 80.0])
    assert priorities("flips", waiting, credit, None).tolist() == [0.75, 0.25, 0, 0]
    assert priorities("demand", waiting, None, demand).tolist() == [0, 0.25, 0.75, 0]
    assert priorities("flips+demand", waiting, credit, demand).tolist() == [0.75, 0.5, 0.75, 0]
    assert priorities("flips+demand", waiting, 0 * credit, demand).tolist() == [0, 0.25, 0.75, 0]
    assert not priorities("flips", waiting, np.array([0, 0, 0, 1.0]), None).any()


@pytest.mark.parametrize(
    ("measure", "credit", "demand", "says"),
    [
        ("best", None, None, "no measure"),
        ("flips", None, np.ones(1), "needs flips"),
        ("flips+demand", np.ones(1), None, "needs demand"),
    ],
)
def test_a_measure_says_what_it_needs(measure, credit, demand, says):
    with pytest.raises(ValueError, match=says):
        priorities(measure, np.ones(1, bool), credit, demand)


@pytest.mark.parametrize(
    ("committed", "before", "written", "due"),
    [
        (0, None, 0, True),
        (49, 0, 1, False),
        (50, 0, 1, True),
        (149, 100, 3, False),
        (150, 100, 3, True),
        (900, 100, MOST_REVISIONS, False),
        (900, None, MOST_REVISIONS, False),
    ],
)
def test_a_revision_is_due_after_a_twentieth_of_the_items_and_not_for_ever(committed, before, written, due):
    assert revision_is_due(committed, before, 1000, written) is due


def test_a_rollout_of_few_items_is_not_revised_without_a_commit_between():
    assert not revision_is_due(3, 3, 4, 1)
