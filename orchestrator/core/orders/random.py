"""Random order: the control that every other order is measured against."""

from __future__ import annotations

import numpy as np

from orchestrator.core.orders.base import F32, Input, Inputs, Order


def _score(inputs: Inputs) -> F32:
    return inputs.need_rng().random(inputs.n, dtype=np.float32)


ORDER = Order(
    name="random",
    description="a seeded shuffle: the control that the others must beat",
    source="control",
    needs=frozenset({Input.RNG}),
    score=_score,
)
