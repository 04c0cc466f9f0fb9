from __future__ import annotations

import numpy as np
import pytest

from models.codecs.codes import CodeShape
from models.codecs.distance import cosine, dot_integer, norm_squared
from orchestrator.core import keys
from orchestrator.core.joint import joint_codes, joint_floats, joint_queries
from orchestrator.errors import UsageError
from orchestrator.index import IndexOptions, make_index
from orchestrator.index.code_blocks import CodeBlocks, answers, empty_heaps, mask
from orchestrator.index.codes_ivf import CodesIvf
from orchestrator.index.popcount import LANES, scan
from orchestrator.serving.lock import WriterPreferringLock

SHAPE, N = CodeShape(20, 2), 12
BACKENDS = ["codes", "codes-ivf"]


def random_codes(shape, n, seed=0):
    return np.random.default_rng(seed).integers(0, shape.top + 1, size=(n, shape.width), dtype=np.uint8)


def units(shape, n, seed=0):
    return shape.unit(random_codes(shape, n, seed))


def floats(n, dim=N, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def best_of(scores, k):
    """All scores (q, n) in the order of a search."""
    best = np.sort(keys.pack(scores.astype(np.float32), np.arange(scores.shape[1])), axis=1)[:, :k]
    return keys.scores_of(best), keys.rows_of(best).astype(np.int64)


def blocks_of(shape, codes):
    held = CodeBlocks(shape, len(codes))
    held.put(np.arange(len(codes)), codes)
    return held


def scanned(held, queries, k, allowed=None):
    heaps = empty_heaps(len(queries), k)
    scan(
        held.words, held.inverse, held.squares, held.words_of(queries).reshape(len(queries), -1),
        held.squares_of(queries).astype(np.float64), held.planes, held.most, mask(allowed, len(held.squares)), heaps,
    )  # fmt: skip
    return answers(heaps)


@pytest.mark.parametrize("loops", range(4))
@pytest.mark.parametrize("width", [1, 13, 64, 100, 200])
def test_the_kernel_answers_what_the_formula_in_whole_numbers_says(loops, width):
    """Formula (1) as it stands in the module of distances, for every loop and for widths that fill no word and no byte."""
    shape = CodeShape(width, loops)
    codes, queries = random_codes(shape, 173), random_codes(shape, 5, seed=1)
    scores, rows = scanned(blocks_of(shape, codes), queries, 200)
    wanted_scores, wanted_rows = best_of(cosine(shape, queries, codes), 200)
    np.testing.assert_array_equal(rows[:, :173], wanted_rows)
    np.testing.assert_array_equal(scores[:, :173], wanted_scores)
    assert (rows[:, 173:] == -1).all()
    # and from the scores the whole numbers themselves
    dots = dot_integer(shape, queries, codes)
    lengths = np.sqrt(np.outer(norm_squared(shape, queries), norm_squared(shape, codes)))
    np.testing.assert_array_equal(
        np.rint(np.take_along_axis(lengths, wanted_rows, 1) * scores[:, :173]),
        np.take_along_axis(dots, wanted_rows, 1),
    )


@pytest.mark.parametrize("k", [1, 3, 10])
def test_the_few_best_of_many_are_those_of_a_full_comparison(k):
    """Thousands of rows are left out by the edge, in float32; what is near it must not be."""
    codes, queries = random_codes(SHAPE, 20_000), random_codes(SHAPE, 30, seed=1)
    found = scanned(blocks_of(SHAPE, codes), queries, k)
    wanted = best_of(cosine(SHAPE, queries, codes), k)
    np.testing.assert_array_equal(found[1], wanted[1])
    np.testing.assert_array_equal(found[0], wanted[0])


def test_equal_codes_are_answered_by_the_lower_row():
    codes = np.repeat(random_codes(SHAPE, 3), 40, axis=0)[np.random.default_rng(0).permutation(120)]
    _, rows = scanned(blocks_of(SHAPE, codes), codes[:1], 7)
    np.testing.assert_array_equal(rows[0], np.flatnonzero((codes == codes[0]).all(axis=1))[:7])


def test_codes_are_read_back_wherever_they_stand():
    codes = random_codes(CodeShape(13, 3), 50)
    held = CodeBlocks(CodeShape(13, 3), 64)
    slots = np.random.default_rng(0).permutation(64)[:50]
    held.put(slots, codes)
    np.testing.assert_array_equal(held.codes(slots), codes)
    free = int(np.setdiff1d(np.arange(64), slots)[0])
    held.move(int(slots[4]), free)
    np.testing.assert_array_equal(held.codes(np.array([free]))[0], codes[4])
    assert held.squares[slots[4]] < 0


@pytest.mark.parametrize("name", BACKENDS)
def test_without_the_shape_of_a_code_the_index_says_what_it_needs(name):
    with pytest.raises(UsageError, match="needs a model whose embeddings are codes"):
        make_index(name, units(SHAPE, 5))
    with pytest.raises(UsageError, match="do not fit"):
        make_index(name, units(SHAPE, 5), IndexOptions(code=CodeShape(21, 2)))


@pytest.mark.parametrize("name", BACKENDS)
def test_vectors_and_queries_that_are_no_codes_are_refused(name):
    with pytest.raises(ValueError, match="no codes"):
        make_index(name, floats(5, dim=20), IndexOptions(code=SHAPE))
    index = make_index(name, units(SHAPE, 5), IndexOptions(code=SHAPE))
    with pytest.raises(UsageError, match="no codes"):
        index.search(floats(1, dim=20), 2)
    with pytest.raises(IndexError):
        index.replace(np.array([5]), units(SHAPE, 1))


# -- rows that are still floats ----------------------------------------------------------------------------------------------


def joint_rows(n, share, seed=0):
    """(n, 20 + 12): some rows codes, some floats, the first five nothing."""
    random = np.random.default_rng(seed)
    rows = np.where(
        random.random(n)[:, None] < share,
        joint_codes(units(SHAPE, n, seed), N),
        joint_floats(floats(n, seed=seed), SHAPE.width),
    ).astype(np.float32)
    rows[:5] = 0
    return rows


def check_joint(index, gallery, queries, k, allowed=None):
    """As float32 says; where two scores are equal but for rounding either may come first."""
    exact = queries.astype(np.float64) @ gallery.astype(np.float64).T
    if allowed is not None:
        exact[:, ~allowed] = -np.inf
    scores, rows = index.search(queries, k, allowed)
    wanted = best_of(exact, k)[0]
    np.testing.assert_allclose(scores, wanted, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, rows, 1), scores, atol=1e-6)
    assert all(len(set(line)) == k for line in rows.tolist())


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_codes_and_floats_are_one_list_of_answers(name, share):
    gallery = joint_rows(700, share)
    queries = joint_queries(units(SHAPE, 20, seed=3), floats(20, seed=3))
    index = make_index(name, gallery, IndexOptions(code=SHAPE, nprobe=1000))
    np.testing.assert_allclose(index.vectors(), gallery, atol=1e-7)
    check_joint(index, gallery, queries, 10)
    allowed = np.random.default_rng(5).random(700) < 0.3
    check_joint(index, gallery, queries, 10, allowed)


@pytest.mark.parametrize("name", BACKENDS)
@pytest.mark.parametrize("allowed", [None, np.arange(40) % 3 > 0])
def test_every_row_is_answered_once_as_what_it_is(name, allowed):
    """Also those that score less than nothing would."""
    gallery = joint_rows(45, 0.5)[5:]
    queries = joint_queries(units(SHAPE, 6, seed=3), floats(6, seed=3))
    index = make_index(name, gallery, IndexOptions(code=SHAPE))
    count = 40 if allowed is None else int(allowed.sum())
    check_joint(index, gallery, queries, count, allowed)
    assert (index.search(queries, 60, allowed)[1][:, count:] == -1).all()


@pytest.mark.parametrize("name", BACKENDS)
def test_floats_become_codes_and_back(name):
    """A recoding slice by slice, and one that is undone; what is nothing any more is not answered."""
    before, after = joint_rows(300, 0.0), joint_rows(300, 1.0)
    queries = joint_queries(units(SHAPE, 8, seed=3), floats(8, seed=3))
    index = make_index(name, before, IndexOptions(code=SHAPE, nprobe=1000))
    gallery = before.copy()
    steps = [np.arange(0, 150), np.arange(100, 300), np.arange(40, 60)]
    for rows, new in zip(steps, (after, after, before), strict=True):
        index.replace(rows, new[rows])
        gallery[rows] = new[rows]
        check_joint(index, gallery, queries, 12)
        np.testing.assert_allclose(index.read(rows), gallery[rows], atol=1e-7)
    index.replace(np.array([50, 200]), np.zeros((2, 32), np.float32))
    gallery[[50, 200]] = 0
    check_joint(index, gallery, queries, 12)
    index.grow(310)
    index.replace(np.array([304, 305, 305]), np.stack([before[7], before[8], after[9]]))
    grown = np.concatenate([gallery, np.zeros((10, 32), np.float32)])
    grown[304], grown[305] = before[7], after[9]
    np.testing.assert_allclose(index.vectors(), grown, atol=1e-7)
    check_joint(index, grown, queries, 12)


@pytest.mark.parametrize("name", BACKENDS)
def test_the_matrix_of_floats_goes_when_the_last_float_has_gone(name):
    index = make_index(name, joint_rows(60, 0.0), IndexOptions(code=SHAPE))
    assert index._floats
    index.replace(np.arange(60), joint_rows(60, 1.0))
    assert not index._floats


def test_equal_scores_of_a_code_and_a_float_are_answered_by_the_lower_row():
    """A code and a float that are both the query itself score 1 each."""
    code, vector = units(SHAPE, 1), np.eye(N, dtype=np.float32)[:1]
    rows = [joint_codes(code, N)[0], joint_floats(vector, SHAPE.width)[0]] * 4
    index = make_index("codes", np.stack(rows).astype(np.float32), IndexOptions(code=SHAPE))
    scores, found = index.search(joint_queries(code, vector), 5)
    np.testing.assert_array_equal(scores, np.ones((1, 5), np.float32))
    np.testing.assert_array_equal(found, [[0, 1, 2, 3, 4]])


@pytest.mark.parametrize("name", BACKENDS)
def test_rows_whose_scores_are_calibrated_are_compared_as_they_are(name):
    """[scale · code | 0 | offset] beside floats [0 | float | 0] and plain codes; queries end with 1."""
    gallery = np.concatenate([joint_rows(300, 0.6), np.zeros((300, 1), np.float32)], axis=1)
    scaled = np.flatnonzero(gallery[:, :20].any(axis=1))[::2]
    gallery[scaled] *= np.float32(0.8)
    gallery[scaled, -1] = 0.15
    queries = np.pad(
        joint_queries(units(SHAPE, 9, seed=3), floats(9, seed=3)), ((0, 0), (0, 1)), constant_values=1
    )
    index = make_index(name, gallery, IndexOptions(code=SHAPE, nprobe=1000))
    np.testing.assert_allclose(index.vectors(), gallery, atol=1e-7)
    check_joint(index, gallery, queries, 20)
    index.replace(scaled[:10], np.roll(gallery, 1, axis=0)[scaled[:10]])
    gallery[scaled[:10]] = np.roll(gallery, 1, axis=0)[scaled[:10]]
    np.testing.assert_allclose(index.vectors(), gallery, atol=1e-7)
    check_joint(index, gallery, queries, 20)


@pytest.mark.parametrize("name", BACKENDS)
def test_queries_without_a_code_score_nothing_with_codes(name):
    """A model of floats that answers beside codes asks [0 | float]."""
    gallery = joint_rows(200, 0.5)[5:]
    queries = joint_queries(units(SHAPE, 8, seed=3), floats(8, seed=3))
    queries[::2, :20] = 0
    index = make_index(name, gallery, IndexOptions(code=SHAPE, nprobe=1000))
    check_joint(index, gallery, queries, 195)


@pytest.mark.parametrize("name", BACKENDS)
def test_codes_that_are_longer_are_refused_where_there_is_no_other_column(name):
    with pytest.raises(ValueError, match="not of length 1"):
        make_index(name, units(SHAPE, 5) * np.float32(1.1), IndexOptions(code=SHAPE))
    with pytest.raises(UsageError, match="not of length 1"):
        make_index(name, units(SHAPE, 5), IndexOptions(code=SHAPE)).search(
            units(SHAPE, 1) * np.float32(0.9), 2
        )


# -- lists -------------------------------------------------------------------------------------------------------------------


def test_lists_hold_every_code_once_after_many_moves():
    index = CodesIvf(units(SHAPE, 900), IndexOptions(code=SHAPE))
    random, gallery = np.random.default_rng(0), units(SHAPE, 900)
    for step in range(30):
        rows = random.choice(900, 60, replace=False)
        new = units(SHAPE, 60, seed=10 + step)
        new[random.random(60) < 0.2] = 0
        index.replace(rows, new)
        gallery[rows] = new
    there = np.flatnonzero(gallery.any(axis=1))
    lists = index._lists
    chains, chained = [], []
    for block in lists._last:
        while block >= 0:
            chained.append(int(block))
            chains += list(block * LANES + np.arange(lists._filled[block]))
            block = lists._before[block]
    assert sorted(chained + lists._free) == list(range(len(lists._before))), "no block is lost"
    assert lists._held == len(there)
    np.testing.assert_array_equal(np.sort(lists._row_of[chains]), there)
    np.testing.assert_array_equal(np.sort(chains), np.flatnonzero(lists._blocks.squares > 0))
    np.testing.assert_allclose(index.vectors(), gallery, atol=1e-7)
    _, rows = index.search(units(SHAPE, 3, seed=99), 900)
    np.testing.assert_array_equal(np.sort(rows, axis=1)[:, -len(there) :], np.tile(there, (3, 1)))
    assert (np.sort(rows, axis=1)[:, : -len(there)] == -1).all()


def test_a_search_looks_into_some_lists_only():
    gallery = units(SHAPE, 4000)
    few, all_ = (CodesIvf(gallery, IndexOptions(code=SHAPE, nprobe=probed)) for probed in (1, 10_000))
    queries = units(SHAPE, 50, seed=1)
    exact = best_of(cosine(SHAPE, SHAPE.of_unit(queries), SHAPE.of_unit(gallery)), 10)[1]
    np.testing.assert_array_equal(all_.search(queries, 10)[1], exact)
    share = np.mean(
        [len(set(a) & set(b)) / 10 for a, b in zip(few.search(queries, 10)[1], exact, strict=True)]
    )
    assert share < 0.9


def test_codes_that_came_after_the_lists_were_made_get_lists_of_their_own():
    """A gallery of floats has nothing to train on: the first codes call for new lists."""
    lock = WriterPreferringLock()
    index = make_index("codes-ivf", joint_rows(2000, 0.0), IndexOptions(code=SHAPE), lock)
    assert len(index._index._lists._last) == 1
    with lock.write():
        index.replace(np.arange(1000), joint_rows(2000, 1.0)[:1000])
    assert index.wait(60)
    assert index.swaps == 1
    assert len(index._index._lists._last) > 10
