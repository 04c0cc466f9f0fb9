"""Counting what searches return."""

from __future__ import annotations

import threading

import pytest

from orchestrator.errors import UnreachableError
from orchestrator.serving.retrievals import RetrievalCounter


class Book:
    """Adds up what is written; `away` refuses so many writes."""

    def __init__(self, away=0):
        self.counts, self.away, self.writes = {}, away, 0

    def write(self, gallery_id, counts):
        if self.away:
            self.away -= 1
            raise UnreachableError("away")
        self.writes += 1
        for row, count in counts.items():
            self.counts[gallery_id, row] = self.counts.get((gallery_id, row), 0) + count


def test_counts_of_many_threads_are_written_once():
    book = Book()
    counter = RetrievalCounter(book.write)
    threads = [
        threading.Thread(target=lambda: [counter.count(7, [1, 2, 2]) for _ in range(500)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    counter.flush()
    counter.flush()
    assert book.counts == {(7, 1): 2000, (7, 2): 4000}
    assert book.writes == 1


def test_what_cannot_be_written_is_kept_for_the_next_time():
    book = Book(away=1)
    counter = RetrievalCounter(book.write)
    counter.count(1, [5])
    counter.count(2, [5, 6])
    with pytest.raises(UnreachableError):
        counter.flush()
    counter.count(1, [5])
    counter.flush()
    assert book.counts == {(1, 5): 2, (2, 5): 1, (2, 6): 1}


def test_so_many_items_wait_and_no_more():
    book = Book()
    counter = RetrievalCounter(book.write, most_items=3)
    counter.count(1, [1, 2])
    counter.count(2, [1, 2, 3])
    counter.count(1, [1])
    assert counter.dropped == 2
    counter.flush()
    assert book.counts == {(1, 1): 2, (1, 2): 1, (2, 1): 1}
    counter.count(2, [3])
    assert counter.dropped == 2


def test_a_counter_that_is_closed_has_written_everything():
    book = Book()
    counter = RetrievalCounter(book.write, flush_s=3600)
    counter.start()
    counter.count(1, [4])
    counter.close()
    assert book.counts == {(1, 4): 1}
