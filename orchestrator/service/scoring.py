"""The scores of a gallery's items: what the order of a rollout declares to need is fetched, nothing else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.errors import UsageError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.rows import AdapterRow, GalleryRow, RolloutRow
from orchestrator.service.demand import read_counts, require_demand

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
ADAPT_CHUNK = 65_536


def check_order(
    context: Context,
    connection: Connection,
    name: str,
    adapter: AdapterRow | None,
    gallery: GalleryRow,
    demand_base: str,
) -> None:
    """Whether a rollout of the gallery through `adapter` can use the order.

    Args:
        demand_base: the order that demand weights.

    Raises:
        UsageError: there is no such order, it is for simulations only, or it reads an uncertainty that nothing predicts.
        ConflictError: it follows demand, and nothing of the gallery was retrieved yet.
    """
    from orchestrator.core.orders import ORDERS, Input, demand_bases, real_orders

    real = ", ".join(real_orders())
    if name not in ORDERS:
        raise UsageError(f"there is no order {name!r}; there are {real}.")
    order = ORDERS[name]
    if order.simulation_only is not None:
        raise UsageError(
            f"order {name!r} is for simulations only: {order.simulation_only}. Choose one of {real}."
        )
    if Input.DEMAND in order.needs:
        if demand_base not in demand_bases():
            raise UsageError(
                f"order {name!r} cannot weight {demand_base!r}; --demand-base is one of {', '.join(demand_bases())}."
            )
        require_demand(connection, gallery.id, gallery.name)
    if Input.LOG_VARIANCE not in order.needs:
        return
    if adapter is None:
        raise UsageError(
            f"order {name!r} reads the uncertainty that an adapter predicts, and this rollout has no adapter. "
            "Name one with --adapter, or choose another order, such as entropy."
        )
    if not context.adapter(adapter).predicts_uncertainty:
        raise UsageError(
            f"order {name!r} reads the uncertainty that an adapter predicts, and {adapter.name!r} "
            f"({adapter.manifest['architecture']}) predicts none. Fit one that does (`hotrefresh model adapt --method mlp`), "
            "or choose another order, such as entropy."
        )


def score_items(
    context: Context,
    connection: Connection,
    row: RolloutRow,
    vectors: Callable[[], F32],
    old_vectors: Callable[[], F32],
) -> F32:
    """The score of every planned item under the rollout's order: (plan_items,) float32, higher is earlier.

    Args:
        vectors: reads what is stored (adapted, where there is an adapter), (plan_items, d) float32; called only if needed.
        old_vectors: reads what the adapter was given, (plan_items, d_old) float32, zero where there is none; likewise.
    """
    from orchestrator.core.orders import DEFAULT_BASE, Input, needs_of, order_scores

    base = str(row.config.get("demand_base", DEFAULT_BASE))
    needs = needs_of(row.order_name, base)
    rng = np.random.default_rng(int(row.config.get("seed", 0)))
    demand = _demand(connection, row) if Input.DEMAND in needs else None
    if Input.EMBEDDINGS not in needs:
        variance = (
            _log_variance(context, connection, row, old_vectors()) if Input.LOG_VARIANCE in needs else None
        )
        return order_scores(
            row.order_name, n=row.plan_items, rng=rng, log_variance=variance, demand=demand, base=base
        )
    stored = vectors()
    return order_scores(
        row.order_name,
        n=row.plan_items,
        embeddings=stored,
        prototypes=(
            choose_prototypes(context, connection, row, stored, rng) if Input.PROTOTYPES in needs else None
        ),
        labels=choose_labels(connection, row, stored, rng) if Input.LABELS in needs else None,
        temperature=float(row.config["temperature"]),
        rng=rng,
        demand=demand,
        base=base,
    )


def _demand(connection: Connection, row: RolloutRow) -> F32:
    """(n,) float32, how often each item was retrieved, and once more: that nobody asked for it yet does not mean that nobody
    will, and among those items the other order decides."""
    return (read_counts(connection, row.gallery_id, row.plan_items).astype(np.float64) + 1).astype(np.float32)


def _log_variance(context: Context, connection: Connection, row: RolloutRow, old: F32) -> F32:
    """(n,) float32, what the rollout's adapter predicts, chunk by chunk; where nothing is stored, the greatest."""
    assert row.adapter_id is not None, "checked at the start"
    adapter = context.adapter(model_queries.adapter_by_id(connection, row.adapter_id))
    predicted = np.empty(len(old), np.float32)
    stored = np.empty(len(old), np.bool_)
    for at in range(0, len(old), ADAPT_CHUNK):
        rows = slice(at, at + ADAPT_CHUNK)
        predicted[rows] = adapter.transform(old[rows])[1]
        stored[rows] = old[rows].any(axis=1)
    # What has no vector cannot be found at all: first, as the orders over prototypes put it.
    predicted[~stored] = predicted[stored].max(initial=-np.inf) if stored.any() else 0.0
    return predicted


def choose_prototypes(
    context: Context, connection: Connection, row: RolloutRow, vectors: F32, rng: np.random.Generator
) -> F32:
    """Prototypes of the new space: the new model's head, class means, or k-means where nothing is labelled."""
    from orchestrator.core.prototypes import class_means, kmeans_centroids

    wanted = str(row.config["prototypes"])
    head = context.prototypes(model_queries.model_by_id(connection, row.to_model_id))
    if wanted in ("auto", "head") and head is not None:
        return head
    if wanted == "head":
        raise UsageError(
            f"the new model of rollout {row.id} stores no head; use --prototypes classes or clusters."
        )
    labels = _class_labels(connection, row, len(vectors), wanted)
    if labels is not None:
        return class_means(vectors, labels)
    return kmeans_centroids(vectors, _cluster_count(len(vectors)), rng)


def choose_labels(connection: Connection, row: RolloutRow, vectors: F32, rng: np.random.Generator) -> I64:
    """(n,) int64: the class of each item, -1 without one; its k-means cluster where nothing is labelled or clusters are asked
    for."""
    from orchestrator.core.prototypes import kmeans_centroids, nearest_centroids

    labels = _class_labels(connection, row, len(vectors), str(row.config["prototypes"]))
    if labels is not None:
        return labels
    return nearest_centroids(vectors, kmeans_centroids(vectors, _cluster_count(len(vectors)), rng))


def _class_labels(connection: Connection, row: RolloutRow, n: int, wanted: str) -> I64 | None:
    """(n,) int64 numbers of the items' labels, -1 without one; None where clusters are wanted or nothing is labelled."""
    if wanted == "clusters":
        return None
    known = [(r, name) for r, name in gallery_queries.labels_of_gallery(connection, row.gallery_id) if r < n]
    if not known:
        if wanted == "classes":
            raise UsageError(f"the gallery of rollout {row.id} has no labels; use --prototypes clusters.")
        return None
    labels = np.full(n, -1, np.int64)
    numbers = np.unique([name for _, name in known], return_inverse=True)[1]
    labels[[r for r, _ in known]] = numbers
    return labels


def _cluster_count(n: int) -> int:
    return max(2, min(1000, n // 20))
