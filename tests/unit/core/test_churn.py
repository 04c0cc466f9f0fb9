"""Overlap and rank-biased overlap: against slow loops over the paper's definitions, and worked values."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core.churn import WHOLE, Churn, ChurnTracker, shared_rows


def overlap_by_loop(old, new, k):
    return Fraction(len(set(old[:k]) & set(new[:k])), k)


def rbo_by_loop(old, new, p):
    """RBO_ext of two lists of one length, term by term as Webber, Moffat and Zobel write it, in exact fractions."""
    k, p = len(old), Fraction(p)
    agreements = [overlap_by_loop(old, new, d) for d in range(1, k + 1)]
    return agreements[-1] * p**k + (1 - p) / p * sum(a * p**d for d, a in enumerate(agreements, 1))


def lists(rng, queries, k, rows):
    """(queries, k) int64: rows out of `rows`, none twice in a list."""
    return np.argsort(rng.random((queries, rows)), axis=1)[:, :k].astype(np.int64)


def churn_of(old, new):
    shared = shared_rows(np.array(old, np.int64), np.array(new, np.int64))
    return Churn(len(shared), tuple(map(int, shared.sum(axis=0))))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.integers(1, 12), st.integers(1, 30), st.integers(0, 2**32 - 1), st.sampled_from([0.5, 0.9, 0.98]))
def test_means_are_those_of_a_slow_loop_at_every_depth(k, queries, seed, p):
    rng = np.random.default_rng(seed)
    old, new = (lists(rng, queries, k, k + int(rng.integers(0, 8))) for _ in range(2))
    churn = churn_of(old, new)
    for depth in range(1, k + 1):
        mean = sum(overlap_by_loop(list(a), list(b), depth) for a, b in zip(old, new, strict=True)) / queries
        assert churn.overlap(depth) == pytest.approx(float(mean), abs=1e-15)
        assert churn.churn(depth) == pytest.approx(float(1 - mean), abs=1e-15)
    slow = sum(rbo_by_loop(list(a), list(b), p) for a, b in zip(old, new, strict=True)) / queries
    assert churn.rbo(p) == pytest.approx(float(slow), abs=1e-14)
    assert churn.first_changed == int((old[:, 0] != new[:, 0]).sum())


@pytest.mark.parametrize(
    ("old", "new", "p", "overlap", "rbo"),
    [
        ([1, 2, 3], [1, 2, 3], 0.9, 1.0, 1.0),
        ([1, 2, 3], [4, 5, 6], 0.9, 0.0, 0.0),
        # X = 0, 2, 3: 1/8 + (0 + 1/4 + 1/8)
        ([1, 2, 3], [2, 1, 3], 0.5, 1.0, 0.5),
        # X = 1, 1, 2: 2/3 * .729 + 1/9 * (.9 + 1/2 * .81 + 2/3 * .729)
        ([1, 2, 3], [1, 3, 4], 0.9, 2 / 3, 0.486 + (0.9 + 0.405 + 0.486) / 9),
        # The same change further down weighs less: X = 1, 2, 2
        ([1, 2, 3], [1, 2, 4], 0.9, 2 / 3, 0.486 + (0.9 + 0.81 + 0.486) / 9),
    ],
)
def test_worked_values(old, new, p, overlap, rbo):
    churn = churn_of([old], [new])
    assert churn.overlap(len(old)) == overlap
    assert churn.rbo(p) == pytest.approx(rbo, abs=1e-15)


def test_lists_that_are_the_same_agree_exactly_whatever_p_is():
    same = lists(np.random.default_rng(0), 1000, 10, 50)
    assert [churn_of(same, same).rbo(p) for p in (0.1, 0.5, 0.9, 0.98, 0.999)] == [1.0] * 5


def test_without_queries_there_is_no_mean_and_what_was_not_compared_is_no_depth():
    nobody = Churn(0, (0, 0))
    assert (nobody.overlap(2), nobody.churn(1), nobody.rbo(0.9)) == (None, None, None)
    for k in (0, 3):
        with pytest.raises(ValueError, match="to depth 2"):
            nobody.overlap(k)
    for p in (0, 1, 1.5):
        with pytest.raises(ValueError, match="between 0 and 1"):
            nobody.rbo(p)
    with pytest.raises(ValueError, match="one shape"):
        shared_rows(np.zeros((2, 3), np.int64), np.zeros((2, 4), np.int64))


def test_blocks_of_queries_change_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    old, new = lists(rng, 50, 7, 12), lists(rng, 50, 7, 12)
    whole = shared_rows(old, new)
    monkeypatch.setattr("orchestrator.core.churn._BLOCK_PAIRS", 3 * 49)
    assert np.array_equal(shared_rows(old, new), whole)


def test_only_what_changed_is_compared_anew_and_sums_are_those_of_all():
    """Twenty stages: a few queries change at each, and every slice has the sums of comparing all of its queries."""
    rng = np.random.default_rng(7)
    old = lists(rng, 60, 5, 9)
    compared = np.flatnonzero(rng.random(60) < 0.8)
    slices = {"tenant=a": compared[::2], "tenant=b": compared[1::3]}
    tracker, now = ChurnTracker(old, compared, slices), old.copy()
    members = {WHOLE: compared, **slices}

    def in_full():
        shared = shared_rows(old, now)
        return {
            name: Churn(len(some), tuple(map(int, shared[some].sum(axis=0))))
            for name, some in members.items()
        }

    assert tracker.counts() == in_full()
    for _ in range(20):
        before = tracker.counts()
        some = np.flatnonzero(rng.random(60) < 0.1)
        now[some] = lists(rng, len(some), 5, 9)
        moved = tracker.update(some, now[some])
        after = tracker.counts()
        assert after == in_full()
        assert moved == {name for name in members if after[name] != before[name]}
