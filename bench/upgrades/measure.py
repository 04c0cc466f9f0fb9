"""One arm measured: before, at the start, along the refresh in every order, and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from bench.upgrades.calibrate import measure_calibration
from models.adapters import Adapter
from models.adapters.leading import leading
from orchestrator.core import plan
from orchestrator.core.metrics import Relevance, evaluate, top_k
from orchestrator.core.orders import ORDERS, Input, Inputs
from orchestrator.core.prototypes import kmeans_centroids
from orchestrator.core.simulate import CurvePoint, refresh_curve

F32 = npt.NDArray[np.float32]

RANDOM_ORDERS = 3
TEMPERATURE = 0.05
"""T of the softmax against the new model's prototypes that the uncertainty orders use."""

_POINTS_A_CLUSTER = 20


@dataclass(frozen=True)
class Vectors:
    """Embeddings (n, dim) float32, L2-normalised, by the old and the new model.

    Attributes:
        prototypes: (C, d_new) float32, the new model's head.
        labels: (N,) int64, the class of each gallery item.
    """

    old_queries: F32
    old_gallery: F32
    new_queries: F32
    new_gallery: F32
    prototypes: F32
    labels: npt.NDArray[np.int64]


def measure_arm(
    vectors: Vectors, relevance: Relevance, adapter: Adapter | None, *, backward: bool, seed: int
) -> dict[str, Any]:
    """Recall at 1 and flips; `orders` maps an order to its curves (random has several), empty for a backward arm.

    Where nothing leads between models of different dims, stored vectors are padded or cut (`models.adapters.leading`).
    """
    old_found = top_k(vectors.old_queries, vectors.old_gallery, 1)[1]
    old_right = relevance.hits(old_found) & relevance.answerable
    found: dict[str, Any] = {
        "queries": int(relevance.answerable.sum()),
        "items": len(vectors.old_gallery),
        "old_old": _recall(vectors.old_queries, vectors.old_gallery, relevance),
        "new_new": _recall(vectors.new_queries, vectors.new_gallery, relevance),
    }
    if backward:
        assert adapter is not None
        mapped, _ = adapter.transform(vectors.new_queries)
        right = relevance.hits(top_k(mapped, vectors.old_gallery, 1)[1]) & relevance.answerable
        lost = int((old_right & ~right).sum()) / found["queries"]
        return {
            **found,
            "new_old": _recall(mapped, vectors.old_gallery, relevance),
            "start_nfr": lost,
            "orders": {},
        }
    log_variance = None
    if adapter is None:
        base = leading(vectors.old_gallery, vectors.new_gallery.shape[1])
    else:
        base, log_variance = adapter.transform(vectors.old_gallery)
        log_variance = log_variance if adapter.predicts_uncertainty else None
    orders = orders_of(vectors, base, log_variance, seed)
    curves = {
        name: [_curve(vectors, base, relevance, old_right, row_of) for row_of in each]
        for name, each in orders.items()
    }
    start = curves["random"][0]
    calibrated = measure_calibration(
        vectors.new_queries,
        base,
        vectors.new_gallery,
        relevance,
        old_right,
        orders,
        seed,
        # Old queries search stored vectors as they are: neither adapted, nor padded or cut.
        vectors.old_queries if adapter is None and base.shape == vectors.old_gallery.shape else None,
    )
    measured = {"new_old": start["recall"][0], "start_nfr": start["nfr"][0], "orders": curves}
    return {**found, **measured, "calibration": calibrated}


def orders_of(
    vectors: Vectors, base: F32, log_variance: F32 | None, seed: int
) -> Mapping[str, Sequence[npt.NDArray[np.integer]]]:
    """Every order that what is at hand allows: name -> the rows in order; several for random, one for the rest.

    Orders that ask for groups get clusters of the stored vectors, as if nothing were labelled, and once more, as
    "<name> (labelled)", the classes of the gallery's items.
    """
    rng = np.random.default_rng(seed)
    clusters = kmeans_centroids(base, max(2, len(base) // _POINTS_A_CLUSTER), rng)
    inputs = Inputs(
        n=len(base),
        embeddings=base,
        prototypes=vectors.prototypes,
        temperature=TEMPERATURE,
        rng=rng,
        labels=top_k(base, clusters, 1)[1][:, 0],
        log_variance=log_variance,
        new_embeddings=vectors.new_gallery,
    )
    labelled = replace(inputs, labels=vectors.labels)
    found = {}
    for name, order in ORDERS.items():
        if not order.needs or any(getattr(inputs, need) is None for need in order.needs):
            continue  # as listed, or an input that nobody has here: a query log, a predicted variance
        times = RANDOM_ORDERS if name == "random" else 1
        found[name] = [plan.order_rows(order.score(inputs)) for _ in range(times)]
        if Input.LABELS in order.needs:
            found[f"{name} (labelled)"] = [plan.order_rows(order.score(labelled))]
    return found


def _recall(queries: F32, gallery: F32, relevance: Relevance) -> float:
    recall = evaluate(queries, gallery, relevance).recall
    assert recall is not None  # every benchmark has queries that can be answered
    return recall


def _curve(
    vectors: Vectors,
    base: F32,
    relevance: Relevance,
    old_right: npt.NDArray[np.bool_],
    row_of: npt.NDArray[np.integer],
) -> dict[str, list[float]]:
    points = refresh_curve(vectors.new_queries, base, vectors.new_gallery, row_of, relevance, old_right)
    return {
        "coverage": [point.coverage for point in points],
        "recall": [_known(point.r_at_1) for point in points],
        "nfr": [_known(point.flips.nfr) for point in points],
        "nfr_previous": [_previous_nfr(point) for point in points],
    }


def _previous_nfr(point: CurvePoint) -> float:
    """Against the state before; the first one follows none and has lost nothing."""
    return 0.0 if point.previous_flips is None else _known(point.previous_flips.nfr)


def _known(rate: float | None) -> float:
    assert rate is not None
    return rate
