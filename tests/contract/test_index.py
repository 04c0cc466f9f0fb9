"""What every index backend must do; a new one joins by being registered."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.metrics import top_k
from orchestrator.errors import UsageError
from orchestrator.index import BACKENDS, make_index


@pytest.fixture(params=sorted(BACKENDS))
def make(request):
    return lambda vectors: make_index(request.param, vectors)


def some(n, dim=24, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_it_finds_what_an_exact_search_finds(make):
    gallery, queries = some(500), some(40, seed=1)
    scores, rows = make(gallery).search(queries, 10)
    exact_scores, exact_rows = top_k(queries, gallery, 10)
    np.testing.assert_array_equal(rows, exact_rows)
    np.testing.assert_allclose(scores, exact_scores, atol=1e-5)


def test_replaced_rows_are_found_and_the_others_stay(make):
    gallery, fresh = some(300), some(50, seed=2)
    index = make(gallery)
    rows = np.random.default_rng(3).choice(300, 50, replace=False)
    index.replace(rows, fresh)
    gallery[rows] = fresh
    np.testing.assert_array_equal(index.vectors(), gallery)
    np.testing.assert_array_equal(index.search(fresh, 1)[1][:, 0], rows)


def test_it_does_not_write_into_the_callers_matrix(make):
    gallery = some(20)
    before = gallery.copy()
    make(gallery).replace(np.array([3]), some(1, seed=9))
    np.testing.assert_array_equal(gallery, before)


def test_more_answers_than_rows_are_minus_one(make):
    _, rows = make(some(3)).search(some(2, seed=1), 5)
    assert (rows[:, 3:] == -1).all()
    assert (rows[:, :3] >= 0).all()


@pytest.mark.parametrize("queries", [1, 40])
def test_only_allowed_rows_are_answered(make, queries):
    gallery, asked = some(203), some(queries, seed=1)
    allowed = np.random.default_rng(4).random(203) < 0.3
    _, rows = make(gallery).search(asked, 12, allowed)
    places = np.flatnonzero(allowed)
    np.testing.assert_array_equal(rows, places[top_k(asked, gallery[places], 12)[1]])
    few = np.zeros(203, bool)
    few[[7, 202]] = True
    _, rows = make(gallery).search(asked, 4, few)
    assert (np.sort(rows, axis=1) == [-1, -1, 7, 202]).all()


def test_an_unknown_backend_names_those_there_are():
    with pytest.raises(UsageError, match="faiss-flat"):
        make_index("annoy", some(2))
