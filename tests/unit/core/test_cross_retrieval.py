"""Retrieval in both directions from one matrix of scores, against values counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.cross_retrieval import Ties, best_ranks, cross_retrieval
from orchestrator.core.metrics import Relevance, evaluate

OWN = Relevance.from_pairs(3, [0, 1, 2], [0, 1, 2])
# Texts 0 and 1 are the same words, so their lines are equal; video 2 ties with its right rival in line 2.
SCORES = np.array([[0.9, 0.4, 0.1], [0.9, 0.4, 0.1], [0.2, 0.7, 0.7]])


def test_three_texts_and_three_videos_with_a_tie_and_a_text_that_comes_twice():
    there = cross_retrieval(SCORES, OWN, cuts=(1, 2, 3))
    assert best_ranks(SCORES, OWN).tolist() == [1, 2, 2]
    assert (there.n, there.excluded, there.hits) == (3, 0, (1, 3, 3))
    assert there.recalls == pytest.approx((1 / 3, 1, 1))
    assert (there.median_rank, there.mean_rank) == (2, pytest.approx(5 / 3))
    assert best_ranks(SCORES, OWN, Ties.WORST).tolist() == [1, 2, 2]
    # The other way a video sees both equal texts with one score: the lower row takes it, and the other is second.
    assert best_ranks(SCORES.T, OWN).tolist() == [1, 3, 1]
    assert best_ranks(SCORES.T, OWN, Ties.WORST).tolist() == [2, 3, 1]
    assert cross_retrieval(SCORES.T, OWN, cuts=(1, 2, 3)).hits == (2, 2, 3)
    assert cross_retrieval(SCORES.T, OWN, cuts=(1, 2, 3), ties=Ties.WORST).hits == (1, 2, 3)


def test_any_of_several_right_answers_counts_and_right_ones_do_not_stand_in_each_others_way():
    both = Relevance.from_pairs(3, [0, 0, 1, 1, 2], [0, 1, 0, 1, 2])
    assert best_ranks(SCORES, both).tolist() == [1, 1, 2]
    assert best_ranks(SCORES.T, both, Ties.WORST).tolist() == [1, 2, 1]
    equal = np.zeros((3, 3))
    assert best_ranks(equal, both).tolist() == [1, 1, 3]
    assert best_ranks(equal, both, Ties.WORST).tolist() == [2, 2, 3]


def test_a_query_without_an_answer_is_left_out_and_counted():
    found = cross_retrieval(SCORES, Relevance.from_pairs(3, [2], [1]))
    assert (found.n, found.excluded, found.hits, found.median_rank) == (1, 2, (1, 1, 1), 1)
    none = cross_retrieval(SCORES, Relevance.from_pairs(3, [], []))
    assert (none.n, none.excluded, none.recalls, none.median_rank, none.mean_rank) == (0, 3, None, None, None)


@given(st.data())
def test_ranks_are_those_of_sorting_and_recall_that_of_the_engine(data):
    n, m = data.draw(st.integers(1, 6)), data.draw(st.integers(1, 6))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    queries = rng.integers(-1, 2, (n, 2)).astype(np.float32)
    gallery = rng.integers(-1, 2, (m, 2)).astype(np.float32)
    right = rng.random((n, m)) < 0.3
    relevance = Relevance.from_pairs(n, *np.nonzero(right))
    scores = queries @ gallery.T
    for ties, second in ((Ties.ROW, np.zeros_like(right)), (Ties.WORST, right)):
        ranks = best_ranks(scores, relevance, ties)
        for query in range(n):
            order = sorted(range(m), key=lambda c, q=query, s=second: (-scores[q, c], s[q, c], c))
            places = [at for at, c in enumerate(order, 1) if right[query, c]]
            if (
                ties is Ties.WORST
            ):  # several right ones of a score all stand behind the wrong ones: the first of them counts
                assert ranks[query] == (min(places) if places else 0)
            else:
                assert ranks[query] == (min(places) if places else 0)
    assert (
        cross_retrieval(scores, relevance, cuts=(2,)).hits[0] == evaluate(queries, gallery, relevance, 2).hits
    )


@pytest.mark.parametrize(
    ("scores", "cuts", "said"),
    [
        (np.zeros((2, 3)), (1,), "do not fit"),
        (np.zeros((3, 2)), (1,), "do not fit"),
        (np.zeros(3), (1,), "do not fit"),
        (np.full((3, 3), np.nan), (1,), "finite"),
        (np.zeros((3, 3)), (0,), "a cut is 1 or more"),
    ],
)
def test_what_does_not_fit_is_refused(scores, cuts, said):
    with pytest.raises(ValueError, match=said):
        cross_retrieval(scores, OWN, cuts=cuts)
