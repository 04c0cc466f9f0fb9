"""The writer-preferring lock: readers together, a writer alone, a waiting writer before new readers."""

from __future__ import annotations

import threading

from orchestrator.serving.lock import WriterPreferringLock


def test_readers_share():
    lock, both = WriterPreferringLock(), threading.Barrier(2)

    def read() -> None:
        with lock.read():
            both.wait(timeout=10)  # passes only when both are inside

    threads = [threading.Thread(target=read) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    assert not both.broken


def test_a_writer_is_alone_and_no_update_is_lost():
    lock, value = WriterPreferringLock(), [0, 0]

    def write() -> None:
        for _ in range(500):
            with lock.write():
                value[0] += 1
                value[1] += 1

    def read() -> None:
        for _ in range(500):
            with lock.read():
                assert value[0] == value[1]

    threads = [threading.Thread(target=target) for target in (write, write, read, read)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert value == [1000, 1000]


def test_a_waiting_writer_goes_before_a_reader_that_comes_later():
    lock, order, inside, leave = WriterPreferringLock(), [], threading.Event(), threading.Event()

    def first_reader() -> None:
        with lock.read():
            inside.set()
            leave.wait(timeout=10)

    def writer() -> None:
        with lock.write():
            order.append("writer")

    def late_reader() -> None:
        with lock.read():
            order.append("reader")

    threads = [threading.Thread(target=first_reader)]
    threads[0].start()
    inside.wait(timeout=10)
    threads.append(threading.Thread(target=writer))
    threads[1].start()
    while not lock._writers_waiting:
        pass
    threads.append(threading.Thread(target=late_reader))
    threads[2].start()
    leave.set()
    for thread in threads:
        thread.join(timeout=10)
    assert order == ["writer", "reader"]
