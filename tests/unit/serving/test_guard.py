"""Guarded searches over a real index: which rows each model's query may meet, and when the old model is asked."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from orchestrator.core.calibration import Calibration
from orchestrator.core.guard import Guard
from orchestrator.index import make_index
from orchestrator.serving.guard import GuardedSearch, RolloutGuard, best_of
from orchestrator.serving.queries import QueryPath

OLD, NEW = 1, 2


class Encoder:
    """The old model: what it makes of a query is what the query is; counts what it was asked."""

    def __init__(self):
        self.asked = []

    def preprocess(self, query):
        return query

    def encode(self, prepared):
        self.asked += [len(prepared)]
        return np.array(prepared, np.float32)


@pytest.fixture
def encoder():
    return Encoder()


def guarded(encoder, queries, guard):
    context = SimpleNamespace(encoder=lambda model: encoder)
    return GuardedSearch(context, RolloutGuard(guard, QueryPath(None, None), NEW), queries)


ROWS = np.array([[1, 0], [0.6, 0.8], [0, 1], [0.8, 0.6], [0, 0]], np.float32)
VERSION = np.array([OLD, OLD, NEW, NEW, 0])


def search(encoder, asked, old, guard=None, k=5, allowed=None):
    index = make_index("faiss-flat", ROWS)
    asked = np.array(asked, np.float32)
    one = guarded(encoder, old, guard or Guard(-10, 10, Calibration(1.0, 0.0)))
    found = one.answer(index, VERSION, asked, *index.search(asked, k, allowed=allowed), allowed=allowed)
    if found is None:
        one.encode()
        found = one.answer(index, VERSION, asked, *index.search(asked, k, allowed=allowed), allowed=allowed)
    return found


def test_old_queries_meet_old_rows_and_new_queries_new_ones(encoder):
    """The old query lies on a new row, the new query on an old one: neither counts."""
    scores, rows, at_risk = search(encoder, [[1, 0]], [[0, 1]])
    assert at_risk.tolist() == [True]
    # Old rows by the old query: 0.8 (row 1), 0 (row 0). New rows by the new query: 0.8 (row 3), 0 (row 2).
    assert rows[0].tolist() == [1, 3, 0, 2, -1]
    np.testing.assert_allclose(scores[0], [0.8, 0.8, 0, 0, -np.inf], atol=1e-6)


def test_new_scores_are_merged_through_the_map(encoder):
    scores, rows, _ = search(encoder, [[1, 0]], [[0, 1]], Guard(-10, 10, Calibration(2.0, -0.5)))
    assert rows[0].tolist() == [3, 1, 0, 2, -1]
    np.testing.assert_allclose(scores[0][:4], [1.1, 0.8, 0, -0.5], atol=1e-6)


def test_a_query_outside_the_band_keeps_its_answer_and_asks_nobody(encoder):
    index = make_index("faiss-flat", ROWS)
    plain = index.search(np.array([[1, 0]], np.float32), 5)
    scores, rows, at_risk = search(encoder, [[1, 0]], [[0, 1]], Guard(0.5, 0.6, Calibration(1.0, 0.0)))
    assert at_risk.tolist() == [False]
    assert encoder.asked == []
    np.testing.assert_array_equal(rows, plain[1])
    np.testing.assert_array_equal(scores, plain[0])


def test_only_queries_at_risk_are_encoded(encoder):
    # Margins new - old: 0.8 - 1 = -0.2, and 1 - 0.8 = 0.2.
    _, _, at_risk = search(
        encoder, [[1, 0], [0, 1]], [[0, 1], [1, 0]], Guard(0.1, 0.3, Calibration(1.0, 0.0))
    )
    assert at_risk.tolist() == [False, True]
    assert encoder.asked == [1]


def test_rows_that_may_not_be_answered_are_not_merged_in(encoder):
    allowed = np.array([True, False, True, False, True])
    _, rows, at_risk = search(encoder, [[1, 0]], [[0, 1]], allowed=allowed)
    assert at_risk.tolist() == [True]
    assert sorted(rows[0].tolist()) == [-1, -1, -1, 0, 2]


def test_the_best_of_a_version_is_searched_for_where_the_answers_hold_none():
    index = make_index("faiss-flat", ROWS)
    asked = np.array([[1, 0], [0, 1]], np.float32)
    scores, rows = index.search(asked, 1)
    assert rows[:, 0].tolist() == [0, 2]
    np.testing.assert_allclose(best_of(index, asked, VERSION == NEW, scores, rows), [0.8, 1.0], rtol=1e-6)
    np.testing.assert_array_equal(best_of(index, asked, np.zeros(5, bool), scores, rows), [-np.inf, -np.inf])
