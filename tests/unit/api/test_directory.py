"""Items in memory by row and by key: what is kept of them on disk is what was loaded."""

from __future__ import annotations

import pytest

from orchestrator.api.directory import Directory
from orchestrator.ledger.rows import ItemRow

ITEMS = [ItemRow(3 * n, f"k{n}é", f"u{n}", None if n % 2 else f"l{n}") for n in range(10)]


@pytest.mark.parametrize("n", [0, 1, 7, 28, 100])
def test_a_directory_of_its_arrays_is_the_directory_of_the_rows_before_n_and_goes_on(n):
    directory = Directory()
    directory.extend(ITEMS)
    directory.put([ItemRow(3, "k1é", "else", "else")])
    directory.drop([6])
    again = Directory.of_arrays(directory.arrays(n))
    assert again.of_rows(range(40)) == {item.row: item for item in ITEMS if item.row < n}
    new = ItemRow(300, "new", "u", "l")
    again.extend([new])
    assert again.of_key("new") == new
    for item in ITEMS:
        assert again.of_key(item.key) == (item if item.row < n else None)
