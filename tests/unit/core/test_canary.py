"""Canary items: a batch in its order passes, a shifted or turned one is caught."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.core.canary import LEAST_CODE_COSINE, canary_places, misplaced


@pytest.fixture
def vectors() -> np.ndarray:
    drawn = np.random.default_rng(5).standard_normal((64, 16)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def test_a_batch_in_its_order_passes_with_the_noise_of_half_precision(vectors):
    places = canary_places(128, 1, 64, 8)
    again = vectors[places].astype(np.float16).astype(np.float32)
    assert misplaced(vectors, places, again) == []


@pytest.mark.parametrize("order", [np.roll(np.arange(64), 1), np.arange(64)[::-1]], ids=["shifted", "turned"])
def test_rows_that_all_changed_places_are_caught_by_every_canary(vectors, order):
    for first_rank in range(0, 6400, 64):
        places = canary_places(first_rank, 1, 64)
        assert misplaced(vectors[order], places, vectors[places]) == places


def test_codes_pass_with_a_few_bits_turned_and_are_caught_when_they_change_places():
    codes = np.where(np.random.default_rng(6).random((64, 256)) < 0.5, -1, 1).astype(np.float32) / 16
    places = canary_places(0, 1, 64, 8)
    again = codes[places]
    again[:, :5] *= -1
    assert misplaced(codes, places, again, LEAST_CODE_COSINE) == []
    assert misplaced(codes, places, again) == places, "floats are held to more"
    assert misplaced(np.roll(codes, 1, axis=0), places, again, LEAST_CODE_COSINE) == places


def test_a_random_permutation_is_caught_nearly_always(vectors):
    caught = 0
    for trial in range(300):
        order = np.random.default_rng(trial).permutation(64)
        places = canary_places(trial * 64, 1, 64)
        caught += bool(misplaced(vectors[order], places, vectors[places]))
    assert caught >= 298


def test_vectors_that_are_no_numbers_are_misplaced(vectors):
    broken = vectors.copy()
    broken[3] = np.nan
    assert misplaced(broken, [2, 3], vectors[[2, 3]]) == [3]


def test_a_claim_has_its_canaries_and_the_next_one_others():
    assert canary_places(64, 1, 1000, 4) == canary_places(64, 1, 1000, 4) != canary_places(64, 2, 1000, 4)
    assert canary_places(0, 1, 1) == [0]
    assert canary_places(0, 1, 0) == []
