"""Exact distances of codes: two formulas, tables and floats must give the same integers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.codecs import distance
from models.codecs.codes import CodeShape

SHAPES = st.builds(CodeShape, st.integers(1, 70), st.integers(0, 3))
SEEDS = st.integers(0, 2**32 - 1)


def drawn(shape: CodeShape, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, shape.top + 1, (n, shape.width)).astype(np.uint8)


def recurrent(shape: CodeShape, codes: np.ndarray) -> np.ndarray:
    """b = Σ 2^{−j} s_j in float64, from the bits."""
    signs = [((codes >> (shape.loops - j)) & 1) * 2.0 - 1 for j in range(shape.bits)]
    return sum(2.0**-j * sign for j, sign in enumerate(signs))


@given(SHAPES, SEEDS)
def test_both_formulas_give_the_dot_product_of_the_codes(shape: CodeShape, seed: int) -> None:
    queries, gallery = drawn(shape, 4, seed), drawn(shape, 9, seed + 1)
    exact = 4**shape.loops * (recurrent(shape, queries) @ recurrent(shape, gallery).T)
    assert np.array_equal(distance.dot_planes(shape, shape.pack(queries), shape.pack(gallery)), exact)
    assert np.array_equal(distance.dot_integer(shape, queries, gallery), exact)


@given(SHAPES, SEEDS)
def test_looking_up_in_tables_gives_the_same_integers(shape: CodeShape, seed: int) -> None:
    queries, gallery = drawn(shape, 3, seed), drawn(shape, 9, seed + 1)
    stored, grouped = distance.tables(shape, queries), distance.groups(shape, gallery)
    assert grouped.max() < 16
    assert np.array_equal(
        distance.dot_tables(shape, stored, grouped), distance.dot_integer(shape, queries, gallery)
    )


@pytest.mark.parametrize(("loops", "size", "bound"), [(0, 4, 4), (1, 2, 18), (2, 1, 49), (3, 1, 225)])
def test_a_table_holds_half_of_a_partial_product_and_its_bound(loops: int, size: int, bound: int) -> None:
    shape = CodeShape(size, loops)
    assert distance.group_size(shape) == size
    queries = np.full((1, size), shape.top, np.uint8)  # levels M: the greatest products there are
    everything = np.array([[shape.top] * size, [0] * size], np.uint8)
    stored = distance.tables(shape, queries)[0, 0]
    assert list(stored[distance.groups(shape, everything)[:, 0]]) == [bound, 0]
    partial = distance.dot_integer(shape, queries, everything)[0]
    assert list((partial + bound) // 2) == [bound, 0]


@given(SHAPES, SEEDS)
def test_norms_are_dot_products_with_oneself_and_cosines_those_of_the_unit_vectors(
    shape: CodeShape, seed: int
) -> None:
    codes = drawn(shape, 6, seed)
    assert np.array_equal(
        distance.norm_squared(shape, codes), np.diag(distance.dot_integer(shape, codes, codes))
    )
    unit = shape.unit(codes).astype(np.float64)
    assert np.allclose(distance.cosine(shape, codes, codes), unit @ unit.T, atol=1e-6)


@given(st.integers(1, 40), SEEDS)
def test_of_one_bit_the_order_is_that_of_hamming_distances_and_then_of_rows(width: int, seed: int) -> None:
    shape = CodeShape(width, 0)
    queries, gallery = drawn(shape, 3, seed), drawn(shape, 50, seed + 1)  # narrow codes tie all the time
    found = distance.search(shape, queries, gallery, 50)
    for query, order in zip(queries, found, strict=True):
        by_hamming = sorted(range(50), key=lambda row: (int((query != gallery[row]).sum()), row))
        assert list(order) == by_hamming


@given(SHAPES, SEEDS)
def test_a_search_answers_the_greatest_cosines(shape: CodeShape, seed: int) -> None:
    queries, gallery = drawn(shape, 3, seed), drawn(shape, 30, seed + 1)
    cosines = distance.cosine(shape, queries, gallery)
    found = distance.search(shape, queries, gallery, 5)
    best = -np.sort(-cosines, axis=1)[:, :5]
    assert np.allclose(np.take_along_axis(cosines, found, axis=1), best, atol=1e-12)


def test_the_widest_codes_are_still_counted_exactly() -> None:
    shape = CodeShape(2**16, 3)
    codes = drawn(shape, 2, 0)
    codes[0] = shape.top
    levels = shape.levels(codes).astype(np.int64)
    assert np.array_equal(distance.dot_integer(shape, codes, codes), levels @ levels.T)
