"""Backfill orders by name. A new order is one new file with an `ORDER`, and one line here."""

from __future__ import annotations

from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from orchestrator.core.orders import entropy, least_confidence, margin, random, row
from orchestrator.core.orders.base import Input, Inputs, Order
from orchestrator.core.uncertainty import DEFAULT_TEMPERATURE

ORDERS = MappingProxyType(
    {module.ORDER.name: module.ORDER for module in (entropy, margin, least_confidence, random, row)}
)


def order_scores(
    name: str,
    embeddings: npt.NDArray[np.float32] | None = None,
    prototypes: npt.NDArray[np.float32] | None = None,
    temperature: float = DEFAULT_TEMPERATURE,
    rng: np.random.Generator | None = None,
    *,
    n: int | None = None,
) -> npt.NDArray[np.float32]:
    """The score of every row under order `name`: (n,) float32, higher is earlier; `plan.order_rows` sorts them.

    Args:
        embeddings: (n, d) float32, L2-normalised: what is stored now, adapted where there is an adapter.
        prototypes: (C, d) float32, L2-normalised.
        temperature: T of the softmax.
        rng: the generator of the random order.
        n: rows, for orders that need no embeddings; `len(embeddings)` when left out.

    Raises ValueError for an unknown order and for a missing input, naming what the order needs.
    """
    if name not in ORDERS:
        raise ValueError(f"no order named {name!r}; there are {', '.join(sorted(ORDERS))}")
    if n is None:
        if embeddings is None:
            raise ValueError(f"order {name} needs the embeddings or the number of rows")
        n = len(embeddings)
    inputs = Inputs(n, embeddings, prototypes, temperature, rng)
    missing = [need for need in sorted(ORDERS[name].needs) if getattr(inputs, need) is None]
    if missing:
        raise ValueError(f"order {name} needs {', '.join(missing)}")
    order: Order = ORDERS[name]
    return order.score(inputs)


__all__ = ["ORDERS", "Input", "Inputs", "Order", "order_scores"]
