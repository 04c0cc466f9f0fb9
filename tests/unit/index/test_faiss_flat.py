"""What the flat index promises beyond what every backend does: the order of equal scores, and whole rows."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.index.faiss_flat import FaissFlat

COPIES = 20


@pytest.fixture
def doubled():
    """Fifty vectors, each twenty times, those of a kind far apart; whole numbers, so that no sum is rounded."""
    kinds = np.random.default_rng(0).integers(-9, 9, (50, 16)).astype(np.float32)
    return np.tile(kinds, (COPIES, 1))


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("k", [1, 5, COPIES, 33])
def test_equal_scores_are_answered_by_the_lower_row(doubled, queries, k):
    asked = np.random.default_rng(1).integers(-9, 9, (queries, 16)).astype(np.float32)
    scores, rows = FaissFlat(doubled).search(asked, k)
    exact = np.argsort(-(asked @ doubled.T), axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(rows, exact)
    assert (np.diff(scores, axis=1) <= 0).all()


def test_equal_scores_of_allowed_rows_are_answered_by_the_lower_row(doubled):
    allowed = np.arange(len(doubled)) >= 500
    _, rows = FaissFlat(doubled).search(doubled[7:8], 4, allowed)
    assert rows.tolist() == [[507, 557, 607, 657]]


def test_an_index_of_nothing_but_zeros_answers_its_first_rows():
    scores, rows = FaissFlat(np.zeros((100, 8), np.float32)).search(np.ones((2, 8), np.float32), 3)
    assert rows.tolist() == [[0, 1, 2]] * 2
    assert not scores.any()


def test_negative_scores_and_places_without_a_row():
    vectors = -np.eye(3, dtype=np.float32)
    scores, rows = FaissFlat(vectors).search(np.array([[3, 2, 1]], np.float32), 5)
    assert rows.tolist() == [[2, 1, 0, -1, -1]]
    assert scores[0, :3].tolist() == [-1, -2, -3]


def test_vectors_of_another_length_are_refused(doubled):
    index = FaissFlat(doubled)
    with pytest.raises(ValueError, match="are not 2 rows of 16"):
        index.replace(np.array([1, 2]), np.ones((2, 8), np.float32))
    np.testing.assert_array_equal(index.vectors(), doubled)


def test_what_was_there_stays_when_it_grows(doubled):
    index = FaissFlat(doubled)
    index.grow(len(doubled) + 5)
    index.replace(np.array([len(doubled) + 2]), np.full((1, 16), 9, np.float32))
    np.testing.assert_array_equal(index.vectors()[: len(doubled)], doubled)
    assert (index.vectors()[len(doubled) + 2] == 9).all()
    assert not index.vectors()[len(doubled) + 3].any()


@pytest.mark.parametrize("queries", [1, 3])
def test_a_rows_score_has_the_same_bits_whichever_rows_are_searched_with_it(queries):
    """What shards rely on: a tie that k cuts off here is none there, and a filter that lets all through changes nothing."""
    random = np.random.default_rng(2)
    gallery = random.normal(size=(900, 32)).astype(np.float32)
    gallery[600:] = gallery[:300]
    asked = random.normal(size=(queries, 32)).astype(np.float32)
    scores, rows = FaissFlat(gallery).search(asked, 900)
    for k in (1, 2, 5, 12, 300):
        for first in (0, 450):
            part = FaissFlat(gallery[first:])
            allowed = None if first == 0 else np.ones(450, bool)
            found, places = part.search(asked, k, allowed)
            for q in range(queries):
                of = dict(zip(rows[q].tolist(), scores[q].tolist(), strict=True))
                assert [of[first + place] for place in places[q].tolist()] == found[q].tolist()
