"""Incremental search equals a full search of the gallery after every batch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import incremental
from orchestrator.core.incremental import IncrementalTopK
from orchestrator.core.metrics import top_k


def whole(rng, n, d=3):
    """Whole coordinates: equal vectors, equal scores, exact dot products."""
    return rng.integers(-2, 3, (n, d)).astype(np.float32)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 50),
    n_queries=st.integers(1, 12),
    k=st.integers(1, 7),
    spare=st.integers(0, 5),
    sizes=st.lists(st.integers(0, 20), max_size=8),
)
def test_any_stream_of_batches_equals_searching_again(seed, n, n_queries, k, spare, sizes):
    rng = np.random.default_rng(seed)
    queries, gallery = whole(rng, n_queries), whole(rng, n)
    own = gallery.copy()
    index = IncrementalTopK(queries, own, k, k + spare)
    before = top_k(queries, gallery, k)
    for size in sizes:
        # Rows repeat within a batch and between batches; rows that never come are the quarantined ones.
        rows, vectors = rng.integers(0, n, size), whole(rng, size)
        for row, vector in zip(rows, vectors, strict=True):
            gallery[row] = vector
        changed = index.apply(rows, vectors)
        after = top_k(queries, gallery, k)
        assert np.array_equal(own, gallery)
        assert np.array_equal(index.top()[0], after[0])
        assert np.array_equal(index.top()[1], after[1])
        moved = (before[0] != after[0]).any(axis=1) | (before[1] != after[1]).any(axis=1)
        assert changed.tolist() == np.flatnonzero(moved).tolist()
        before = after


@pytest.mark.parametrize("drift", [-0.5, 0.0, 0.5])
def test_a_backfill_of_real_vectors_equals_searching_again(rng, unit, drift):
    """Improving, neutral and falling scores: the vectors move towards their query, nowhere, or away."""
    queries, gallery = unit(200, 16), unit(2000, 16)
    towards = queries[rng.integers(0, 200, 2000)]
    new = gallery + drift * towards + 0.1 * unit(2000, 16)
    new = (new / np.linalg.norm(new, axis=1, keepdims=True)).astype(np.float32)
    index = IncrementalTopK(queries, gallery, 5, 25)
    for rows in np.array_split(rng.permutation(2000), 20):
        index.apply(rows, new[rows])
        scores, found = top_k(queries, gallery, 5)
        np.testing.assert_allclose(index.top()[0], scores, atol=1e-6)
        # Where scores are further apart than rounding, the rows are the same too.
        clear = np.abs(np.diff(scores, axis=1)).min(axis=1) > 1e-6
        assert np.array_equal(index.top()[1][clear, :4], found[clear, :4])


def test_a_query_whose_buffer_runs_dry_is_searched_in_full_and_no_other():
    queries = np.array([[1, 0], [0, 1]], np.float32)
    gallery = np.array([[9, 0], [8, 0], [0, 9], [0, 8], [3, 3]], np.float32)
    index = IncrementalTopK(queries, gallery, 2, 2)
    assert index.searched_again == 0
    assert index.apply(np.array([0]), np.array([[-1, 0]], np.float32)).tolist() == [0]
    assert index.searched_again == 1
    assert index.top()[1].tolist() == [[1, 4], [2, 3]]


def test_queries_that_would_run_dry_next_are_searched_along_with_one_that_has():
    queries = np.eye(3, dtype=np.float32)
    gallery = np.concatenate(
        [np.diag([9.0, 9, 9])] + [np.diag([x, x, x]) for x in (8.0, 7, 6, 5, 4, 3)]
    ).astype(np.float32)
    index = IncrementalTopK(queries, gallery, 1, 4)
    worse = -np.ones((9, 3), np.float32)
    # Query 0 loses all four rows it remembers, query 1 three of them, query 2 one.
    index.apply(np.array([0, 3, 6, 1, 4, 7, 2, 5]), worse[:8])
    assert index.searched_again == 0
    index.apply(np.array([9]), worse[:1])
    assert index.searched_again == 2
    assert index.top()[1].tolist() == [[12], [10], [8]]
    index.apply(np.array([10]), worse[:1])
    assert (index.searched_again, index.top()[1].tolist()) == (2, [[12], [13], [8]])


def test_a_larger_buffer_spares_the_full_search():
    queries = np.array([[1, 0]], np.float32)
    gallery = np.array([[9, 0], [8, 0], [7, 0], [0, 0]], np.float32)
    index = IncrementalTopK(queries, gallery, 2, 3)
    index.apply(np.array([0]), np.array([[-1, 0]], np.float32))
    assert (index.top()[1].tolist(), index.searched_again) == ([[1, 2]], 0)


def test_blocks_of_queries_do_not_change_the_result(grid, monkeypatch):
    monkeypatch.setattr(incremental, "_NEWCOMERS", 30)
    queries, gallery, new = grid(40), grid(100), grid(100)
    index = IncrementalTopK(queries, gallery, 3)
    index.apply(np.arange(10, 60), new[10:60])
    assert np.array_equal(index.top()[1], top_k(queries, gallery, 3)[1])


def test_the_first_k_can_be_asked_for(grid):
    index = IncrementalTopK(grid(4), grid(30), 5)
    assert np.array_equal(index.top(2)[1], index.top()[1][:, :2])
    assert index.top(9)[1].shape == (4, 5)


@pytest.mark.parametrize(
    ("rows", "shape", "message"),
    [
        ([5], (1, 3), "outside"),
        ([-1], (1, 3), "outside"),
        ([0], (1, 2), "need vectors"),
        ([0, 1], (1, 3), "need"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_changes_nothing(grid, rows, shape, message):
    gallery = grid(5)
    before = gallery.copy()
    index = IncrementalTopK(grid(2), gallery, 1)
    with pytest.raises(ValueError, match=message):
        index.apply(np.array(rows), np.ones(shape, np.float32))
    assert np.array_equal(gallery, before)


def test_a_buffer_smaller_than_k_is_refused(grid):
    with pytest.raises(ValueError, match="buffer"):
        IncrementalTopK(grid(2), grid(5), 3, 2)
