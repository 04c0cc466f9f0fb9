"""Keys of score and row."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import keys

entries = st.tuples(st.floats(width=32, allow_nan=False), st.integers(0, keys.MAX_ROWS - 1))


def packed(entry):
    return int(keys.pack(np.array([entry[0]], np.float32), np.array([entry[1]]))[0])


@settings(derandomize=True, deadline=None)
@given(entries, entries)
def test_keys_compare_as_falling_score_then_rising_row(one, other):
    expected = (-one[0], one[1]) < (-other[0], other[1])
    assert (packed(one) < packed(other)) == expected


@settings(derandomize=True, deadline=None)
@given(st.lists(entries, min_size=1, max_size=20))
def test_score_and_row_come_back_from_their_key(some):
    scores, rows = np.array([s for s, _ in some], np.float32), np.array([r for _, r in some])
    both = keys.pack(scores, rows)
    assert np.array_equal(keys.scores_of(both), scores)
    assert np.array_equal(keys.rows_of(both), rows)
    assert (both < keys.EMPTY).all()


def test_packing_does_not_change_the_scores_it_is_given():
    scores = np.array([1.0, -2.0], np.float32)
    keys.pack(scores, np.array([0, 1]))
    assert scores.tolist() == [1.0, -2.0]
