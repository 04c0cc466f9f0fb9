"""Flipped-bits order: `s = the number of bits of an item's code that noise would flip`, as its codec expects it."""

from __future__ import annotations

import numpy as np

from orchestrator.core.orders.base import F32, Input, Inputs, Order, required


def _score(inputs: Inputs) -> F32:
    return required(inputs.expected_flips, Input.EXPECTED_FLIPS).astype(np.float32)


ORDER = Order(
    name="flipped_bits",
    description="the codec is unsure of the code: bits that noise would flip",
    source="distance of activations from a sign's threshold; METHODS.md, Backfill orders",
    needs=frozenset({Input.EXPECTED_FLIPS}),
    score=_score,
)
