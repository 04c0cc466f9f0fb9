"""Scores of several embedding versions on one scale: `scale * s + offset` for every stored version.

Along a refresh new queries are compared with vectors of two models in one search. Their scores need not mean the same: a
right answer that still holds its old vector may score under a wrong one that holds its new vector. An increasing affine
map of the scores of one version changes no ranking within it, and decides who wins between two.

It costs the index nothing: a row is stored as `[scale * x, offset]`, a query is asked as `[q, 1]`, and the inner product is
the calibrated score. The version that a refresh leads *to* is mapped into the scale of what is stored, so nothing stored
is rewritten.

Fitted from a `Duel`: within a version and a state of a refresh the best row does not depend on the map, so the best
stored and the best renewed row of each query are all that a choice of (scale, offset) needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from orchestrator.core.significance import RESAMPLES, Interval, mean_interval

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_ROUNDS = 6
_SCALES = np.linspace(-1.0, 1.0, 9)
_SHIFTS = np.linspace(-1.0, 1.0, 13)
_WIDEST_SCALE = math.log(3.0)
_SOFTNESS = 0.1
"""Of the step from wrong to right, in standard deviations of the margins: small against them, wide against one query."""


@dataclass(frozen=True)
class Calibration:
    """`scale * s + offset`. Raises ValueError for a scale that is not over 0 and numbers that are not finite."""

    scale: float = 1.0
    offset: float = 0.0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.scale) and math.isfinite(self.offset) and self.scale > 0):
            raise ValueError(
                f"a calibration is a scale over 0 and an offset, not {self.scale}, {self.offset}"
            )

    @property
    def identity(self) -> bool:
        """Whether it changes nothing."""
        return self.scale == 1.0 and self.offset == 0.0

    def apply(self, scores: F64) -> F64:
        """The calibrated scores, of the same shape."""
        return self.scale * scores + self.offset

    def after(self, first: Calibration) -> Calibration:
        """Both, `first` first: the version `first` maps into a scale that this one maps on."""
        return Calibration(self.scale * first.scale, self.scale * first.offset + self.offset)

    @classmethod
    def of(cls, stored: Mapping[str, Any] | None) -> Calibration:
        """From {"scale": …, "offset": …}; of None the identity."""
        return IDENTITY if stored is None else cls(float(stored["scale"]), float(stored["offset"]))

    def stored(self) -> dict[str, float]:
        """What `of` reads."""
        return {"scale": self.scale, "offset": self.offset}


IDENTITY = Calibration()


def lay_out(vectors: F32, calibration: Calibration) -> F32:
    """Rows of a calibrated matrix: (n, d) float32 to `[scale * x, offset]`, (n, d + 1) float32."""
    rows = np.empty((len(vectors), vectors.shape[1] + 1), np.float32)
    np.multiply(vectors, np.float32(calibration.scale), out=rows[:, :-1])
    rows[:, -1] = calibration.offset
    return rows


def widen(queries: F32) -> F32:
    """Queries of a calibrated matrix: (q, d) float32 to `[q, 1]`, (q, d + 1) float32.

    A query that could not be read is zero and stays so: it has no answer, not the one with the highest offset.
    """
    asked = queries.any(axis=1, keepdims=True).astype(np.float32)
    return np.concatenate([queries, asked], axis=1)


@dataclass(frozen=True)
class Duel:
    """In each state of a refresh, the best row that holds a stored vector against the best that holds a new one.

    All (S, Q). `stored`, `renewed`: float64 scores, -inf where no row holds such a vector. `stored_hits`, `renewed_hits`:
    bool, whether that row answers the query. `coverage` (S,) float64. Every query counts.
    """

    coverage: F64
    stored: F64
    renewed: F64
    stored_hits: Bools
    renewed_hits: Bools

    def of(self, queries: npt.NDArray[np.integer]) -> Duel:
        """Of some of the queries alone."""
        return Duel(
            self.coverage,
            self.stored[:, queries],
            self.renewed[:, queries],
            self.stored_hits[:, queries],
            self.renewed_hits[:, queries],
        )

    @property
    def mixed(self) -> Bools:
        """(S,) bool: the states in which vectors of both versions are searched."""
        both: Bools = (np.isfinite(self.stored).sum(axis=1) > 0) & (np.isfinite(self.renewed).sum(axis=1) > 0)
        return both

    def margins(self, calibration: Calibration = IDENTITY) -> F64:
        """(S, Q) how far the best renewed row is ahead; infinite where there is one version alone."""
        return calibration.apply(self.renewed) - self.stored

    def right(self, calibration: Calibration = IDENTITY) -> Bools:
        """(S, Q) bool: which queries are answered right at 1."""
        chosen: Bools = np.where(self.margins(calibration) > 0, self.renewed_hits, self.stored_hits)
        return chosen


def joined(duels: list[Duel]) -> Duel:
    """The states of several refreshes of the same queries, one behind the other."""
    return Duel(
        *(
            np.concatenate([getattr(duel, name) for duel in duels])
            for name in ("coverage", "stored", "renewed", "stored_hits", "renewed_hits")
        )
    )


def fit(duel: Duel, old_right: Bools) -> Calibration:
    """The map of renewed scores that loses the fewest answers along the refresh; the identity where nothing is contested.

    Minimises, softly, the mean over the states of the negative flip rate and of what the recall falls below the raw one's:
    flips alone could be avoided by never showing a new vector. Where exactly one of the two best rows is right, the query
    counts as right by the logistic function of its margin. Starts: the identity, and the map that matches mean and
    standard deviation of both versions' best scores; then a grid around the better of them, six times, ever finer.

    Args:
        duel: of the queries to fit on.
        old_right: (Q,) bool, what the old system answers right.
    """
    contested = np.isfinite(duel.stored) & np.isfinite(duel.renewed) & (duel.stored_hits != duel.renewed_hits)
    if not contested.any():
        return IDENTITY
    loss = _Loss.of(duel, old_right, contested)
    best, lowest = IDENTITY, loss.of_map(IDENTITY)
    if (moments := _moments(duel)) is not None and (value := loss.of_map(moments)) < lowest:
        best, lowest = moments, value
    centre = float(loss.renewed.mean())
    wide_scale, wide_shift = _WIDEST_SCALE, 3.0 * loss.spread
    for _ in range(_ROUNDS):
        around = best
        for change in _SCALES * wide_scale:
            for shift in _SHIFTS * wide_shift:
                scale = around.scale * math.exp(change)
                # Turned about the centre of the scores: the shift then means the same at every scale.
                candidate = Calibration(scale, around.offset + (around.scale - scale) * centre + float(shift))
                if (value := loss.of_map(candidate)) < lowest - 1e-9:
                    best, lowest = candidate, value
        wide_scale, wide_shift = wide_scale / 2.5, wide_shift / 3
    return best


@dataclass(frozen=True)
class _Loss:
    """The contested pairs of a duel, flat. `raw`: (S,) the recall they give uncalibrated; `n`: all queries."""

    stored: F64
    renewed: F64
    state: npt.NDArray[np.int64]
    renewed_is_right: Bools
    was_right: Bools
    raw: F64
    n: int
    spread: float

    @classmethod
    def of(cls, duel: Duel, old_right: Bools, contested: Bools) -> _Loss:
        states, queries = np.nonzero(contested)
        stored, renewed = duel.stored[contested], duel.renewed[contested]
        spread = float((renewed - stored).std()) or float(np.abs(renewed - stored).max()) or 1.0
        renewed_is_right, was_right = duel.renewed_hits[contested], old_right[queries]
        n, zero = duel.stored.shape[1], np.zeros(len(duel.coverage))
        raw = cls(stored, renewed, states, renewed_is_right, was_right, zero, n, spread)
        return replace(raw, raw=raw._recall(raw._right(IDENTITY)))

    def of_map(self, calibration: Calibration) -> float:
        right = self._right(calibration)
        flips = float(((1 - right) * self.was_right).sum()) / self.n
        short = float(np.maximum(self.raw - self._recall(right), 0).sum())
        return (flips + short) / len(self.raw)

    def _right(self, calibration: Calibration) -> F64:
        margins = calibration.apply(self.renewed) - self.stored
        # The logistic function as a tanh: it overflows nowhere.
        wins = 0.5 * (1 + np.tanh(margins / (2 * _SOFTNESS * self.spread)))
        chance: F64 = np.where(self.renewed_is_right, wins, 1 - wins)
        return chance

    def _recall(self, right: F64) -> F64:
        return np.bincount(self.state, right, len(self.raw)) / self.n


def _moments(duel: Duel) -> Calibration | None:
    """Mean and standard deviation of the best scores matched, where half of the gallery is refreshed."""
    state = int(np.abs(np.where(duel.mixed, duel.coverage, np.inf) - 0.5).argmin())
    stored, renewed = duel.stored[state], duel.renewed[state]
    both = np.isfinite(stored) & np.isfinite(renewed)
    if both.sum() < 2 or not renewed[both].std() or not stored[both].std():
        return None
    scale = float(stored[both].std() / renewed[both].std())
    return Calibration(scale, float(stored[both].mean() - scale * renewed[both].mean()))


@dataclass(frozen=True)
class Effect:
    """What calibrations do to queries that they were not fitted on, over the mixed states of simulated refreshes.

    Attributes:
        nfr, recall, lowest: (raw, calibrated): mean negative flip rate against the old system, mean recall at 1, and the
            lowest recall of a coverage.
        difference: of the mean negative flip rate, calibrated - raw: percentile bootstrap over queries, 95 %.
        queries: how many count.
    """

    nfr: tuple[float, float]
    recall: tuple[float, float]
    lowest: tuple[float, float]
    difference: Interval
    queries: int

    @property
    def pays(self) -> bool:
        """It cuts flips beyond chance, and lowers neither the recall along the refresh nor its lowest point.

        At the start and at the end there is one version, so nothing changes there.
        """
        return (
            self.difference.high < 0 and self.recall[1] >= self.recall[0] and self.lowest[1] >= self.lowest[0]
        )


@dataclass(frozen=True)
class Fitted:
    """A calibration with its effect on queries that were held out.

    Attributes:
        calibration: fitted on all queries.
        halves: fitted on each half of the queries; `half` (Q,) says which half a query is in, so query q is judged by
            `halves[1 - half[q]]`.
    """

    calibration: Calibration
    halves: tuple[Calibration, Calibration]
    half: npt.NDArray[np.int64]
    effect: Effect


def cross_fit(
    duel: Duel, old_right: Bools, rng: np.random.Generator, resamples: int = RESAMPLES
) -> Fitted | None:
    """Fit on each half of the queries, judge on the other: every query is judged by a map that has not seen it.

    Args:
        duel: of the queries that count, every state of every simulated refresh.
        old_right: (Q,) bool. rng: draws the halves and the resamples.

    None with fewer than two queries, or where no state is mixed.
    """
    n = len(old_right)
    if n < 2 or not duel.mixed.any():
        return None
    half = np.zeros(n, np.int64)
    half[rng.permutation(n)[: n // 2]] = 1
    first, second = (fit(duel.of(np.flatnonzero(half == h)), old_right[half == h]) for h in (0, 1))
    unseen = unseen_by(half, (duel.right(first), duel.right(second)))
    effect = effect_of(duel, duel.right(), unseen, old_right, rng, resamples)
    return Fitted(fit(duel, old_right), (first, second), half, effect)


def unseen_by(half: npt.NDArray[np.int64], answers: tuple[Bools, Bools]) -> Bools:
    """(..., Q) bool: of each query the answers under the map that was fitted on the other half; `answers`: by half."""
    chosen: Bools = np.where(half == 0, answers[1], answers[0])
    return chosen


def effect_of(
    duel: Duel,
    raw: Bools,
    changed: Bools,
    old_right: Bools,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
) -> Effect:
    """How two ways to answer compare over the mixed states. `raw`, `changed`: (S, Q) bool; `old_right` (Q,) bool."""
    mixed = duel.mixed
    before, after = raw[mixed], changed[mixed]
    lost = [(old_right & ~answers).mean(axis=0) for answers in (before, after)]
    coverage = duel.coverage[mixed]
    at = [coverage == each for each in np.unique(coverage)]
    lowest = [min(float(answers[states].mean()) for states in at) for answers in (before, after)]
    return Effect(
        nfr=(float(lost[0].mean()), float(lost[1].mean())),
        recall=(float(before.mean()), float(after.mean())),
        lowest=(lowest[0], lowest[1]),
        difference=mean_interval(lost[1] - lost[0], rng, resamples=resamples),
        queries=len(old_right),
    )
