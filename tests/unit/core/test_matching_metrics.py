"""Micro-AP and its companions: the small golden case, a naive loop from the formula, pessimistic ties, refused inputs."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.matching_metrics import MAX_PREDICTIONS, matching_metrics

TRUTH = [("q1", "a"), ("q2", "b"), ("q3", "c"), ("q4", "d")]
SAID = [("q1", "a", 9), ("q2", "b", 7), ("q9", "z", 7), ("q3", "x", 5), ("q3", "c", 4), ("q8", "y", 3)]


def measure(truth, said, **options):
    return matching_metrics(
        [q for q, _ in truth],
        [r for _, r in truth],
        [q for q, _, _ in said],
        [r for _, r, _ in said],
        [s for *_, s in said],
        **options,
    )


def naive(truth, said):
    """The formula, rank by rank; ties false first; ranks within a query count what scores as much."""
    truth = set(truth)
    ordered = sorted(said, key=lambda p: (-p[2], p[:2] in truth))
    hits, ap, reached = 0, 0.0, (None, None)
    for rank, (q, r, s) in enumerate(ordered, 1):
        before = hits / len(truth)
        hits += (q, r) in truth
        ap += hits / rank * (hits / len(truth) - before)
        if hits / rank >= 0.9 and (reached[0] is None or hits / len(truth) > reached[0]):
            reached = (hits / len(truth), s)
    ranks = [sum(q == q2 and s2 >= s for q2, _, s2 in said) for q, r, s in said if (q, r) in truth]
    return ap, *reached, *(sum(rank <= k for rank in ranks) / len(truth) for k in (1, 10))


def test_the_golden_case_of_the_official_code():
    got = measure(TRUTH, SAID)
    assert got.micro_ap == pytest.approx(0.566667, abs=5e-7)
    assert (got.recall_at_precision, got.threshold) == (0.25, 9)
    assert (got.recall_at_1, got.recall_at_10) == (0.5, 0.75)
    assert (got.true_pairs, got.predictions, got.found) == (4, 6, 3)


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_formula_with_many_ties_and_several_truths_a_query(seed):
    rng = np.random.default_rng(seed)
    pairs = [(int(q), int(r)) for q in range(9) for r in range(8)]
    truth = [pairs[i] for i in rng.choice(len(pairs), 12, replace=False)]
    said = [
        (*pairs[i], int(rng.integers(4)) + 3 * (pairs[i] in truth)) for i in rng.permutation(len(pairs))[:40]
    ]
    got = measure(truth, said)
    expected = naive(truth, said)
    assert got.micro_ap == pytest.approx(expected[0], abs=1e-12)
    assert (got.recall_at_precision, got.threshold, got.recall_at_1, got.recall_at_10) == expected[1:]


def test_one_score_for_all_earns_the_worst_order():
    said = [("q1", "a", 1), ("q1", "b", 1), ("q2", "b", 1)]
    got = measure([("q1", "a"), ("q2", "b")], said)
    assert got.micro_ap == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert (got.recall_at_precision, got.threshold) == (None, None)
    assert got.recall_at_1 == 0.5  # q1a shares its score with q1b, q2b is alone


def test_saying_nothing_is_worth_nothing():
    got = measure(TRUTH, [])
    assert (got.micro_ap, got.recall_at_precision, got.recall_at_1, got.found) == (0.0, None, 0.0, 0)


def test_what_is_not_predicted_counts_against_recall():
    assert measure(TRUTH, [("q1", "a", 1.0)]).micro_ap == 0.25


@pytest.mark.parametrize(
    ("truth", "said", "why"),
    [
        (TRUTH, [*SAID, ("q1", "a", 2)], "predicted pair comes twice"),
        ([*TRUTH, ("q1", "a")], SAID, "true pair comes twice"),
        (TRUTH, [("q1", "a", float("nan"))], "finite"),
        ([], SAID, "no true pair"),
        ([(1, 2)], [("1", "2", 1.0)], "in the truth"),
    ],
)
def test_what_cannot_be_measured_is_refused(truth, said, why):
    with pytest.raises(ValueError, match=why):
        measure(truth, said)


def test_more_rows_than_the_challenge_allows_are_refused():
    n = MAX_PREDICTIONS
    queries, scores = np.arange(n + 1), np.linspace(0, 1, n + 1)
    assert matching_metrics([0], [0], queries[:n], np.zeros(n, int), scores[:n]).predictions == 500_000
    with pytest.raises(ValueError, match="at most 500000"):
        matching_metrics([0], [0], queries, np.zeros(n + 1, int), scores)
    with pytest.raises(ValueError, match="lengths differ"):
        matching_metrics([0], [0, 1], [0], [0], [1.0])
    with pytest.raises(ValueError, match="precision lies"):
        measure(TRUTH, SAID, precision=0.0)
