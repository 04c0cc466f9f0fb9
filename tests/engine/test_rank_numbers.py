"""Ranks around 32,768: the driver sends small whole numbers as smallint, and a sum of two of them does not fit one."""

from __future__ import annotations

import pytest

from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import directory, items


@pytest.mark.parametrize("first", [31_744, 32_767, 2**31 - 1024])
def test_late_items_are_asked_for_at_any_rank(context, first):
    with transaction(context.engine) as connection:
        assert directory.late_items(connection, 1, first, 1024) == []
        assert list(items.late_rows(connection, 1, first, 1024)) == []
