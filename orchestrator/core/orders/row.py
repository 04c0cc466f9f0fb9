"""Row order: as the gallery was listed. The order of a first, cold embedding, when nothing is known of the items."""

from __future__ import annotations

import numpy as np

from orchestrator.core.orders.base import F32, Inputs, Order


def _score(inputs: Inputs) -> F32:
    # Equal scores are ordered by row, exactly, where float32 row numbers would collide beyond 2**24.
    return np.zeros(inputs.n, np.float32)


ORDER = Order(
    name="row",
    description="as listed: for a first embedding, when nothing is known of the items",
    source="identity",
    needs=frozenset(),
    score=_score,
)
