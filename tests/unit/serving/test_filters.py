"""Filters over columns in memory against a plain look at every item."""

from __future__ import annotations

import numpy as np
import pytest

from orchestrator.errors import UsageError
from orchestrator.serving.filters import Columns, checked, put


def let_through(items, where):
    wanted = checked(where)
    return [all(item.get(name) in values for name, values in wanted.items()) for item in items]


@pytest.fixture
def items():
    rng = np.random.default_rng(0)
    return [
        {
            name: str(rng.integers(few))
            for name, few in (("tenant", 4), ("language", 3), ("label", 9))
            if rng.random() < 0.8
        }
        for _ in range(500)
    ]


@pytest.fixture
def columns(items):
    columns = Columns(len(items))
    columns.put(np.arange(len(items)), items)
    return columns


WHERES = [
    {},
    {"tenant": "1"},
    {"tenant": ["1", "3"]},
    {"tenant": ("0", "2"), "language": "1"},
    {"label": ["1", "5", "8"], "tenant": ["2"]},
    {"tenant": "nobody"},
    {"tenant": ["nobody", "1"]},
]


@pytest.mark.parametrize("where", WHERES)
def test_a_filter_lets_through_what_a_look_at_every_item_does(columns, items, where):
    assert columns.mask(checked(where)).tolist() == let_through(items, where)


@pytest.mark.parametrize("where", WHERES)
def test_changed_deleted_and_new_items_are_filtered_by_what_they_are_now(columns, items, where):
    columns.grow(510)
    items += [{} for _ in range(10)]
    changed = {3: {"tenant": "1"}, 4: {}, 505: {"tenant": "3", "language": "1"}, 506: {"label": "5"}}
    put(columns, np.arange(510), changed)
    columns.drop(np.array([7, 8]))
    for row, item in (changed | {7: {}, 8: {}}).items():
        items[row] = item
    assert columns.mask(checked(where)).tolist() == let_through(items, where)
    assert [columns.of_row(row) for row in range(510)] == items


def test_rows_may_share_one_document(columns):
    columns.put(np.array([1, 2, 3]), [{"tenant": "a"}, {"tenant": "b"}], np.array([1, 0, 1]))
    assert [columns.of_row(row) for row in (1, 2, 3)] == [{"tenant": "b"}, {"tenant": "a"}, {"tenant": "b"}]


def test_an_unknown_attribute_names_those_there_are(columns):
    with pytest.raises(UsageError, match="'colour'; there are label, language, tenant"):
        columns.mask(checked({"colour": "red"}))


@pytest.mark.parametrize(
    "where", ["tenant", {"tenant": []}, {"tenant": 3}, {"tenant": ["a", 3]}, {3: "a"}, {"tenant": None}]
)
def test_what_is_no_filter_is_refused(where):
    with pytest.raises(UsageError, match="filter"):
        checked(where)


def test_a_column_takes_four_bytes_an_item(columns):
    assert columns.nbytes == 3 * 4 * len(columns)


def test_what_was_picked_stays_what_it_was_while_rows_are_written():
    columns = Columns(3)
    columns.put(np.arange(2), [{"label": "a", "shop": "south"}, {"shop": "north", "season": "summer"}])
    picked = columns.pick(np.array([[1, 0], [2, -1]]))
    columns.put(np.arange(3), [{"shop": "west", "colour": "red"}] * 3)
    found = [[picked.of((query, place)) for place in range(2)] for query in range(2)]
    assert found == [[{"shop": "north", "season": "summer"}, {"shop": "south"}], [{}, {}]]
    assert columns.pick(np.array([1])).of((0,)) == {"shop": "west", "colour": "red"}
    assert columns.of_row(1) == {"shop": "west", "colour": "red"}
