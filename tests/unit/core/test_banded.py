"""The plan from bfloat16 and an exact band is the plan from float32, whatever the embeddings are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.core import banded as module
from orchestrator.core.banded import STATISTICS, banded_plan, bounded_scores, possible_ranks
from orchestrator.core.plan import order_rows
from orchestrator.core.uncertainty import uncertainty


def unit(vectors):
    return (vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def gallery(n, C, d, seed, *, noise=1.0, twins=False):
    """Embeddings around prototypes, from sure to unsure; twins are equal rows, ties in every statistic."""
    rng = np.random.default_rng(seed)
    prototypes = unit(rng.standard_normal((C, d)))
    spread = rng.uniform(0, 3 * noise, (n, 1)) / d**0.5
    embeddings = unit(prototypes[rng.integers(0, C, n)] + rng.standard_normal((n, d)) * spread)
    if twins:
        embeddings = embeddings[rng.integers(0, max(1, n // 3), n)]
    return np.ascontiguousarray(embeddings), prototypes


def exact_order(embeddings, prototypes, statistic, temperature):
    return order_rows(getattr(uncertainty(embeddings, prototypes, temperature), statistic))


galleries = st.builds(
    gallery,
    n=st.integers(1, 700),
    C=st.integers(2, 60),
    d=st.integers(1, 40),
    seed=st.integers(0, 2**32 - 1),
    noise=st.sampled_from([0.0, 0.05, 1.0]),
    twins=st.booleans(),
)
temperatures = st.sampled_from([0.004, 0.05, 1.0])


@settings(max_examples=120, deadline=None)
@given(galleries, st.sampled_from(STATISTICS), temperatures, st.sampled_from([1, 3]))
def test_with_a_cut_after_every_row_the_order_is_the_float32_order(
    given_gallery, statistic, temperature, terms
):
    embeddings, prototypes = given_gallery
    found = banded_plan(
        embeddings, prototypes, statistic, range(1, len(embeddings)), temperature, terms=terms
    )
    np.testing.assert_array_equal(found.row_of, exact_order(embeddings, prototypes, statistic, temperature))


@settings(max_examples=120, deadline=None)
@given(galleries, st.sampled_from(STATISTICS), temperatures, st.sampled_from([1, 3]), st.data())
def test_every_segment_holds_the_rows_of_the_float32_plan(given_gallery, statistic, temperature, terms, data):
    embeddings, prototypes = given_gallery
    ranks = st.integers(1, max(1, len(embeddings) - 1))
    cuts = sorted(data.draw(st.sets(ranks, max_size=5))) if len(embeddings) > 1 else []
    found = banded_plan(embeddings, prototypes, statistic, cuts, temperature, terms=terms)
    expected = exact_order(embeddings, prototypes, statistic, temperature)
    assert sorted(found.row_of.tolist()) == list(range(len(embeddings)))
    for ours, theirs in zip(np.split(found.row_of, cuts), np.split(expected, cuts), strict=True):
        assert set(ours.tolist()) == set(theirs.tolist())


@settings(max_examples=120, deadline=None)
@given(galleries, temperatures, st.sampled_from([1, 3]))
def test_the_float32_score_lies_within_the_bounds(given_gallery, temperature, terms):
    embeddings, prototypes = given_gallery
    exact = uncertainty(embeddings, prototypes, temperature)
    for statistic in STATISTICS:
        bounds = bounded_scores(embeddings, prototypes, statistic, temperature, terms=terms)
        scores = getattr(exact, statistic)
        assert (bounds.low <= scores).all()
        assert (scores <= bounds.high).all()


@pytest.mark.parametrize("statistic", STATISTICS)
def test_few_rows_are_in_doubt_at_few_cuts_and_three_terms_leave_fewer(statistic):
    embeddings, prototypes = gallery(6000, 200, 64, 0)
    cuts = [600, 2400, 4200]
    one, three = (banded_plan(embeddings, prototypes, statistic, cuts, terms=terms) for terms in (1, 3))
    assert 0 < three.rescored < 0.1 * one.rescored
    assert one.rescored < 0.7 * len(embeddings)


def test_the_bounds_are_those_of_bfloat16_and_not_of_float32():
    embeddings, prototypes = gallery(500, 50, 64, 1)
    scores = uncertainty(embeddings, prototypes).margin
    off = [
        np.abs(bounded_scores(embeddings, prototypes, "margin", terms=t).middle - scores).max()
        for t in (1, 3)
    ]
    assert off[0] > 1e-4 > 3e-5 > off[1]


def test_bounds_that_are_too_narrow_would_be_seen(monkeypatch):
    embeddings, prototypes = gallery(600, 50, 64, 2)
    monkeypatch.setattr(module, "_similarity_error", lambda norms, largest, d: 0 * norms[0])
    found = banded_plan(embeddings, prototypes, "margin", range(1, 600))
    assert (found.row_of != exact_order(embeddings, prototypes, "margin", 0.05)).any()


def test_the_possible_ranks_count_what_lies_above_for_sure_and_perhaps():
    low, high = np.array([0.9, 0.4, 0.5, 0.1, 0.5]), np.array([1.0, 0.6, 0.5, 0.2, 0.5])
    best, worst = possible_ranks(low, high)
    assert best.tolist() == [0, 1, 1, 4, 1]
    assert worst.tolist() == [0, 3, 3, 4, 3]


def test_rows_that_no_cut_divides_are_not_scored_again():
    embeddings, prototypes = gallery(50, 5, 8, 0)
    found = banded_plan(embeddings, prototypes, "entropy", [])
    assert found.rescored == 0
    assert sorted(found.row_of.tolist()) == list(range(50))


def test_an_empty_gallery_has_an_empty_plan():
    found = banded_plan(np.empty((0, 3), np.float32), np.eye(3, dtype=np.float32), "margin", [])
    assert found.row_of.tolist() == []


@pytest.mark.parametrize("cuts", [[0], [4], [2, 2], [3, 1], [-1]])
def test_cuts_that_do_not_rise_within_the_plan_are_refused(cuts):
    with pytest.raises(ValueError, match=r"rise within 1\.\.3"):
        banded_plan(*gallery(4, 3, 3, 0), "margin", cuts)


@pytest.mark.parametrize("changed", [{"statistic": "age"}, {"terms": 2}])
def test_another_statistic_or_number_of_terms_is_refused(changed):
    with pytest.raises(ValueError, match="least_confidence, margin, entropy and terms 1 or 3"):
        banded_plan(*gallery(4, 3, 3, 0), **({"statistic": "margin", "cuts": []} | changed))


def test_where_torch_shortens_float32_products_no_plan_is_promised():
    torch.set_float32_matmul_precision("medium")
    try:
        with pytest.raises(ValueError, match="'highest'"):
            banded_plan(*gallery(4, 3, 3, 0), "margin", [])
    finally:
        torch.set_float32_matmul_precision("highest")


def test_equal_rows_whose_bits_differ_by_their_place_in_a_chunk_keep_their_order():
    embeddings, prototypes = gallery(162, 5, 33, 0, twins=True)
    found = banded_plan(embeddings, prototypes, "least_confidence", [1], 0.004)
    assert found.row_of[0] == exact_order(embeddings, prototypes, "least_confidence", 0.004)[0]
