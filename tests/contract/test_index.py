"""What every index backend must do; a new one joins by being registered."""

from __future__ import annotations

import threading
from contextlib import closing
from importlib import import_module

import numpy as np
import pytest

from models.codecs.codes import CodeShape
from models.codecs.distance import cosine
from orchestrator.core import keys
from orchestrator.core.metrics import top_k
from orchestrator.errors import UsageError
from orchestrator.index import BACKENDS, CODED, IndexOptions, make_index
from orchestrator.serving.lock import WriterPreferringLock

# What an approximate backend finds of the ten nearest on the clustered vectors below, at its defaults.
LEAST_RECALL = 0.95


@pytest.fixture(params=sorted(BACKENDS))
def name(request):
    return request.param


@pytest.fixture
def exact(name):
    return BACKENDS[name][1] == "exact"


@pytest.fixture
def options(name, request, tmp_path):
    """What the backend needs: a database where it is one, a folder of the test's own where it keeps files."""
    if name.startswith("pgvector"):
        return IndexOptions(url=request.getfixturevalue("empty_database"), folder=tmp_path)
    return IndexOptions(folder=tmp_path)


LOOPS = 3


@pytest.fixture(autouse=True)
def only_codes(name, monkeypatch):
    """Where a backend holds codes, every vector of a test is one."""
    if name in CODED:
        for maker in (some, clustered):
            monkeypatch.setitem(globals(), maker.__name__, coded(maker))


def coded(maker):
    """The vectors rounded to codes of 4 bits."""

    def make_codes(*args, **others):
        vectors = maker(*args, **others)
        shape = CodeShape(vectors.shape[1], LOOPS)
        steps = np.abs(vectors).max(initial=1e-9) / (shape.top + 1)
        codes = np.clip(np.floor(vectors / steps / 2) + (shape.top + 1) // 2, 0, shape.top).astype(np.uint8)
        return shape.unit(codes)

    return make_codes


@pytest.fixture
def make(name, options):
    made = []

    def make(vectors, **others):
        if name in CODED:
            others["code"] = CodeShape(vectors.shape[1], LOOPS)
        made.append(make_index(name, vectors, IndexOptions(**{**vars(options), **others})))
        return made[-1]

    yield make
    for index in made:
        index.close()


def some(n, dim=24, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def clustered(n, dim=24, seed=0, of=40, model=0):
    """Unit vectors around `of` centres, as embeddings of classes lie; another model has other centres."""
    random = np.random.default_rng(seed)
    centres = np.random.default_rng(model).normal(size=(of, dim))
    vectors = (centres[random.integers(of, size=n)] + 0.5 * random.normal(size=(n, dim))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def recall(rows, exact_rows):
    return np.mean([len(set(a) & set(b)) / len(b) for a, b in zip(rows, exact_rows, strict=True)])


def check(found, queries, gallery, k, exact, allowed=None):
    """What was found is what a comparison with every allowed vector finds; for an approximate backend, most of it."""
    scores, rows = found
    places = np.arange(len(gallery)) if allowed is None else np.flatnonzero(allowed)
    best_k = (
        top_k_of_codes if is_code(queries) else top_k
    )  # whole numbers tie often, and their roundings do not
    exact_scores, best = best_k(queries, gallery[places], min(k, len(places)))
    assert rows.shape == scores.shape == (len(queries), k)
    width = best.shape[1]
    assert (rows[:, width:] == -1).all()
    if exact:
        np.testing.assert_array_equal(rows[:, :width], places[best])
        np.testing.assert_allclose(scores[:, :width], exact_scores, atol=1e-5)
        return
    rows, scores = rows[:, :width], scores[:, :width]
    assert (rows >= 0).all()
    assert np.isin(rows, places).all()
    assert (np.diff(scores, axis=1) <= 0).all()
    np.testing.assert_allclose(scores, np.einsum("qd,qkd->qk", queries, gallery[rows]), atol=1e-5)
    assert recall(rows, places[best]) >= LEAST_RECALL


def is_code(vectors):
    try:
        CodeShape(vectors.shape[1], LOOPS).of_unit(vectors)
    except ValueError:
        return False
    return True


def top_k_of_codes(queries, gallery, k):
    """As `top_k`, by whole numbers; rows of zeros score 0."""
    shape = CodeShape(queries.shape[1], LOOPS)
    there = gallery.any(axis=1)
    scores = np.zeros((len(queries), len(gallery)), np.float32)
    scores[:, there] = cosine(shape, shape.of_unit(queries), shape.of_unit(gallery[there]))
    best = np.sort(keys.pack(scores, np.arange(len(gallery))), axis=1)[:, :k]
    return keys.scores_of(best), keys.rows_of(best).astype(np.int64)


def test_it_says_itself_what_the_registry_says_of_it(name, make, exact):
    assert make(some(20)).exact is exact
    assert make(some(20, dim=7)).dim == 7
    assert make(some(20), shards=2).exact is exact
    assert getattr(import_module(BACKENDS[name][0].split(":")[0]), BACKENDS[name][0].split(":")[1])


def test_it_finds_what_an_exact_search_finds(make, exact):
    gallery, queries = clustered(3000), clustered(40, seed=1)
    check(make(gallery).search(queries, 10), queries, gallery, 10, exact)


@pytest.mark.parametrize("queries", [0, 1, 16, 300])
def test_it_takes_any_number_of_queries(make, exact, queries):
    gallery, asked = clustered(500), clustered(max(queries, 1), seed=0)[:queries]
    index = make(gallery)
    if queries:
        check(index.search(asked, 10), asked, gallery, 10, exact)
    else:
        assert index.search(asked, 10)[1].shape == (0, 10)


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_answer_as_one(make, exact, shards):
    gallery, queries = clustered(601), clustered(30, seed=1)
    index = make(gallery, shards=shards)
    rows = np.random.default_rng(2).choice(601, 200, replace=False)
    gallery[rows] = clustered(200, seed=4)
    index.replace(rows, gallery[rows])
    allowed = np.random.default_rng(3).random(601) < 0.5
    check(index.search(queries, 10), queries, gallery, 10, exact)
    check(index.search(queries, 10, allowed), queries, gallery, 10, exact, allowed)
    np.testing.assert_array_equal(index.vectors(), gallery)


@pytest.mark.parametrize("shards", [1, 3])
def test_rows_are_read_as_they_stand_unless_a_server_has_them(name, make, shards):
    gallery = some(300)
    index = make(gallery, shards=shards)
    changed = np.array([299, 3, 120])
    gallery[changed] = some(3, seed=9)
    index.replace(changed, gallery[changed])
    index.grow(310)
    for rows in (np.array([3, 4, 5, 120, 299]), np.array([280, 2]), np.arange(0)):
        found = index.read(rows)
        if name.startswith(("pgvector", "milvus")):
            assert found is None
        else:
            assert found.tobytes() == gallery[rows].tobytes()
            found[:] = 7
    if not name.startswith(("pgvector", "milvus")):
        assert not index.read(np.array([305])).any()
        np.testing.assert_array_equal(index.vectors()[:300], gallery, err_msg="what was read is a copy")


def test_shards_take_late_rows(make, exact):
    gallery = clustered(100)
    index = make(gallery[:90], shards=3)
    index.grow(100)
    index.replace(np.arange(90, 100), gallery[90:])
    queries = clustered(20, seed=1)
    check(index.search(queries, 10), queries, gallery, 10, exact)
    np.testing.assert_array_equal(index.vectors(), gallery)


def test_replaced_rows_are_found_and_the_others_stay(make):
    gallery, fresh = some(300), some(50, seed=2)
    index = make(gallery)
    rows = np.random.default_rng(3).choice(300, 50, replace=False)
    index.replace(rows, fresh)
    gallery[rows] = fresh
    np.testing.assert_array_equal(index.vectors(), gallery)
    np.testing.assert_array_equal(index.search(fresh, 1)[1][:, 0], rows)


def test_of_a_row_given_twice_the_last_vector_stays(make):
    gallery, fresh = some(300), some(4, seed=2)
    index = make(gallery)
    index.replace(np.array([9, 5, 9, 9]), fresh)
    gallery[[9, 5]] = fresh[[3, 1]]
    np.testing.assert_array_equal(index.vectors(), gallery)
    _, rows = index.search(fresh, 1)
    assert (rows[[3, 1], 0] == [9, 5]).all()
    _, rows = index.search(fresh, 300)
    assert (np.sort(rows, axis=1) == np.arange(300)).all()


def test_nothing_replaced_is_nothing_changed(make):
    gallery = some(30)
    index = make(gallery)
    index.replace(np.zeros(0, np.int64), np.zeros((0, 24), np.float32))
    np.testing.assert_array_equal(index.vectors(), gallery)


def test_all_rows_replaced_is_a_new_gallery(make, exact):
    old, new, queries = clustered(2000), clustered(2000, seed=7, model=7), clustered(50, seed=8, model=7)
    index = make(old)
    for at in range(0, 2000, 500):
        index.replace(np.arange(at, at + 500), new[at : at + 500])
    np.testing.assert_array_equal(index.vectors(), new)
    if hasattr(
        index, "rebuilt"
    ):  # its lists are the old model's: it says so, and new ones are as good as ever
        assert index.stale()
        index = index.rebuilt(index.vectors())
        assert not index.stale()
    check(index.search(queries, 10), queries, new, 10, exact)


def test_it_does_not_write_into_the_callers_matrix(make):
    gallery = some(20)
    before = gallery.copy()
    index = make(gallery)
    index.replace(np.array([3]), some(1, seed=9))
    np.testing.assert_array_equal(gallery, before)
    gallery[:] = 0
    assert index.vectors()[4:].any(axis=1).all()


def test_rows_that_came_late_are_zero_and_then_found(make, exact):
    gallery, fresh = clustered(400), clustered(70, seed=2)
    index = make(gallery)
    index.grow(450)
    index.grow(440)  # fewer than there are: nothing happens
    index.grow(470)
    assert len(index.vectors()) == 470
    assert not index.vectors()[400:].any()
    np.testing.assert_array_equal(index.vectors()[:400], gallery)
    scores, rows = index.search(gallery[:20], 470)
    assert (scores[rows >= 400] == 0).all()
    assert (np.sort(rows[rows < 400][rows[rows < 400] >= 0]) == np.repeat(np.arange(400), 20)).all()
    index.replace(np.arange(400, 470), fresh)
    everything = np.concatenate([gallery, fresh])
    check(index.search(fresh, 10), fresh, everything, 10, exact)
    index.replace(np.arange(10), np.zeros((10, 24), np.float32))  # deleted items
    everything[:10] = 0
    np.testing.assert_array_equal(index.vectors(), everything)
    assert not np.isin(index.search(gallery[:10], 5)[1], np.arange(10)).any()


def test_a_gallery_of_nothing_grows(make):
    index = make(np.zeros((0, 8), np.float32))
    assert (index.search(some(2, dim=8), 3)[1] == -1).all()
    gallery = some(30, dim=8)
    index.grow(30)
    index.replace(np.arange(30), gallery)
    assert (index.search(gallery, 1)[1][:, 0] == np.arange(30)).all()


def test_one_dimension_is_enough(name, make):
    if name in CODED:
        rows = make(np.array([[1], [-1], [1], [0]], np.float32)).search(np.array([[1], [-1]], np.float32), 3)[
            1
        ]
        np.testing.assert_array_equal(rows[:, :1], [[0], [1]])
        return
    gallery = np.array([[0.5], [-1.0], [2.0], [0.25]], np.float32)
    scores, rows = make(gallery).search(np.array([[1.0], [-2.0]], np.float32), 3)
    np.testing.assert_array_equal(rows, [[2, 0, 3], [1, 3, 0]])
    np.testing.assert_allclose(scores, [[2.0, 0.5, 0.25], [2.0, -0.5, -1.0]])


def test_more_answers_than_rows_are_minus_one(make):
    _, rows = make(some(3)).search(some(2, seed=1), 5)
    assert (rows[:, 3:] == -1).all()
    assert (rows[:, :3] >= 0).all()


@pytest.mark.parametrize("queries", [1, 40])
@pytest.mark.parametrize("share", [0.3, 0.9])
def test_only_allowed_rows_are_answered(make, exact, queries, share):
    gallery, asked = clustered(1203), clustered(queries, seed=1)
    index = make(gallery)
    allowed = np.random.default_rng(4).random(1203) < share
    check(index.search(asked, 12, allowed), asked, gallery, 12, exact, allowed)
    few = np.zeros(1203, bool)
    few[[7, 1202]] = True
    _, rows = index.search(asked, 4, few)
    assert (np.sort(rows, axis=1) == [-1, -1, 7, 1202]).all()


def test_where_no_row_is_allowed_nothing_is_answered(make):
    scores, rows = make(some(50)).search(some(3, seed=1), 4, np.zeros(50, bool))
    assert rows.shape == scores.shape == (3, 4)
    assert (rows == -1).all()


def test_allowed_rows_are_answered_as_they_stand(make):
    """A row that was replaced is judged by its new vector, filtered or not."""
    gallery = some(200)
    index = make(gallery)
    allowed = np.ones(200, bool)
    allowed[::2] = False
    index.replace(np.array([1, 2]), gallery[[2, 1]])
    _, rows = index.search(gallery[[1, 2]], 1, allowed)
    assert rows[1, 0] == 1
    assert rows[0, 0] not in (1, 2)


def test_searches_beside_writes_see_whole_rows(make, exact):
    """Under the lock a row is old or new, never half of each: each score is one of the two."""
    old, new = clustered(400), clustered(400, seed=5)
    queries = clustered(6, seed=6)
    lock, index = WriterPreferringLock(), make(old)
    done = threading.Event()
    of_old, of_new = queries @ old.T, queries @ new.T
    torn, seen = [], []

    def read():
        while not done.is_set() or not seen:
            with lock.read():
                scores, rows = index.search(queries, 20)
            lines = np.arange(6)[:, None]
            whole = np.isclose(scores, of_old[lines, rows], atol=1e-5) | np.isclose(
                scores, of_new[lines, rows], atol=1e-5
            )
            seen.append(rows)
            if (rows < 0).any() or not whole.all():
                torn.append((rows, scores))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    for at in range(0, 400, 40):
        rows = np.arange(at, at + 40)
        with lock.write():
            index.replace(rows, new[rows])
    done.set()
    for reader in readers:
        reader.join(60)
    assert not torn
    assert len(seen) >= 3
    check(index.search(queries, 20), queries, new, 20, exact)


def test_two_of_them_do_not_meet(make):
    first, second = make(some(40)), make(some(40, seed=1))
    first.replace(np.array([0]), some(1, seed=2))
    np.testing.assert_array_equal(second.vectors(), some(40, seed=1))
    first.close()
    assert (second.search(some(40, seed=1), 1)[1][:, 0] == np.arange(40)).all()


def test_closing_twice_is_no_fault(make):
    with closing(make(some(10))) as index:
        index.close()


def test_an_unknown_backend_names_those_there_are():
    with pytest.raises(UsageError, match="faiss-flat"):
        make_index("annoy", some(2))
