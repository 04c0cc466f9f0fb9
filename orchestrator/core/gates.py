"""Gates: whether what a refresh does to the queries may go on. Judged from counts; no clock, no ledger, no randomness.

A gate has three answers. It *fails* when its value is surely above the limit, *passes* when the value is not above it, and
is *inconclusive* when it cannot tell: too few queries, no number, or a value above the limit that could be chance. Missing
is not zero: an arm that did not run never passes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum

from scipy.special import betaincinv  # type: ignore[import-untyped]

from orchestrator.core.flips import FlipCounts
from orchestrator.core.relevance import RelevanceKind
from orchestrator.core.significance import mcnemar_p


class Result(StrEnum):
    """A gate's answer."""

    PASS = "pass"  # noqa: S105 - a word, no secret
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"


class Effect(StrEnum):
    """What a gate does to the rollout."""

    NONE = "none"
    ALERT = "alert"
    PAUSE = "pause"
    ROLLBACK = "rollback"


@dataclass(frozen=True)
class Sample:
    """What a gate reads after one evaluation.

    Attributes:
        against_old, against_previous: flips of the queries the gate is about.
        embedded, quarantined: items of the rollout so far.
        churn: the mean over `compared` queries of the part of their first answers that the old system did not give.
    """

    against_old: FlipCounts
    against_previous: FlipCounts
    embedded: int = 0
    quarantined: int = 0
    churn: float | None = None
    compared: int = 0


@dataclass(frozen=True)
class Measured:
    """One number of `n` observations, and the least that it surely is; None: there is none, and `problem` may say why."""

    value: float | None
    n: int
    least: float | None
    problem: str = ""


@dataclass(frozen=True)
class Gate:
    """One configured gate.

    Attributes:
        measure: a name of MEASURES, or of a probe outside.
        limit: a value above it fails.
        minimum_n: with fewer observations it is inconclusive.
        confidence: with which a value must be above the limit to fail.
        failure_limit, inconclusive_limit, error_limit: so many such answers in a row are borne without an effect.
        effect: of a failure. An inconclusive answer pauses where a failure would pause or roll back.
        dry_run: judged and written down, without effect.
        query_set: its name; "" for every one of the gallery's.
        slice, k: of the queries it is about.
    """

    name: str
    measure: str
    limit: float
    minimum_n: int = 100
    confidence: float = 0.95
    failure_limit: int = 0
    inconclusive_limit: int = 0
    error_limit: int = 3
    effect: Effect = Effect.PAUSE
    dry_run: bool = False
    query_set: str = ""
    slice: str = "all"
    k: int = 1


@dataclass(frozen=True)
class Decision:
    """What a gate answered, with everything it was decided from."""

    result: Result
    value: float | None
    limit: float
    n: int
    reason: str
    error: bool = False


@dataclass(frozen=True)
class Tally:
    """Answers of one kind in a row."""

    failures: int = 0
    inconclusives: int = 0
    errors: int = 0


def negative_flip_rate(sample: Sample, confidence: float) -> Measured:
    """Negative flips against the old system, as a share of the queries."""
    return _share(sample.against_old.negative_flips, sample.against_old.n, confidence)


def stage_flip_rate(sample: Sample, confidence: float) -> Measured:
    """Negative flips against the stage before, as a share of the queries: one bad batch."""
    return _share(sample.against_previous.negative_flips, sample.against_previous.n, confidence)


def recall_loss(sample: Sample, confidence: float) -> Measured:
    """Recall lost against the old system, `nfr - pfr`; surely above zero when McNemar's exact test says so.

    The test is one-sided: its p-value is half of the two-sided one.
    """
    counts = sample.against_old
    if not counts.n:
        return Measured(None, 0, None)
    lost = counts.negative_flips - counts.positive_flips
    value = lost / counts.n
    sure = lost > 0 and mcnemar_p(counts.negative_flips, counts.positive_flips) / 2 < 1 - confidence
    return Measured(value, counts.n, value if sure else min(value, 0.0))


def quarantine_rate(sample: Sample, confidence: float) -> Measured:
    """Items that could not be embedded, as a share of those tried."""
    return _share(sample.quarantined, sample.embedded + sample.quarantined, confidence)


def churn(sample: Sample, confidence: float) -> Measured:
    """The part of the queries' first answers that the old system did not give, `1 - overlap@k`: the mean over the queries."""
    if sample.churn is None or not sample.compared:
        return Measured(None, 0, None)
    return Measured(sample.churn, sample.compared, least_mean(sample.churn, sample.compared, confidence))


def click_loss_rate(sample: Sample, confidence: float) -> Measured:
    """Queries that found a clicked item in the old system and do not now, as a share of those with clicks."""
    return _share(sample.against_old.negative_flips, sample.against_old.n, confidence)


MEASURES: dict[str, Callable[[Sample, float], Measured]] = {
    each.__name__: each
    for each in (negative_flip_rate, stage_flip_rate, recall_loss, quarantine_rate, churn, click_loss_rate)
}
"""Name in the configuration -> measure."""

_KNOWN = frozenset(kind for kind in RelevanceKind if kind.known)
NEEDS: dict[str, frozenset[RelevanceKind]] = {
    "negative_flip_rate": _KNOWN,
    "stage_flip_rate": _KNOWN,
    "recall_loss": _KNOWN,
    "click_loss_rate": frozenset({RelevanceKind.CLICKS}),
}
"""Measures that are about some query sets only: what is lost of clicks is no flip."""


def _share(count: int, n: int, confidence: float) -> Measured:
    if not n:
        return Measured(None, 0, None)
    return Measured(count / n, n, least_share(count, n, confidence))


def least_share(count: int, n: int, confidence: float) -> float:
    """The one-sided lower bound of Clopper and Pearson (1934) for `count` of `n`: exact, and never too high."""
    return 0.0 if count == 0 else float(betaincinv(count, n - count + 1, 1 - confidence))


def least_mean(mean: float, n: int, confidence: float) -> float:
    """A one-sided lower bound for the expectation of a value in 0..1, of which `n` independent draws have this mean.

    Hoeffding (1963), Theorem 1: a mean of `m` or more has at most the chance exp(-n KL(m, e)) where the expectation is e < m,
    with KL(m, e) = m ln(m / e) + (1 - m) ln((1 - m) / (1 - e)), whatever the distribution is. The bound is the e at which that
    is 1 - confidence: below the exact bound of a share, and never too high.
    """
    if mean <= 0:
        return 0.0
    enough = -math.log(1 - confidence) / n
    low, high = 0.0, mean
    while low < (middle := (low + high) / 2) < high:
        if _divergence(mean, middle) > enough:
            low = middle
        else:
            high = middle
    return low


def _divergence(mean: float, expected: float) -> float:
    """Kullback and Leibler's, of two coins; 0 < expected <= mean <= 1."""
    rest = 0.0 if mean >= 1 else (1 - mean) * math.log((1 - mean) / (1 - expected))
    return mean * math.log(mean / expected) + rest


def outside(value: float | None, problem: str = "") -> Measured:
    """A number that somebody else measured, taken as certain. None: there was no answer, `problem` says why."""
    return Measured(value, 1, value, problem)


def decide(gate: Gate, measured: Measured) -> Decision:
    """The gate's answer to what was measured."""
    value, n = measured.value, measured.n

    def answer(result: Result, reason: str, *, error: bool = False) -> Decision:
        known = value if value is not None and math.isfinite(value) else None
        return Decision(result, known, gate.limit, n, reason, error)

    if value is None:
        return answer(Result.INCONCLUSIVE, measured.problem or "there is nothing to measure", error=True)
    if not math.isfinite(value):
        return answer(Result.INCONCLUSIVE, f"the value is {value}", error=True)
    if n < gate.minimum_n:
        return answer(Result.INCONCLUSIVE, f"{n} observations are fewer than {gate.minimum_n}")
    if value <= gate.limit:
        return answer(Result.PASS, f"{value:.4g} is not above {gate.limit:g}")
    if measured.least is not None and measured.least > gate.limit:
        return answer(Result.FAIL, f"{value:.4g} is above {gate.limit:g}, with n = {n}")
    return answer(
        Result.INCONCLUSIVE,
        f"{value:.4g} is above {gate.limit:g}, but with n = {n} that could be chance at {gate.confidence:g}",
    )


def act(gate: Gate, decision: Decision, tally: Tally) -> tuple[Effect, Tally]:
    """What follows from an answer, and the tally with it. A dry run has no effect and counts all the same."""
    if decision.result is Result.PASS:
        return Effect.NONE, Tally()
    if decision.result is Result.FAIL:
        tally = Tally(failures=tally.failures + 1)
        over, effect = tally.failures > gate.failure_limit, gate.effect
    else:
        field = "errors" if decision.error else "inconclusives"
        tally = replace(tally, failures=0, **{field: getattr(tally, field) + 1})
        limit = gate.error_limit if decision.error else gate.inconclusive_limit
        over = getattr(tally, field) > limit
        effect = Effect.PAUSE if gate.effect in (Effect.PAUSE, Effect.ROLLBACK) else gate.effect
    return (effect if over and not gate.dry_run else Effect.NONE), tally
