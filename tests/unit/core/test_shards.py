from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.core.shards import BLOCK_ROWS, WHOLE, Shard


@given(st.integers(0, 300), st.integers(1, 6), st.integers(1, 40))
def test_every_row_is_held_once_and_counted_in_the_gallerys_order(n, count, block):
    rows, held = np.arange(n), []
    for number in range(1, count + 1):
        shard = Shard(number, count, block)
        mine = rows[shard.holds(rows)]
        own = shard.own(rows[::-1])[::-1]
        assert own.tolist() == list(range(shard.size(n)))
        assert shard.rows(own).tolist() == mine.tolist()
        parts = list(shard.slices(n))
        assert [row for of, _ in parts for row in range(of.start, of.stop)] == own.tolist()
        assert [row for _, of in parts for row in range(of.start, of.stop)] == mine.tolist()
        held += mine.tolist()
    assert sorted(held) == rows.tolist()


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 5), st.integers(1, 20))
def test_no_row_moves_when_a_gallery_grows(n, more, count, block):
    for number in range(1, count + 1):
        shard = Shard(number, count, block)
        before, after = shard.own(np.arange(n)), shard.own(np.arange(n + more))
        assert after[: len(before)].tolist() == before.tolist()


def test_a_shard_holds_its_part_of_a_large_gallery_but_for_a_block():
    sizes = [Shard(number, 3).size(10_000_000) for number in (1, 2, 3)]
    assert sum(sizes) == 10_000_000
    assert max(sizes) - min(sizes) <= BLOCK_ROWS


def test_places_without_a_row_stay_without_one():
    found = np.array([[4, -1], [0, 3]])
    assert Shard(2, 3, 2).rows(found).tolist() == [[14, -1], [2, 9]]
    assert WHOLE.rows(found) is found


@pytest.mark.parametrize("text", ["", "2", "0/3", "4/3", "-1/3", "1/0", "a/b", "1/3/5", "1/³"])
def test_what_is_no_shard_is_refused(text):
    with pytest.raises(ValueError, match="shard"):
        Shard.parse(text)


def test_a_shard_is_written_as_it_is_read():
    assert Shard.parse("2/3", 16) == Shard(2, 3, 16)
    assert str(Shard(2, 3, 16)) == "2/3"
