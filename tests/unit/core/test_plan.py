"""The order, its chunks and its batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bench.order_scores import run
from orchestrator.core.plan import (
    CHUNK,
    band_of,
    batch_count,
    batch_ranks,
    first_window,
    from_chunks,
    invert,
    order_rows,
    rerank,
    to_chunks,
)

few_values = st.sampled_from([-np.inf, -1.5, -1e-40, -0.0, 0.0, 1e-40, 0.25, 1.0, np.inf])
any_value = st.floats(width=32, allow_nan=False)
score_arrays = st.one_of(
    hnp.arrays(np.float32, st.integers(0, 60), elements=few_values),
    hnp.arrays(np.float32, st.integers(0, 60), elements=any_value),
)


def naive_order(scores):
    return sorted(range(len(scores)), key=lambda row: (-float(scores[row]), row))


@settings(derandomize=True, deadline=None)
@given(score_arrays)
def test_rows_are_ordered_by_falling_score_and_ties_by_row(scores):
    rows = order_rows(scores)
    assert rows.dtype == np.uint32
    assert rows.tolist() == naive_order(scores)


@settings(derandomize=True, deadline=None)
@given(score_arrays, st.integers(0, 70))
def test_the_first_window_is_the_beginning_of_the_order(scores, k):
    assert first_window(scores, k).tolist() == naive_order(scores)[:k]


@pytest.mark.parametrize("kind", ["uniform", "many ties", "periodic", "sorted", "constant"])
@pytest.mark.parametrize("k", [1, 1000, 60_000])
def test_a_large_window_is_exact_whatever_the_sample_of_scores_says(kind, k):
    n = 150_000
    rng = np.random.default_rng(1)
    scores = {
        "uniform": rng.random(n),
        "many ties": rng.integers(0, 5, n),
        # The sample takes every 9th score: here it sees only the highest, so too few reach the guessed threshold.
        "periodic": (np.arange(n) % (n // 16_384) == 0) + rng.random(n) / 2,
        "sorted": np.arange(n),
        "constant": np.zeros(n),
    }[kind].astype(np.float32)
    expected = np.argsort(-scores, kind="stable")
    assert np.array_equal(first_window(scores, k), expected[:k])
    assert np.array_equal(order_rows(scores), expected)


@pytest.mark.parametrize("nan", [np.nan, -np.nan])
@pytest.mark.parametrize("at", [0, 3, 99])
def test_a_score_that_is_not_a_number_is_refused(nan, at):
    scores = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    scores[at] = nan
    with pytest.raises(ValueError, match="NaN"):
        order_rows(scores)
    with pytest.raises(ValueError, match="NaN"):
        first_window(scores, 5)


def test_scores_of_another_shape_or_type_are_refused():
    with pytest.raises(ValueError, match="float32"):
        order_rows(np.zeros(3))
    with pytest.raises(ValueError, match="float32"):
        order_rows(np.zeros((3, 1), np.float32))


def test_rank_of_and_row_of_are_inverse():
    row_of = order_rows(np.random.default_rng(0).random(1000, dtype=np.float32))
    rank_of = invert(row_of)
    assert rank_of.dtype == np.uint32
    assert np.array_equal(rank_of[row_of], np.arange(1000))
    assert np.array_equal(invert(rank_of), row_of)


@pytest.mark.parametrize("n", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_chunks_give_the_plan_back(n):
    rank_of = np.random.default_rng(n).permutation(n).astype(np.uint32)
    chunks = to_chunks(rank_of)
    assert [len(chunk) for chunk in chunks] == [4 * CHUNK] * (n // CHUNK) + (
        [4 * (n % CHUNK)] if n % CHUNK else []
    )
    assert np.array_equal(from_chunks(chunks), rank_of)


def test_chunks_are_little_endian():
    assert to_chunks(np.array([1, 0x01020304], np.uint32)) == [b"\x01\0\0\0\x04\x03\x02\x01"]


@pytest.mark.parametrize("damage", ["missing", "doubled", "changed"])
def test_a_damaged_plan_is_refused(damage):
    chunks = to_chunks(np.random.default_rng(0).permutation(2 * CHUNK).astype(np.uint32))
    if damage == "missing":
        chunks = chunks[:1]
    elif damage == "doubled":
        chunks = [chunks[0], chunks[0]]
    else:
        chunks[1] = chunks[0][:4] + chunks[1][4:]
    with pytest.raises(ValueError, match="the plan's chunks"):
        from_chunks(chunks)


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 500), st.integers(1, 60))
def test_batches_cover_every_rank_once_and_in_order(n, batch_size):
    count = batch_count(n, batch_size)
    ranks = [rank for no in range(count) for rank in batch_ranks(no, batch_size, n)]
    assert ranks == list(range(n))
    assert all(rank // batch_size == no for no in range(count) for rank in batch_ranks(no, batch_size, n))


@pytest.mark.parametrize("no", [-1, 3])
def test_a_batch_outside_the_plan_is_refused(no):
    with pytest.raises(ValueError, match="no batch"):
        batch_ranks(no, 10, 25)
    with pytest.raises(ValueError, match="no batch"):
        band_of(no, 3)


def test_a_batch_of_no_items_is_refused():
    with pytest.raises(ValueError, match="at least one item"):
        batch_count(10, 0)


def test_bands_are_a_tenth_then_to_40_then_to_70_percent_then_the_rest():
    assert [band_of(no, 100) for no in (0, 9, 10, 39, 40, 69, 70, 99)] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert band_of(0, 1) == 0


@given(st.integers(1, 300))
@settings(derandomize=True, deadline=None)
def test_bands_never_become_more_urgent_along_the_plan(n_batches):
    bands = [band_of(no, n_batches) for no in range(n_batches)]
    assert bands[0] == 0
    assert bands == sorted(bands)


def test_the_benchmark_of_the_order_prints_two_rows_beside_their_targets():
    rows = run(repeats=1, n=20_000, window=500)
    assert [row["target"] for row in rows] == [">= 2.5", "<= 0.1"]
    assert all(
        set(row) == {"row", "name", "value", "unit", "against", "ratio", "target", "holds"} for row in rows
    )


@settings(derandomize=True, deadline=None)
@given(score_arrays, st.randoms(use_true_random=False))
def test_a_reranked_plan_moves_only_what_it_may_by_priority_then_by_the_first_plan(priority, random):
    n = len(priority)
    first_plan, plan_now = (np.array(random.sample(range(n), n), np.uint32) for _ in range(2))
    ranks = np.array(random.sample(range(n), random.randint(0, n)), np.int64)
    first = invert(first_plan)
    new = rerank(plan_now, ranks, priority, first)
    expected = plan_now.copy()
    movable = sorted(plan_now[ranks].tolist(), key=lambda row: (-float(priority[row]), first[row]))
    for rank, row in zip(ranks, movable, strict=True):
        expected[rank] = row
    assert new.dtype == np.uint32
    assert new.tolist() == expected.tolist()
    assert rerank(new, ranks, priority, first).tolist() == new.tolist()


def test_a_priority_that_is_no_number_is_refused_where_it_may_move():
    plan_now = np.arange(4, dtype=np.uint32)
    priority = np.array([0, 1, np.nan, 2], np.float32)
    assert rerank(plan_now, np.array([0, 1, 3]), priority, plan_now).tolist() == [3, 1, 2, 0]
    with pytest.raises(ValueError, match="NaN"):
        rerank(plan_now, np.array([1, 2]), priority, plan_now)
