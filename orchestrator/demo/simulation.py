"""The refresh of every arm and seed, computed from its embeddings: what the report's curves are made of.

Everything here is exact for the embeddings it is given: at each of 22 coverages the first rows of the order hold new
vectors, the rest what is stored. The real rollout of the demo is measured by the ledger and drawn beside it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.core import plan
from orchestrator.core.metrics import Relevance, evaluate, top_k
from orchestrator.core.orders import order_scores
from orchestrator.core.simulate import (
    CurvePoint,
    normalised_area,
    oracle_scores,
    refresh_curve,
    trapezoid_area,
)

F32 = npt.NDArray[np.float32]
RANDOM_ORDERS = 3


@dataclass(frozen=True)
class ArmVectors:
    """The embeddings of one upgrade path.

    Attributes:
        queries: (Q, d) float32, by the new model.
        base: (N, d) float32, what is stored when the new model starts to serve: old, or lifted by the adapter.
        new: (N, d) float32, by the new model.
        prototypes: (C, d) float32, the new model's head.
        temperature: of the softmax behind the entropy.
    """

    name: str
    queries: F32
    base: F32
    new: F32
    prototypes: F32
    temperature: float


@dataclass(frozen=True)
class ArmCurves:
    """One upgrade path measured along its refresh. `random` are the points of each random order."""

    name: str
    old_old: float
    new_old: float
    new_new: float
    entropy: tuple[CurvePoint, ...]
    random: tuple[tuple[CurvePoint, ...], ...]
    oracle: tuple[CurvePoint, ...] | None
    area: float
    area_random: float
    area_oracle: float | None

    @property
    def normalised_area(self) -> float | None:
        """(area − old) / (new − old); None where the new model gains nothing."""
        return normalised_area(self.area, self.old_old, self.new_new)

    @property
    def lowest(self) -> float:
        """The worst recall along the refresh in entropy order."""
        return min(point.r_at_1 or 0.0 for point in self.entropy)

    @property
    def mean_nfr(self) -> float:
        """The mean negative flip rate along the refresh in entropy order."""
        return float(np.mean([point.flips.nfr or 0.0 for point in self.entropy]))


def measure_arm(
    arm: ArmVectors,
    old_queries: F32,
    old_gallery: F32,
    relevance: Relevance,
    rng: np.random.Generator,
    *,
    random_orders: int = RANDOM_ORDERS,
    oracle: bool = False,
    average_precision: bool = False,
) -> ArmCurves:
    """Simulate one path's refresh in entropy order, in random orders and, when asked, in the oracle's."""
    old_old = evaluate(old_queries, old_gallery, relevance).recall or 0.0
    old_right = relevance.hits(top_k(old_queries, old_gallery, 1)[1]) & relevance.answerable
    scores = order_scores("entropy", arm.base, arm.prototypes, arm.temperature)

    def along(row_of: npt.NDArray[np.integer], with_map: bool) -> tuple[CurvePoint, ...]:
        return tuple(
            refresh_curve(
                arm.queries, arm.base, arm.new, row_of, relevance, old_right, average_precision=with_map
            )
        )

    entropy = along(plan.order_rows(scores), average_precision)
    random = tuple(
        along(rng.permutation(len(arm.base)), average_precision and turn == 0)
        for turn in range(random_orders)
    )
    best = along(plan.order_rows(oracle_scores(arm.base, arm.new)), average_precision) if oracle else None
    return ArmCurves(
        name=arm.name,
        old_old=old_old,
        new_old=entropy[0].r_at_1 or 0.0,
        new_new=entropy[-1].r_at_1 or 0.0,
        entropy=entropy,
        random=random,
        oracle=best,
        area=area_of(entropy),
        area_random=float(np.mean([area_of(points) for points in random])),
        area_oracle=area_of(best) if best else None,
    )


def area_of(points: Sequence[CurvePoint]) -> float:
    """The trapezoid under recall over coverage."""
    return trapezoid_area([p.coverage for p in points], [p.r_at_1 or 0.0 for p in points])
