"""What calibrated scores and the guard do to an arm, on queries that neither was fitted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.core.calibration import IDENTITY, Duel, Fitted, cross_fit, joined, unseen_by
from orchestrator.core.guard import Refresh, cross_fit_guard
from orchestrator.core.metrics import Relevance
from orchestrator.core.simulate import duel_of

F32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Orders = Mapping[str, Sequence[npt.NDArray[np.integer]]]

JUDGED = ("random", "entropy")
"""Orders in which the maps are judged; they are fitted along the random ones, as a certificate fits them."""


def measure_calibration(
    queries: F32,
    base: F32,
    new: F32,
    relevance: Relevance,
    old_right: Bools,
    orders: Orders,
    seed: int,
    old_queries: F32 | None = None,
) -> dict[str, Any] | None:
    """The map of all queries, and `orders`: order -> curves like those of an arm, each query judged by the map of the other half.

    Args:
        orders: order -> rows; the random ones and entropy are looked at.
        old_queries: by the old model, where `base` holds its vectors as they are: `guard` is measured then.

    None where there is nothing to fit on.
    """
    duels = {
        name: [duel_of(queries, base, new, row_of, relevance) for row_of in orders[name]] for name in JUDGED
    }
    counted = old_right[relevance.answerable]
    rng = np.random.default_rng([seed, 1])
    fitted = cross_fit(joined(duels["random"]), counted, rng)
    if fitted is None:
        return None
    guard = None
    if old_queries is not None:
        systems = [
            duel_of(queries, base, new, row_of, relevance, base_queries=old_queries)
            for row_of in orders["random"]
        ]
        guard = _guard(Refresh(joined(duels["random"]), joined(systems), counted), fitted, rng)
    return {
        **fitted.calibration.stored(),
        "pays": fitted.effect.pays,
        "difference": [fitted.effect.difference.low, fitted.effect.difference.high],
        "orders": {name: [_curve(duel, fitted, counted) for duel in each] for name, each in duels.items()},
        "guard": guard,
    }


def _curve(duel: Duel, fitted: Fitted, old_right: Bools) -> dict[str, list[float]]:
    right = unseen_by(fitted.half, (duel.right(fitted.halves[0]), duel.right(fitted.halves[1])))
    earlier = np.concatenate([right[:1], right[:-1]])
    return {
        "coverage": duel.coverage.tolist(),
        "recall": right.mean(axis=1).tolist(),
        "nfr": (old_right & ~right).mean(axis=1).tolist(),
        "nfr_previous": (earlier & ~right).mean(axis=1).tolist(),
    }


def _guard(refresh: Refresh, fitted: Fitted, rng: np.random.Generator) -> dict[str, Any] | None:
    """The guard of raw scores and that of calibrated ones; None where one of them has no flips to be fitted on."""
    found = {
        "raw": cross_fit_guard(refresh, fitted.half, (IDENTITY, IDENTITY), IDENTITY, rng),
        "calibrated": cross_fit_guard(refresh, fitted.half, fitted.halves, fitted.calibration, rng),
    }
    return {
        name: {
            "share": each.share,
            "covered": each.covered,
            "healed": each.healed,
            "broken": each.broken,
            "nfr": each.effect.nfr,
            "recall": each.effect.recall,
        }
        for name, each in found.items()
        if each is not None
    } or None
