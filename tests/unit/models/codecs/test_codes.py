"""Codes, their bits and their unit vectors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.codecs.codes import CodeShape

SHAPES = st.builds(CodeShape, st.integers(1, 70), st.integers(0, 3))


def drawn(shape: CodeShape, n: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, shape.top + 1, (n, shape.width)).astype(np.uint8)


@given(SHAPES, st.integers(0, 20), st.integers(0, 2**32 - 1))
def test_pack_and_unpack_are_each_others_inverse(shape: CodeShape, n: int, seed: int) -> None:
    codes = drawn(shape, n, seed)
    packed = shape.pack(codes)
    assert packed.shape == (n, shape.row_bytes)
    assert np.array_equal(shape.unpack(packed), codes)
    assert np.array_equal(shape.pack(shape.unpack(packed)), packed)


@given(SHAPES, st.integers(0, 2**32 - 1))
def test_the_first_planes_are_the_code_of_fewer_loops(shape: CodeShape, seed: int) -> None:
    codes = drawn(shape, 5, seed)
    for loops in range(shape.loops):
        coarser = CodeShape(shape.width, loops)
        prefix = shape.pack(codes)[:, : coarser.row_bytes]
        assert np.array_equal(coarser.unpack(prefix), codes >> (shape.loops - loops))


@given(SHAPES, st.integers(0, 2**32 - 1))
def test_a_unit_vector_gives_its_code_back(shape: CodeShape, seed: int) -> None:
    codes = drawn(shape, 8, seed)
    unit = shape.unit(codes)
    assert np.allclose(np.linalg.norm(unit, axis=1), 1, atol=1e-6)
    again = shape.of_unit(unit)
    factor = np.gcd.reduce(shape.levels(codes).astype(int), axis=1)[:, None]
    assert np.array_equal(shape.levels(again) * factor, shape.levels(codes))
    assert np.allclose(shape.unit(again), unit, atol=1e-6)


def test_levels_are_the_sum_of_signs_with_halving_weights() -> None:
    shape = CodeShape(3, 2)
    signs = np.array([[[1, -1, -1]], [[-1, 1, -1]], [[1, 1, -1]]])  # s_0, s_1, s_2
    codes = sum(((signs[j] + 1) // 2) << (2 - j) for j in range(3)).astype(np.uint8)
    b = sum(signs[j] * 2.0**-j for j in range(3))
    assert np.array_equal(shape.levels(codes), 4 * b)


@pytest.mark.parametrize(
    "vectors", [np.zeros((1, 4)), np.array([[0.1, 0.25, 0.3, 0.9]]), np.full((1, 4), np.nan)]
)
def test_what_is_no_code_is_refused(vectors: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no codes"):
        CodeShape(4, 2).of_unit(vectors.astype(np.float32))


def test_numbers_and_shapes_that_do_not_fit_are_refused() -> None:
    shape = CodeShape(9, 1)
    with pytest.raises(ValueError, match="at most 3, not 4"):
        shape.pack(np.full((1, 9), 4, np.uint8))
    with pytest.raises(ValueError, match="are no codes"):
        shape.pack(np.zeros((1, 8), np.uint8))
    with pytest.raises(ValueError, match="no packed codes"):
        shape.unpack(np.zeros((1, 3), np.uint8))
    with pytest.raises(ValueError, match="0 to 3 loops"):
        CodeShape(9, 4)
