"""What a certificate says of calibrated scores: fitted on half of its queries, judged on the other half, both ways."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.core.calibration import (
    IDENTITY,
    Calibration,
    Fitted,
    cross_fit,
    joined,
    lay_out,
    unseen_by,
    widen,
)
from orchestrator.core.guard import Refresh, cross_fit_guard
from orchestrator.core.metrics import Relevance
from orchestrator.core.simulate import CurvePoint, answered, duel_of, refresh_curve

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ORDERS = 3
"""Simulated refreshes that a calibration is fitted along: what one random order shows is partly that order's."""


@dataclass(frozen=True)
class Sample:
    """What a certificate measures: (Q, d) new queries on (N, d) stored and new vectors, all float32.

    Attributes:
        unread: rows that could not be embedded anew and keep their stored vector.
        old_right: (Q,) bool, what the old system answers right.
        old_queries: (Q, d_old) float32, by the old model.
        lifted: the stored vectors went through an adapter, or lie beside codes: old queries have nothing to search.
    """

    queries: F32
    base: F32
    fresh: F32
    unread: I64
    relevance: Relevance
    old_right: Bools
    old_queries: F32
    lifted: bool

    @property
    def counted(self) -> I64:
        """The queries that have a relevant row."""
        return np.flatnonzero(self.relevance.answerable)

    def curve(self, row_of: I64, calibration: Calibration = IDENTITY) -> list[CurvePoint]:
        """The refresh in an order, as a replica would serve it: rows that keep their stored vector keep its layout."""
        queries, base, fresh = self.queries, self.base, self.fresh
        if not calibration.identity:
            queries, base, fresh = widen(queries), lay_out(base, IDENTITY), lay_out(fresh, calibration)
            fresh[self.unread] = base[self.unread]
        return refresh_curve(queries, base, fresh, row_of, self.relevance, self.old_right)


@dataclass(frozen=True)
class Calibrated:
    """A calibration with the refresh curve of the certificate's order, every query judged by a map fitted without it."""

    fitted: Fitted
    curve: list[CurvePoint]
    refresh: Refresh | None

    def guard(self, on: bool, rng: np.random.Generator) -> dict[str, Any] | None:
        """The guard that belongs to calibrated or to raw scores, as a certificate keeps it; None where there can be none."""
        if self.refresh is None:
            return None
        maps, served = (
            (self.fitted.halves, self.fitted.calibration) if on else ((IDENTITY, IDENTITY), IDENTITY)
        )
        found = cross_fit_guard(self.refresh, self.fitted.half, maps, served, rng)
        if found is None:
            return None
        effect = asdict(found.effect)
        return {
            **found.guard.stored(),
            "held_out": {
                **effect,
                **{key: getattr(found, key) for key in ("share", "covered", "healed", "broken")},
            },
        }

    def report(self, on: bool) -> dict[str, Any]:
        """As a certificate keeps it. `on`: rollouts take it, unless they are told not to."""
        effect = self.fitted.effect
        return {
            **self.fitted.calibration.stored(),
            "on": on,
            "halves": [half.stored() for half in self.fitted.halves],
            "held_out": {**asdict(effect), "pays": effect.pays},
            "orders": ORDERS,
        }


def calibrate(sample: Sample, row_of: I64, rng: np.random.Generator) -> Calibrated | None:
    """Fit and judge; None where there is nothing to fit on. `row_of`: the order of the certificate's curve."""
    orders = [rng.permutation(len(sample.base)) for _ in range(ORDERS)]
    duel = joined([duel_of(sample.queries, sample.base, sample.fresh, o, sample.relevance) for o in orders])
    old_right = sample.old_right[sample.counted]
    fitted = cross_fit(duel, old_right, rng)
    if fitted is None:
        return None
    refresh = None
    if not sample.lifted:
        systems = [
            duel_of(
                sample.queries,
                sample.base,
                sample.fresh,
                o,
                sample.relevance,
                base_queries=sample.old_queries,
            )
            for o in orders
        ]
        refresh = Refresh(duel, joined(systems), old_right)
    raw = sample.curve(row_of)
    first, second = (_answers(sample.curve(row_of, half)) for half in fitted.halves)
    return Calibrated(fitted, answered(raw, old_right, unseen_by(fitted.half, (first, second))), refresh)


def _answers(curve: list[CurvePoint]) -> Bools:
    return np.array([point.answers for point in curve])
