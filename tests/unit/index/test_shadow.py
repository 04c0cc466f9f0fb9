from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from orchestrator.core.metrics import top_k
from orchestrator.index import IndexOptions, make_index
from orchestrator.index.faiss_flat import FaissFlat
from orchestrator.index.faiss_ivf import FaissIvf
from orchestrator.index.shadow import Shadowed
from orchestrator.serving.lock import WriterPreferringLock


def some(n, dim=12, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Held(FaissFlat):
    """A flat index that counts as stale after a write, and whose rebuild waits until the test lets it go on."""

    def __init__(self, vectors, fail=False):
        super().__init__(vectors)
        self.begun, self.go_on, self.closed = threading.Event(), threading.Event(), False
        self.writes, self.fail = 0, fail

    def replace(self, rows, vectors):
        super().replace(rows, vectors)
        self.writes += 1

    def stale(self):
        return self.writes >= 1

    def rebuilt(self, vectors):
        self.begun.set()
        assert self.go_on.wait(30)
        if self.fail:
            raise MemoryError("no room")
        return Held(vectors)

    def close(self):
        self.closed = True


def write(index, lock, rows, vectors):
    with lock.write():
        index.replace(rows, vectors)


def test_writes_that_arrive_while_the_new_index_is_made_are_in_it():
    old = Held(some(100))
    lock = WriterPreferringLock()
    index = Shadowed(old, lock)
    wanted = some(120)
    wanted[:100] = some(100)
    write(index, lock, np.array([3]), some(1, seed=1))  # it is stale now
    assert old.begun.wait(30)
    write(index, lock, np.array([5, 6]), some(2, seed=2))
    with lock.write():
        index.grow(120)
    write(index, lock, np.arange(100, 120), wanted[100:])
    late = some(1, seed=3)
    write(index, lock, np.array([5]), late)
    late_was, late[:] = late.copy(), 0  # the caller may use its array again
    assert index.swaps == 0  # the old one answers so far
    old.go_on.set()
    assert index.wait(30)
    assert index.swaps == 1
    wanted[[3, 5, 6]] = np.concatenate([some(1, seed=1), late_was, some(2, seed=2)[1:]])
    np.testing.assert_array_equal(index.vectors(), wanted)
    assert old.closed
    np.testing.assert_array_equal(index.search(wanted, 1)[1][:, 0], top_k(wanted, wanted, 1)[1][:, 0])


def test_a_write_that_comes_just_before_the_swap_is_in_it():
    old = Held(some(50))
    late = some(1, seed=9)

    class Overtaken(WriterPreferringLock):
        """Somebody writes at the very moment in which the rebuild asks for the lock."""

        def write(self):
            if threading.current_thread().name == "index-rebuild":
                with super().write():
                    index.replace(np.array([7]), late)
            return super().write()

    lock = Overtaken()
    index = Shadowed(old, lock)
    write(index, lock, np.array([3]), some(1, seed=1))
    old.go_on.set()
    assert index.wait(30)
    assert index.swaps == 1
    np.testing.assert_array_equal(index.vectors()[[7]], late)


def test_a_swap_waits_for_whoever_searches():
    old = Held(some(50))
    lock = WriterPreferringLock()
    index = Shadowed(old, lock)
    write(index, lock, np.array([3]), some(1, seed=1))
    assert old.begun.wait(30)
    with lock.read():
        old.go_on.set()
        assert not index.wait(0.3)
        assert index.swaps == 0
        assert not old.closed
    assert index.wait(30)
    assert index.swaps == 1


def test_a_rebuild_that_fails_leaves_the_old_one_answering_and_says_so(caplog, monkeypatch):
    old = Held(some(50), fail=True)
    lock = WriterPreferringLock()
    index = Shadowed(old, lock)
    with caplog.at_level(logging.ERROR, "hotrefresh.index"):
        write(index, lock, np.array([3]), some(1, seed=1))
        old.go_on.set()
        assert index.wait(30)
    assert "MemoryError: no room" in caplog.text
    assert index.swaps == 0
    write(
        index, lock, np.array([4]), some(1, seed=2)
    )  # not tried again at once, and nothing is noted any more
    assert index.wait(0)
    np.testing.assert_array_equal(index.vectors()[[3, 4]], np.concatenate([some(1, seed=1), some(1, seed=2)]))
    monkeypatch.setattr(index, "_retry_at", 0.0)  # a minute later
    old.fail = False
    write(index, lock, np.array([5]), some(1, seed=3))
    assert index.wait(30)
    assert index.swaps == 1
    np.testing.assert_array_equal(index.vectors()[[4, 5]], np.concatenate([some(1, seed=2), some(1, seed=3)]))


def test_closing_while_a_new_one_is_made_throws_it_away():
    old = Held(some(50))
    lock = WriterPreferringLock()
    index = Shadowed(old, lock)
    write(index, lock, np.array([3]), some(1, seed=1))
    assert old.begun.wait(30)
    threading.Timer(0.2, old.go_on.set).start()
    index.close()
    assert index.swaps == 0
    assert old.closed


@pytest.mark.parametrize("shards", [1, 2])
def test_a_refresh_makes_the_lists_of_an_ivf_anew_and_loses_no_write(shards):
    old, new = some(4000), some(4000, seed=5)
    lock = WriterPreferringLock()
    index = make_index("faiss-ivf", old, IndexOptions(shards=shards), lock)
    parts = index._shards if shards > 1 else [index]
    order = np.random.default_rng(0).permutation(4000)
    for at in range(0, 4000, 100):
        write(index, lock, order[at : at + 100], new[order[at : at + 100]])
    assert all(part.wait(60) for part in parts)
    assert all(part.swaps >= 1 for part in parts)
    np.testing.assert_array_equal(index.vectors(), new)
    everywhere = np.ones(4000, bool)
    everywhere[::3] = False
    np.testing.assert_array_equal(index.search(new[:50], 1)[1][:, 0], np.arange(50))
    assert not np.isin(index.search(new[:50], 5, everywhere)[1] % 3, 0).any()
    index.close()


def test_without_a_lock_nothing_happens_behind_the_callers_back():
    assert isinstance(make_index("faiss-ivf", some(200)), FaissIvf)


def test_lists_are_stale_by_share_and_by_imbalance():
    vectors = some(4000)
    index = FaissIvf(vectors, IndexOptions(rebuild_share=0.5))
    index.replace(np.arange(1999), vectors[:1999])
    assert not index.stale()
    index.replace(np.arange(1999), vectors[:1999])  # the same rows again: no more of them were replaced
    assert not index.stale()
    index.replace(np.array([2500]), vectors[:1])
    assert index.stale()
    # Fewer rows, but all of them now in one corner.
    index = FaissIvf(vectors, IndexOptions(rebuild_share=0.5))
    before = index.imbalance
    index.replace(np.arange(1200), np.tile(vectors[:1], (1200, 1)))
    assert index.imbalance > 2 * before
    assert index.stale()


def test_empty_rows_are_dealt_out_over_the_lists():
    index = FaissIvf(some(4000))
    before = index.imbalance
    index.grow(8000)
    index.replace(np.arange(1000), np.zeros((1000, 12), np.float32))
    assert index.imbalance < 1.2 * before
