"""Ranks around 32,768: the driver sends small whole numbers as smallint, and a sum of two in SQL does not fit one."""

from __future__ import annotations

import pytest

from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import directory, items
from tests.engine import platform


@pytest.mark.parametrize("first", [31_744, 32_767, 2**31 - 1024])
def test_late_items_are_asked_for_at_any_rank(context, first):
    with transaction(context.engine) as connection:
        assert directory.late_items(connection, 1, first, 1024) == []
        assert list(items.late_rows(connection, 1, first, 1024)) == []


@pytest.mark.parametrize("first", [31_744, 32_767, 2**31 - 1024])
def test_late_items_become_batches_at_any_rank(context, tmp_path, first):
    platform.embedded_gallery(context, tmp_path)
    with context.engine.connect() as connection:
        items.cut_late(connection, 1, first, 1024, 1000)
        cut = connection.exec_driver_sql("SELECT first_rank, n FROM batch WHERE first_rank >= 31744").all()
    assert sorted(map(tuple, cut)) == [(first, 1000), (first + 1000, 24)]
