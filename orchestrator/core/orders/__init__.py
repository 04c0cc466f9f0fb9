"""Backfill orders by name. A new order is one new file with an `ORDER`, and one line here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt
import torch

from orchestrator.core.orders import (
    class_distance,
    demand,
    entropy,
    flipped_bits,
    least_confidence,
    margin,
    neighbour_disagreement,
    oracle,
    random,
    row,
    sigma,
)
from orchestrator.core.orders.base import DEFAULT_NEIGHBOURS, Input, Inputs, Order
from orchestrator.core.uncertainty import DEFAULT_TEMPERATURE

ORDERS: Mapping[str, Order] = MappingProxyType(
    {
        module.ORDER.name: module.ORDER
        for module in (
            entropy,
            margin,
            least_confidence,
            sigma,
            class_distance,
            neighbour_disagreement,
            random,
            row,
            demand,
            flipped_bits,
            oracle,
        )
    }
)

DEFAULT_BASE = "entropy"
"""The order that demand weights."""

_CPU = torch.device("cpu")
_WEIGHTED = frozenset({Input.BASE_SCORES})


def real_orders() -> list[str]:
    """The orders that a rollout may use, by name."""
    return sorted(name for name, order in ORDERS.items() if order.simulation_only is None)


def demand_bases() -> list[str]:
    """The orders that demand may weight in a rollout, by name: those whose scores are 0 or more, and not all the same."""
    return [
        name
        for name in real_orders()
        if name not in (demand.ORDER.name, row.ORDER.name) and Input.LOG_VARIANCE not in ORDERS[name].needs
    ]


def needs_of(name: str, base: str = DEFAULT_BASE) -> frozenset[Input]:
    """What `order_scores` must be given for an order: for one that weights another's scores, what that other one needs too.

    Raises ValueError for an unknown order, and for a base that weights scores itself.
    """
    needs = _order(name).needs
    if Input.BASE_SCORES not in needs:
        return needs
    if Input.BASE_SCORES in _order(base).needs:
        raise ValueError(f"order {name} cannot be built on {base}, which weights another order itself")
    return (needs - _WEIGHTED) | _order(base).needs


def order_scores(
    name: str,
    embeddings: npt.NDArray[np.float32] | None = None,
    prototypes: npt.NDArray[np.float32] | None = None,
    temperature: float = DEFAULT_TEMPERATURE,
    rng: np.random.Generator | None = None,
    *,
    n: int | None = None,
    log_variance: npt.NDArray[np.float32] | None = None,
    labels: npt.NDArray[np.int64] | None = None,
    demand: npt.NDArray[np.float32] | None = None,
    new_embeddings: npt.NDArray[np.float32] | None = None,
    expected_flips: npt.NDArray[np.float32] | None = None,
    neighbours: int = DEFAULT_NEIGHBOURS,
    base: str = DEFAULT_BASE,
    device: torch.device = _CPU,
) -> npt.NDArray[np.float32]:
    """The score of every row under order `name`: (n,) float32; higher is earlier; `plan.order_rows` sorts them.

    Args:
        embeddings, prototypes, temperature, rng, log_variance, labels, demand, new_embeddings, expected_flips,
            neighbours, device: as `Inputs` describes them.
        n: rows, for orders that need no embeddings; `len(embeddings)` when left out.
        base: the order whose scores an order like demand weights.

    Raises ValueError for an unknown order, for a missing input, naming what the order needs, and for one of another length.
    """
    needs = needs_of(name, base)
    if n is None:
        if embeddings is None:
            raise ValueError(f"order {name} needs the embeddings or the number of rows")
        n = len(embeddings)
    inputs = Inputs(
        n=n,
        embeddings=embeddings,
        prototypes=prototypes,
        temperature=temperature,
        rng=rng,
        log_variance=log_variance,
        labels=labels,
        demand=demand,
        new_embeddings=new_embeddings,
        expected_flips=expected_flips,
        neighbours=neighbours,
        device=device,
    )
    _check(name, inputs, needs)
    if Input.BASE_SCORES in ORDERS[name].needs:
        inputs = replace(inputs, base_scores=ORDERS[base].score(inputs))
    return ORDERS[name].score(inputs)


def _order(name: str) -> Order:
    if name not in ORDERS:
        raise ValueError(f"no order named {name!r}; there are {', '.join(sorted(ORDERS))}")
    return ORDERS[name]


_ONE_A_ROW = frozenset(
    {
        Input.EMBEDDINGS,
        Input.LOG_VARIANCE,
        Input.LABELS,
        Input.DEMAND,
        Input.NEW_EMBEDDINGS,
        Input.EXPECTED_FLIPS,
    }
)


def _check(name: str, inputs: Inputs, needs: frozenset[Input]) -> None:
    missing = [need for need in sorted(needs) if getattr(inputs, need) is None]
    if missing:
        raise ValueError(f"order {name} needs {', '.join(missing)}")
    for need in sorted(needs & _ONE_A_ROW):
        if len(getattr(inputs, need)) != inputs.n:
            raise ValueError(f"order {name}: {len(getattr(inputs, need))} {need} for {inputs.n} rows")


__all__ = [
    "DEFAULT_BASE",
    "ORDERS",
    "Input",
    "Inputs",
    "Order",
    "demand_bases",
    "needs_of",
    "order_scores",
    "real_orders",
]
