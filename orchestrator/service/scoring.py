"""The scores of a gallery's items: what the order of a rollout declares to need is fetched, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.errors import UsageError
from orchestrator.ledger.queries import galleries as gallery_queries
from orchestrator.ledger.queries import models as model_queries
from orchestrator.ledger.rows import AdapterRow, GalleryRow, ModelRow, RolloutRow
from orchestrator.service.demand import read_counts, require_demand
from orchestrator.serving.floats import StoredFloats

if TYPE_CHECKING:
    from orchestrator.core.orders import Input

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
    new: ModelRow,
) -> None:
    """Whether a rollout of the gallery through `adapter` to the model `new` can use the order.

    Args:
        demand_base: the order that demand weights.

    Raises:
        UsageError: there is no such order, it is for simulations only, or it reads an uncertainty that nothing predicts,
            or codes where there is no codec.
        ConflictError: it follows demand, and nothing of the gallery was retrieved yet.
    """
    from orchestrator.core.orders import ORDERS, Input, demand_bases, needs_of, real_orders

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
    if Input.EXPECTED_FLIPS in needs_of(name, demand_base) and new.base_model_id is None:
        raise UsageError(
            f"order {name!r} reads how sure a codec is of its codes, and {new.name!r} is no codec; choose another order, "
            "such as entropy."
        )
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


@dataclass(frozen=True)
class ScoreInputs:
    """What the ledger and the store know for the scores of one rollout: of what its order does not need, None.

    Attributes:
        stored: (plan_items, d) float32, what is stored (lifted, where there is an adapter that lifts).
        old: (plan_items, d_old) float32, what the adapter was given; zero where there is none.
        demand: (plan_items,) float32, over 0.
        labels: (row, label) of the labelled items.
        floats: the stored embeddings that the new model, a codec, encodes.
        model: the new one. adapter: that of the rollout.
    """

    stored: F32 | None
    old: F32 | None
    demand: F32 | None
    labels: list[tuple[int, str]]
    floats: StoredFloats | None
    model: ModelRow
    adapter: AdapterRow | None


def read_inputs(
    connection: Connection, row: RolloutRow, vectors: Callable[[], F32], old_vectors: Callable[[], F32]
) -> ScoreInputs:
    """Read what the scores of a rollout's items are computed from. Nothing is computed here: the transaction is open.

    Args:
        vectors: reads what is stored, as `ScoreInputs.stored`; called only if needed.
        old_vectors: reads what the adapter was given, as `ScoreInputs.old`; likewise.
    """
    from orchestrator.core.orders import Input

    needs = _needs(row)
    embeddings = Input.EMBEDDINGS in needs
    adapter_id = row.adapter_id
    model = model_queries.model_by_id(connection, row.to_model_id)
    coded = Input.EXPECTED_FLIPS in needs and model.base_model_id is not None
    return ScoreInputs(
        stored=vectors() if embeddings else None,
        old=old_vectors() if Input.LOG_VARIANCE in needs and not embeddings else None,
        demand=_demand(connection, row) if Input.DEMAND in needs else None,
        labels=gallery_queries.labels_of_gallery(connection, row.gallery_id) if embeddings else [],
        floats=StoredFloats(connection, row.gallery_id, model.base_model_id or 0) if coded else None,
        model=model,
        adapter=None if adapter_id is None else model_queries.adapter_by_id(connection, adapter_id),
    )


def score_items(context: Context, row: RolloutRow, inputs: ScoreInputs) -> F32:
    """The score of every planned item under the rollout's order: (plan_items,) float32, higher is earlier.

    It may take long, and asks the ledger nothing: the ledger ends a transaction that is idle for as long.
    """
    from orchestrator.core.orders import Input, order_scores

    needs = _needs(row)
    rng = np.random.default_rng(int(row.config.get("seed", 0)))
    flips = _expected_flips(context, row, inputs) if inputs.floats is not None else None
    if inputs.stored is None:
        variance = _log_variance(context, row, inputs) if Input.LOG_VARIANCE in needs else None
        return order_scores(
            row.order_name,
            n=row.plan_items,
            rng=rng,
            log_variance=variance,
            expected_flips=flips,
            demand=inputs.demand,
            base=_base(row),
        )
    return order_scores(
        row.order_name,
        n=row.plan_items,
        embeddings=inputs.stored,
        prototypes=choose_prototypes(context, row, inputs, rng) if Input.PROTOTYPES in needs else None,
        labels=choose_labels(row, inputs, rng) if Input.LABELS in needs else None,
        temperature=float(row.config["temperature"]),
        rng=rng,
        demand=inputs.demand,
        base=_base(row),
    )


def _base(row: RolloutRow) -> str:
    """The order that demand weights."""
    from orchestrator.core.orders import DEFAULT_BASE

    return str(row.config.get("demand_base", DEFAULT_BASE))


def _needs(row: RolloutRow) -> frozenset[Input]:
    from orchestrator.core.orders import needs_of

    return needs_of(row.order_name, _base(row))


def _demand(connection: Connection, row: RolloutRow) -> F32:
    """(n,) float32, how often each item was retrieved, and once more: that nobody asked for it yet does not mean that nobody
    will, and among those items the other order decides."""
    return (read_counts(connection, row.gallery_id, row.plan_items).astype(np.float64) + 1).astype(np.float32)


def _log_variance(context: Context, row: RolloutRow, inputs: ScoreInputs) -> F32:
    """(n,) float32, what the rollout's adapter predicts, chunk by chunk; where nothing is stored, the greatest."""
    old = inputs.old
    assert inputs.adapter is not None, "checked at the start"
    assert old is not None, "read where it is needed"
    adapter = context.adapter(inputs.adapter)
    predicted = np.empty(len(old), np.float32)
    stored = np.empty(len(old), np.bool_)
    for at in range(0, len(old), ADAPT_CHUNK):
        rows = slice(at, at + ADAPT_CHUNK)
        predicted[rows] = adapter.transform(old[rows])[1]
        stored[rows] = old[rows].any(axis=1)
    # What has no vector cannot be found at all: first, as the orders over prototypes put it.
    predicted[~stored] = predicted[stored].max(initial=-np.inf) if stored.any() else 0.0
    return predicted


def _expected_flips(context: Context, row: RolloutRow, inputs: ScoreInputs) -> F32:
    """(n,) float32, what the codec expects of each stored embedding, chunk by chunk; where there is none, the greatest."""
    codec, floats = context.codec(inputs.model), inputs.floats
    assert floats is not None, "read where it is needed"
    expected = np.zeros(row.plan_items, np.float32)
    stored = np.zeros(row.plan_items, np.bool_)
    for at in range(0, row.plan_items, ADAPT_CHUNK):
        rows = np.arange(at, min(at + ADAPT_CHUNK, row.plan_items))
        vectors, known = floats.read(rows)
        stored[rows] = known
        if known.any():
            expected[rows[known]] = codec.expected_flips(vectors[known])
    # As under every order: what has no embedding to encode comes first, its item must be embedded.
    expected[~stored] = expected[stored].max(initial=0.0)
    return expected


def choose_prototypes(
    context: Context, row: RolloutRow, inputs: ScoreInputs, rng: np.random.Generator
) -> F32:
    """Prototypes of the new space: the new model's head, class means, or k-means where nothing is labelled."""
    from orchestrator.core.prototypes import class_means, kmeans_centroids

    wanted = str(row.config["prototypes"])
    vectors = inputs.stored
    assert vectors is not None, "whoever wants prototypes needs embeddings"
    head = context.prototypes(inputs.model)
    if wanted in ("auto", "head") and head is not None:
        return head
    if wanted == "head":
        raise UsageError(
            f"the new model of rollout {row.id} stores no head; use --prototypes classes or clusters."
        )
    labels = _class_labels(row, inputs, len(vectors))
    if labels is not None:
        return class_means(vectors, labels)
    return kmeans_centroids(vectors, _cluster_count(len(vectors)), rng)


def choose_labels(row: RolloutRow, inputs: ScoreInputs, rng: np.random.Generator) -> I64:
    """(n,) int64: the class of each item, -1 without one; its k-means cluster where nothing is labelled or clusters are asked
    for."""
    from orchestrator.core.prototypes import kmeans_centroids, nearest_centroids

    vectors = inputs.stored
    assert vectors is not None, "whoever wants labels needs embeddings"
    labels = _class_labels(row, inputs, len(vectors))
    if labels is not None:
        return labels
    return nearest_centroids(vectors, kmeans_centroids(vectors, _cluster_count(len(vectors)), rng))


def _class_labels(row: RolloutRow, inputs: ScoreInputs, n: int) -> I64 | None:
    """(n,) int64 numbers of the items' labels, -1 without one; None where clusters are wanted or nothing is labelled."""
    wanted = str(row.config["prototypes"])
    if wanted == "clusters":
        return None
    known = [(r, name) for r, name in inputs.labels if r < n]
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
