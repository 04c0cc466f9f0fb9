"""Queries that come while the encoder is busy are encoded together, and none feels the others."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from orchestrator.serving.batching import QueryBatcher


class Slow:
    """An encoder that is busy until it is let go; the vector of n is (n, n)."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.begun = threading.Semaphore(0)

    def __call__(self, prepared):
        self.batches.append(list(prepared))
        self.begun.release()
        assert self.go.wait(10)
        if -1 in prepared:
            raise ValueError("minus one")
        return np.array([[n, n] for n in prepared], np.float32)


@pytest.fixture
def pool():
    with ThreadPoolExecutor(64) as opened:
        yield opened


def queued(batcher, count):
    deadline = time.monotonic() + 10
    while sum(len(each.prepared) for each in batcher._queue) < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def behind_one(pool, batcher, slow, queries):
    """One query is being encoded while the others come; their futures, the first one's first."""
    first = pool.submit(batcher.encode, [0])
    assert slow.begun.acquire(timeout=10)
    others = []
    for number, query in enumerate(queries, 1):
        others.append(pool.submit(batcher.encode, query))
        queued(batcher, sum(map(len, queries[:number])))
    slow.go.set()
    return [first, *others]


def test_what_comes_while_the_encoder_is_busy_is_one_batch_and_everybody_gets_his_own(pool):
    slow = Slow()
    batcher = QueryBatcher(slow)
    queries = [[1, 2]] + [[n] for n in range(3, 42)]
    done = behind_one(pool, batcher, slow, queries)
    assert [each.result(10).tolist() for each in done] == [[[n, n] for n in q] for q in [[0], *queries]]
    assert slow.batches == [[0], [*range(1, 42)]]
    assert (batcher._queue, batcher._encoding) == ([], 0)


def test_one_alone_is_encoded_at_once_by_the_thread_that_asks():
    seen = []

    def encode(prepared):
        seen.append(threading.get_ident())
        return np.ones((len(prepared), 2), np.float32)

    assert QueryBatcher(encode).encode([1, 2]).shape == (2, 2)
    assert seen == [threading.get_ident()]


def test_the_error_of_one_query_is_its_own(pool):
    slow = Slow()
    done = behind_one(pool, QueryBatcher(slow), slow, [[1], [-1], [2]])
    assert done[1].result(10).tolist() == [[1, 1]]
    assert done[3].result(10).tolist() == [[2, 2]]
    with pytest.raises(ValueError, match="minus one"):
        done[2].result(10)


def test_an_encoder_that_returns_too_little_gives_nobody_the_vector_of_another(pool):
    def encode(prepared):
        return np.ones((1, 2), np.float32)

    with pytest.raises(ValueError, match="1 vectors of 2"):
        QueryBatcher(encode).encode([1, 2])


def test_a_batch_has_its_limit_and_more_than_that_at_once_goes_through(pool):
    slow = Slow()
    batcher = QueryBatcher(slow, most=3)
    done = behind_one(pool, batcher, slow, [[1], [2], [3], [4], [5, 6, 7, 8]])
    assert [each.result(10).tolist() for each in done][-1] == [[n, n] for n in (5, 6, 7, 8)]
    assert slow.batches == [[0], [1, 2, 3], [4], [5, 6, 7, 8]]


def test_with_batches_of_one_every_caller_encodes_at_the_same_time(pool):
    slow = Slow()
    batcher = QueryBatcher(slow, most=1)
    done = [pool.submit(batcher.encode, [n]) for n in range(3)]
    for _ in range(3):
        assert slow.begun.acquire(timeout=10)  # none of them was let go yet
    slow.go.set()
    assert [each.result(10).tolist() for each in done] == [[[n, n]] for n in range(3)]


def test_a_batch_waits_for_company_where_it_is_told_to(pool):
    slow = Slow()
    slow.go.set()
    batcher = QueryBatcher(slow, most=2, wait_s=30.0)
    done = [pool.submit(batcher.encode, [n]) for n in range(2)]
    assert sorted(each.result(10)[0, 0] for each in done) == [0, 1]
    assert [sorted(batch) for batch in slow.batches] == [[0, 1]]


def test_two_batches_are_encoded_at_once_where_there_are_processors_for_them(pool):
    slow = Slow()
    batcher = QueryBatcher(slow, at_once=2)
    done = [pool.submit(batcher.encode, [n]) for n in range(2)]
    for _ in range(2):
        assert slow.begun.acquire(timeout=10)
    done += [pool.submit(batcher.encode, [n]) for n in range(2, 6)]
    queued(batcher, 4)
    slow.go.set()
    assert [each.result(10).tolist() for each in done] == [[[n, n]] for n in range(6)]
    assert [sorted(batch) for batch in sorted(slow.batches)][:2] == [[0], [1]]
    assert len(slow.batches) <= 4  # each of the two that end takes what waits then
    assert batcher._encoding == 0


@pytest.mark.parametrize("at_once", [1, 3])
def test_many_clients_are_all_answered(pool, at_once):
    batcher = QueryBatcher(
        lambda prepared: np.array([[n, n] for n in prepared], np.float32), most=8, at_once=at_once
    )

    def ask(client):
        return [batcher.encode([client * 1000 + n])[0, 0] for n in range(200)]

    for client, found in enumerate(pool.map(ask, range(32))):
        assert found == [client * 1000 + n for n in range(200)]
