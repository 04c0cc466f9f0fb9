"""Exact search, recall and average precision; the peer is ir_measures, the expectation a naive loop."""

from __future__ import annotations

import ir_measures
import numpy as np
import pytest

from orchestrator.core import metrics
from orchestrator.core.metrics import Relevance, evaluate, similarities, top_k


def naive_top(queries, gallery, k):
    scores = queries @ gallery.T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.mark.parametrize("k", [1, 2, 7, 100, 2500, 4000])
def test_search_equals_a_full_sort_with_ties_by_row(grid, k):
    queries, gallery = grid(40), grid(2500)
    scores, rows = top_k(queries, gallery, k)
    expected_scores, expected_rows = naive_top(queries, gallery, k)
    assert np.array_equal(rows, expected_rows)
    assert np.array_equal(scores, expected_scores)


@pytest.mark.parametrize("k", [1, 5])
def test_search_is_exact_across_blocks_of_queries_and_gallery(grid, k, monkeypatch):
    monkeypatch.setattr(metrics, "QUERY_BLOCK", 7)
    monkeypatch.setattr(metrics, "_GALLERY_BLOCK", 300)
    queries, gallery = grid(40), grid(2500)
    assert np.array_equal(top_k(queries, gallery, k)[1], naive_top(queries, gallery, k)[1])


def test_search_finds_negative_scores_and_an_empty_gallery_gives_nothing():
    queries = np.array([[-1.0, 0.0]], np.float32)
    scores, rows = top_k(queries, np.array([[3.0, 0], [1.0, 0], [2.0, 0]], np.float32), 2)
    assert (scores.tolist(), rows.tolist()) == ([[-1.0, -2.0]], [[1, 2]])
    assert top_k(queries, np.empty((0, 2), np.float32), 3)[1].shape == (1, 0)


def test_search_refuses_other_dimensions_and_no_rows_at_all(grid):
    with pytest.raises(ValueError, match="must be"):
        top_k(grid(2, 3), grid(5, 4), 1)
    with pytest.raises(ValueError, match="at least one row"):
        top_k(grid(2), grid(5), 0)


@pytest.mark.parametrize(("q", "v"), [(1, 1), (3, 500), (300, 2), (17, 15)])
def test_similarities_of_small_blocks_are_dot_products(unit, q, v):
    queries, gallery = unit(q, 48), unit(v, 48)
    expected = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    found = similarities(queries, gallery)
    assert found.shape == (q, v)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def random_relevance(rng, n_queries, n):
    relevant = rng.random((n_queries, n)) < 0.1
    relevant[::5] = False
    return Relevance.from_pairs(n_queries, *np.nonzero(relevant)), relevant


def test_recall_and_average_precision_equal_ir_measures(rng, unit):
    queries, gallery = unit(60, 8), unit(150, 8)
    relevance, relevant = random_relevance(rng, 60, 150)
    qrels = [ir_measures.Qrel(f"q{q}", f"d{d}", 1) for q, d in zip(*np.nonzero(relevant), strict=True)]
    scores = queries.astype(np.float64) @ gallery.T.astype(np.float64)
    run = [ir_measures.ScoredDoc(f"q{q}", f"d{d}", scores[q, d]) for q in range(60) for d in range(150)]
    for k in (1, 5):
        expected = ir_measures.calc_aggregate([ir_measures.Success @ k, ir_measures.AP], qrels, run)
        found = evaluate(queries, gallery, relevance, k, average_precision=True)
        assert (found.n, found.excluded) == (48, 12)
        assert found.recall == pytest.approx(expected[ir_measures.Success @ k], abs=1e-12)
        assert found.mean_average_precision == pytest.approx(expected[ir_measures.AP], abs=1e-12)


def test_average_precision_equals_a_naive_loop_where_scores_tie(rng, grid, monkeypatch):
    monkeypatch.setattr(metrics, "_SCORES_BYTES", 1)
    queries, gallery = grid(50), grid(120)
    relevance, relevant = random_relevance(rng, 50, 120)
    _, order = naive_top(queries, gallery, 120)
    expected = []
    for q in np.flatnonzero(relevant.any(axis=1)):
        found, total = 0, 0.0
        for rank, row in enumerate(order[q], start=1):
            if relevant[q, row]:
                found += 1
                total += found / rank
        expected.append(total / found)
    found = evaluate(queries, gallery, relevance, average_precision=True)
    np.testing.assert_allclose(found.average_precisions, expected, rtol=1e-12)


def test_hits_are_counted_as_whole_numbers_over_answerable_queries(grid):
    gallery = np.eye(3, dtype=np.float32)
    queries = np.eye(3, dtype=np.float32)
    relevance = Relevance.from_pairs(3, [0, 1], [0, 2])
    found = evaluate(queries, gallery, relevance, 1)
    assert (found.hits, found.n, found.excluded, found.recall) == (1, 2, 1, 0.5)
    assert evaluate(queries, gallery, relevance, 3).hits == 2


def test_without_any_answerable_query_the_rates_are_missing_not_zero(grid):
    found = evaluate(grid(3), grid(5), Relevance.from_pairs(3, [], []), average_precision=True)
    assert (found.n, found.excluded, found.recall, found.mean_average_precision) == (0, 3, None, None)


def test_relevance_by_label_is_every_row_of_the_label_and_none_matches_nothing():
    relevance = Relevance.from_labels(["b", None, "a", "z"], ["a", "b", None, "a"])
    assert [relevance.of(q).tolist() for q in range(4)] == [[1], [], [0, 3], []]
    assert relevance.answerable.tolist() == [True, False, True, False]


def test_pairs_may_come_in_any_order_and_twice():
    relevance = Relevance.from_pairs(3, [2, 0, 2, 2], [5, 1, 3, 5])
    assert [relevance.of(q).tolist() for q in range(3)] == [[1], [], [3, 5]]


@pytest.mark.parametrize(
    ("offsets", "rows"),
    [
        ([1, 2], [0, 1]),
        ([0, 1], [0, 1]),
        ([0, 2, 1, 3], [0, 1, 2]),
        ([0, 2], [1, 1]),
        ([0, 2], [2, 1]),
        ([0, 1], [-1]),
    ],
)
def test_relevance_that_is_no_set_of_rows_is_refused(offsets, rows):
    with pytest.raises(ValueError, match="relevan"):
        Relevance(np.array(offsets, np.int64), np.array(rows, np.int64))


def test_relevance_of_another_type_or_number_of_queries_is_refused(grid):
    with pytest.raises(ValueError, match="int64"):
        Relevance(np.array([0], np.int32), np.array([], np.int64))
    with pytest.raises(ValueError, match="outside"):
        Relevance.from_pairs(2, [2], [0])
    with pytest.raises(ValueError, match="relevance is for 2"):
        evaluate(grid(3), grid(4), Relevance.from_pairs(2, [0], [0]))


def test_hits_of_some_queries_look_at_their_own_rows():
    relevance = Relevance.from_pairs(3, [0, 1, 2], [7, 8, 9])
    found = np.array([[9, 1], [8, 7]])
    assert relevance.hits(found, np.array([2, 0])).tolist() == [True, True]
    assert relevance.hits(found, np.array([0, 2])).tolist() == [False, False]


def test_a_row_behind_every_relevant_one_is_no_hit_of_the_next_query():
    relevance = Relevance.from_pairs(3, [1, 2], [0, 1])
    assert relevance.hits(np.array([[3], [0], [7]])).tolist() == [False, True, False]
    assert relevance.hits(np.array([[6, 3], [5, 1]]), np.array([0, 2])).tolist() == [False, True]
