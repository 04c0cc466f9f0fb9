"""Several labels a thing: values counted by hand, and by a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.multilabel import average_precision, multilabel

TRUTH = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 0]], np.bool_)
SCORES = np.array([[0.9, 0.6, 0.1], [0.2, 0.6, 0.2], [0.5, 0.6, 0.3]])


def test_three_things_and_three_labels_with_a_tie_and_a_label_of_nobody():
    found = multilabel(TRUTH, SCORES)
    # Label 0: ranks 1 and 3. Label 1: one threshold, 2 of 3 right. Label 2: nobody has it, nobody was given it.
    assert found.average_precisions == (pytest.approx((1 + 2 / 3) / 2), pytest.approx(2 / 3), None)
    assert found.mean_average_precision == pytest.approx(0.75)
    # From 0.5 on: label 0 given to 0 and 2 (TP 1, FP 1, FN 1), label 1 to all (TP 2, FP 1).
    assert found.micro_f1 == pytest.approx(2 * 3 / (2 * 3 + 2 + 1))
    assert found.macro_f1 == pytest.approx((2 / 4 + 4 / 5) / 2)
    assert (found.n, found.unused) == (3, 1)
    # Given to somebody, the label of nobody pulls the macro mean down.
    given_all = multilabel(TRUTH, SCORES, threshold=0.3)
    assert given_all.macro_f1 == pytest.approx((2 / 4 + 4 / 5 + 0) / 3)


def test_nothing_known_is_none_not_zero():
    found = multilabel(np.zeros((2, 2), np.bool_), np.zeros((2, 2)))
    assert (found.mean_average_precision, found.micro_f1, found.macro_f1, found.unused) == (
        None,
        None,
        None,
        2,
    )


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3)), min_size=1, max_size=12))
def test_average_precision_is_the_area_over_thresholds_in_any_order(pairs):
    truth, scores = (np.array(column) for column in zip(*pairs, strict=True))
    area, recall = 0.0, 0.0
    for threshold in sorted(set(scores), reverse=True):
        given_ = scores >= threshold
        hits = (truth & given_).sum()
        if truth.sum():
            area += (hits / truth.sum() - recall) * hits / given_.sum()
            recall = hits / truth.sum()
    for order in (slice(None), slice(None, None, -1)):
        found = average_precision(truth[order], scores[order].astype(np.float64))
        assert found == (pytest.approx(area) if truth.any() else None)


@pytest.mark.parametrize(
    ("truth", "scores", "said"),
    [
        (TRUTH, SCORES[:2], r"must be \(n, labels\)"),
        (TRUTH.astype(int), SCORES, "truth bool"),
        (TRUTH[0], SCORES[0], r"must be \(n, labels\)"),
        (TRUTH, SCORES * np.inf, "finite"),
    ],
)
def test_what_does_not_fit_is_refused(truth, scores, said):
    with pytest.raises(ValueError, match=said):
        multilabel(truth, scores)
