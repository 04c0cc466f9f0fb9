from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.merge import merge_top_k
from orchestrator.core.metrics import top_k


def naive(scores, rows, k):
    """Every answer of every shard, sorted by falling score and rising row."""
    found = []
    for query in range(len(scores[0])):
        pairs = [(-s, r) for ss, rr in zip(scores, rows, strict=True)
                 for s, r in zip(ss[query], rr[query], strict=True) if r >= 0]  # fmt: skip
        found.append([r for _, r in sorted(pairs)[:k]])
    return found


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.integers(0, 6), min_size=1, max_size=5),
    st.integers(1, 12),
    st.integers(0, 4),
)
def test_it_is_what_sorting_everything_gives(seed, widths, k, queries):
    random = np.random.default_rng(seed)
    # Few different scores, zeros of both signs among them: ties within shards and across.
    scores = [
        random.choice(np.array([-1.5, -0.0, 0.0, 0.5, 2.0], np.float32), (queries, width)) for width in widths
    ]
    numbers = [random.permutation(sum(widths)) for _ in range(queries)]
    places = np.array(numbers, np.int64).reshape(queries, sum(widths))
    rows = np.split(places, np.cumsum(widths)[:-1], axis=1)
    rows = [np.where(random.random(r.shape) < 0.2, -1, r) for r in rows]
    best, found = merge_top_k(scores, rows, k)
    assert best.dtype == np.float32
    assert found.shape == best.shape == (queries, k)
    for query, wanted in enumerate(naive(scores, rows, k)):
        assert found[query].tolist() == wanted + [-1] * (k - len(wanted))
        of = {
            int(r): s
            for ss, rr in zip(scores, rows, strict=True)
            for s, r in zip(ss[query], rr[query], strict=True)
        }
        assert [of[r] for r in wanted] == best[query][: len(wanted)].tolist()
        assert (best[query][len(wanted) :] == -np.inf).all()


def test_shards_of_a_gallery_with_doubles_answer_as_the_whole():
    random = np.random.default_rng(0)
    gallery = random.normal(size=(60, 8)).astype(np.float32)
    gallery[40:] = gallery[:20]  # every score of these twice, in different shards
    queries = random.normal(size=(9, 8)).astype(np.float32)
    parts = [(0, 13), (13, 45), (45, 60)]
    found = [top_k(queries, gallery[a:b], 10) for a, b in parts]
    _, rows = merge_top_k(
        [scores for scores, _ in found],
        [rows + a for (_, rows), (a, _) in zip(found, parts, strict=True)],
        10,
    )
    np.testing.assert_array_equal(rows, top_k(queries, gallery, 10)[1])


@pytest.mark.parametrize(
    ("scores", "rows", "k"),
    [
        ([], [], 3),
        ([np.zeros((2, 1))], [np.zeros((2, 1), int)], 0),
        ([np.zeros((2, 1)), np.zeros((3, 1))], [np.zeros((2, 1), int), np.zeros((3, 1), int)], 1),
        ([np.zeros((2, 2))], [np.zeros((2, 1), int)], 1),
        ([np.zeros((2, 2))], [], 1),
    ],
)
def test_what_does_not_fit_is_refused(scores, rows, k):
    with pytest.raises(ValueError, match=r"shards|cannot make"):
        merge_top_k(scores, rows, k)
