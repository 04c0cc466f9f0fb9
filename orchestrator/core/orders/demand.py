"""Demand order: the score of another order, times how often the item was retrieved."""

from __future__ import annotations

import numpy as np

from orchestrator.core.orders.base import F32, Input, Inputs, Order, required


def _score(inputs: Inputs) -> F32:
    base = required(inputs.base_scores, Input.BASE_SCORES)
    demand = required(inputs.demand, Input.DEMAND)
    if not (np.isfinite(demand).all() and (demand >= 0).all()):
        raise ValueError("demand counts retrievals: finite numbers, 0 or more")
    if not (base >= 0).all():
        # More demand would put an item with a negative score further back.
        raise ValueError("demand weights scores of 0 or more, and the base order gives negative ones")
    return (base * demand).astype(np.float32)


ORDER = Order(
    name="demand",
    description="another order's score times how often the item is retrieved",
    source="expected harm: probability times exposure; METHODS.md, Backfill orders",
    needs=frozenset({Input.BASE_SCORES, Input.DEMAND}),
    score=_score,
)
