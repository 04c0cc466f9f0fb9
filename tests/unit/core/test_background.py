"""Scores less the background's: against a loop, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.background import background_level, subtract_background
from orchestrator.core.matching_metrics import matching_metrics


def test_the_level_is_the_nth_best_of_each_query():
    scores = np.random.default_rng(0).standard_normal((7, 30))
    for n in (1, 10, 30):
        assert background_level(scores, n).tolist() == [sorted(row)[-n] for row in scores.tolist()]


def test_each_pair_loses_the_level_of_its_query_in_the_version_of_its_item():
    rng = np.random.default_rng(1)
    levels = rng.standard_normal((3, 5))
    queries, versions = rng.integers(0, 5, 40), rng.integers(0, 3, 40)
    scores = rng.standard_normal(40)
    expected = [s - 2.0 * levels[v, q] for s, q, v in zip(scores, queries, versions, strict=True)]
    assert np.allclose(subtract_background(scores, queries, versions, levels), expected, atol=1e-15)
    assert np.array_equal(subtract_background(scores, queries, versions, levels, beta=0.0), scores)


def test_a_query_that_resembles_everything_no_longer_outscores_the_true_pairs():
    # Queries 3, 4 have no copy but score high with everything; so do all items that version 1 stores.
    queries, versions = np.arange(6), np.array([0, 0, 1, 0, 0, 1])
    chance = np.array([[0.1, 0.2, 0.1, 0.7, 0.8, 0.1], [0.5, 0.6, 0.5, 0.9, 0.9, 0.5]])
    above = np.array([0.4, 0.4, 0.4, 0.05, 0.05, 0.05])
    scores = chance[versions, queries] + above
    truth = np.arange(3), np.arange(3)
    raw = matching_metrics(*truth, queries, queries, scores).micro_ap
    adjusted = subtract_background(scores, queries, versions, chance, beta=1.0)
    assert raw < 0.7
    assert matching_metrics(*truth, queries, queries, adjusted).micro_ap == 1.0


@pytest.mark.parametrize("n", [0, 4])
def test_a_neighbour_that_is_not_there_is_refused(n):
    with pytest.raises(ValueError, match="no neighbour"):
        background_level(np.zeros((2, 3)), n)


def test_what_has_no_level_is_refused():
    one = np.zeros(1, np.int64)
    with pytest.raises(ValueError, match="version without"):
        subtract_background([1.0], one, one + 1, np.zeros((1, 1)))
    with pytest.raises(ValueError, match="query without"):
        subtract_background([1.0], one - 1, one, np.zeros((1, 1)))
    with pytest.raises(ValueError, match="finite"):
        background_level([[np.inf]], 1)
    with pytest.raises(ValueError, match="scores"):
        subtract_background([1.0, 2.0], one, one, np.zeros((1, 1)))
