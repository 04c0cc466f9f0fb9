"""Which queries a mixture may answer wrong, and the answer of two models for them.

A query is at risk where the best renewed row and the best stored one are close: the *margin* of the two best scores, renewed
minus stored, lies in a band. For those the old model embeds the query too, and searches the rows that still hold its own
vectors (its queries never meet new vectors: nothing certifies that); the new model searches the rows that hold its own. The
two answers are merged by score, the renewed ones mapped into the scale of the old system.

Band and map are fitted along simulated refreshes and judged on queries they were not fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.core.calibration import F64, Bools, Calibration, Duel, Effect, effect_of, fit, unseen_by

COVERED = 0.8
"""The part of the simulated flips that the band holds."""


@dataclass(frozen=True)
class Guard:
    """Queries with a margin of `low` to `high` are at risk; `merge` maps renewed scores to the old system's own scale."""

    low: float
    high: float
    merge: Calibration

    def at_risk(self, margins: F64) -> Bools:
        """Of margins of any shape; infinite ones, where there is one version alone, never are."""
        risk: Bools = np.isfinite(margins) & (margins >= self.low) & (margins <= self.high)
        return risk

    def stored(self) -> dict[str, float]:
        """What `of` reads."""
        return {"low": self.low, "high": self.high, **self.merge.stored()}

    @classmethod
    def of(cls, stored: Mapping[str, Any]) -> Guard:
        """From {"low", "high", "scale", "offset"}."""
        return cls(float(stored["low"]), float(stored["high"]), Calibration.of(stored))

    def served(self, stored: Calibration, renewed: Calibration) -> Guard:
        """The same where the scores of stored rows are mapped by `stored`, and those of renewed ones by `renewed`.

        The fitted band is in stored rows' raw scale, so it widens with theirs; the map first takes `renewed` back.
        """
        raw = Calibration(1 / renewed.scale, -renewed.offset / renewed.scale)
        return Guard(self.low * stored.scale, self.high * stored.scale, stored.after(self.merge.after(raw)))


@dataclass(frozen=True)
class Refresh:
    """Simulated refreshes of the same queries, seen by both models.

    Attributes:
        mixture: new queries on stored and on new vectors.
        systems: old queries on stored vectors, new queries on new ones; same states, same queries.
        old_right: (Q,) bool.
    """

    mixture: Duel
    systems: Duel
    old_right: Bools

    def of(self, queries: npt.NDArray[np.integer]) -> Refresh:
        """Of some of the queries alone."""
        return Refresh(self.mixture.of(queries), self.systems.of(queries), self.old_right[queries])

    def flips(self, calibration: Calibration) -> Bools:
        """(S, Q) bool: right under the old system, wrong in a mixed state."""
        lost: Bools = self.old_right & ~self.mixture.right(calibration) & self.mixture.mixed[:, None]
        return lost

    def answered(self, calibration: Calibration, guard: Guard) -> tuple[Bools, Bools]:
        """(S, Q) bool each: what is right under the guard, and which queries it looked after."""
        risk = guard.at_risk(self.mixture.margins(calibration))
        return np.where(risk, self.systems.right(guard.merge), self.mixture.right(calibration)), risk


def fit_guard(refresh: Refresh, calibration: Calibration, covered: float = COVERED) -> Guard | None:
    """The band that holds `covered` of the flips and the fewest queries, and the map for its merges; None without flips.

    `calibration`: of the renewed scores in the mixture. Raises ValueError for a part outside 0..1.
    """
    if not 0 < covered <= 1:
        raise ValueError(f"a band holds a part of the flips, over 0 and up to 1, not {covered}")
    margins, flips = refresh.mixture.margins(calibration), refresh.flips(calibration)
    finite = np.isfinite(margins)
    everyone, lost = np.sort(margins[finite]), np.sort(margins[finite & flips])
    if not len(lost):
        return None
    needed = math.ceil(covered * len(lost))
    lows, highs = lost[: len(lost) - needed + 1], lost[needed - 1 :]
    held = np.searchsorted(everyone, highs, "right") - np.searchsorted(everyone, lows, "left")
    best = int(held.argmin())
    return Guard(float(lows[best]), float(highs[best]), fit(refresh.systems, refresh.old_right))


@dataclass(frozen=True)
class FittedGuard:
    """A guard with what it costs and brings on queries that it was not fitted on.

    Attributes:
        effect: without and with the guard.
        share: of the searches of mixed states that are guarded: each costs one query embedded by the old model and two
            more searches.
        covered: of the flips of mixed states, how many the band held.
        healed: of the flips of mixed states, how many the merged answer does not lose; broken: right answers it loses, as
            a part of the same number.
    """

    guard: Guard
    effect: Effect
    share: float
    covered: float
    healed: float
    broken: float


def cross_fit_guard(
    refresh: Refresh,
    half: npt.NDArray[np.int64],
    maps: tuple[Calibration, Calibration],
    calibration: Calibration,
    rng: np.random.Generator,
) -> FittedGuard | None:
    """Fit on each half of the queries, judge on the other; None where one of the halves has no flips.

    Args:
        half: (Q,) 0 or 1. maps: the calibrations that were fitted on the halves (identities where there is none).
        calibration: the one that is served; the guard that is returned belongs to it.
    """
    guards = [fit_guard(refresh.of(np.flatnonzero(half == h)), maps[h]) for h in (0, 1)]
    whole = fit_guard(refresh, calibration)
    if whole is None or guards[0] is None or guards[1] is None:
        return None
    first, second = refresh.answered(maps[0], guards[0]), refresh.answered(maps[1], guards[1])
    right, risk = (unseen_by(half, (first[part], second[part])) for part in (0, 1))
    plain = unseen_by(half, (refresh.mixture.right(maps[0]), refresh.mixture.right(maps[1])))
    mixed = refresh.mixture.mixed
    lost = (refresh.old_right & ~plain)[mixed]
    flips = max(int(lost.sum()), 1)
    return FittedGuard(
        guard=whole,
        effect=effect_of(refresh.mixture, plain, right, refresh.old_right, rng),
        share=float(risk[mixed].mean()),
        covered=float((lost & risk[mixed]).sum() / flips),
        healed=float((lost & right[mixed]).sum() / flips),
        broken=float((plain & ~right)[mixed].sum() / flips),
    )
