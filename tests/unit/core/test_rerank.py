from __future__ import annotations

import numpy as np

from orchestrator.core.rerank import rerank


def test_candidates_come_in_the_order_of_their_floats():
    random = np.random.default_rng(0)
    gallery, queries = (
        random.normal(size=(50, 6)).astype(np.float32),
        random.normal(size=(4, 6)).astype(np.float32),
    )
    rows = np.stack([random.permutation(50)[:12] for _ in range(4)])
    asked = []

    def floats_of(wanted):
        asked.append(wanted)
        return gallery[wanted]

    scores, found = rerank(random.random((4, 12), dtype=np.float32), rows, queries, floats_of, 5)
    exact = np.einsum("qd,qrd->qr", queries, gallery[rows])
    order = np.argsort(-exact, axis=1)[:, :5]
    np.testing.assert_array_equal(found, np.take_along_axis(rows, order, 1))
    np.testing.assert_allclose(scores, np.take_along_axis(exact, order, 1), rtol=1e-5)
    assert len(asked) == 1
    np.testing.assert_array_equal(asked[0], np.unique(rows))


def test_equal_floats_by_the_lower_row_and_missing_answers_stay_missing():
    gallery = np.ones((9, 2), np.float32)
    rows = np.array([[7, 2, 5, -1], [-1, -1, -1, -1]])
    scores = np.where(rows < 0, -np.inf, 0.5).astype(np.float32)
    found_scores, found = rerank(scores, rows, np.ones((2, 2), np.float32), lambda wanted: gallery[wanted], 4)
    np.testing.assert_array_equal(found, [[2, 5, 7, -1], [-1] * 4])
    np.testing.assert_array_equal(found_scores[0], np.array([2, 2, 2, -np.inf], np.float32))


def test_a_row_without_a_float_keeps_the_score_of_its_code():
    gallery = np.array([[0.2, 0], [0, 0], [0.9, 0]], np.float32)
    scores, found = rerank(
        np.array([[0.8, 0.5, 0.1]], np.float32), np.array([[0, 1, 2]]), np.array([[1, 0]], np.float32), lambda r: gallery[r], 3
    )  # fmt: skip
    np.testing.assert_array_equal(found, [[2, 1, 0]])
    np.testing.assert_allclose(scores, [[0.9, 0.5, 0.2]])
