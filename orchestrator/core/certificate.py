"""May two models meet in one search? The verdict over a measured pair; nothing is measured here.

With `M(a, b)` the metric with queries by model a and the gallery by model b (METHODS.md, "Criteria and curves"):

- compatibility: `M(new, old) > M(old, old)`
- update gain: `(M(new, old) - M(old, old)) / (M(best, best) - M(old, old))`
- compatibility tax: `M(best, best) - M(new, new)`
- safe refresh: `min over coverage of M(new, mixed gallery) >= M(old, old)`

The rule (docs/adr/0005): what was measured decides, the statistics say how sure that is.

1. Something missing, or too few queries: inconclusive.
2. Below the old system at the start or anywhere along the refresh: refused. Flips that are significantly negative are always
   such a case, because more negative than positive flips is a lower recall. The reason says whether it may be chance.
3. Where a tolerance is asked for, and an interval of the difference reaches below minus that tolerance: inconclusive.
4. Otherwise certified.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from orchestrator.core.flips import FlipCounts
from orchestrator.core.significance import SIGNIFICANT, Interval, mcnemar_p

DEFAULT_MINIMUM_QUERIES = 100
"""Under this many queries nothing is certified or refused."""


class Verdict(StrEnum):
    """What a certificate says."""

    CERTIFIED = "certified"
    REFUSED = "refused"
    INCONCLUSIVE = "inconclusive"


@dataclass(frozen=True)
class Measurement:
    """What was measured for a pair, one metric throughout, 0..1; None where it was not measured.

    `new_old` is measured against the gallery as it will stand at the start: adapted, where there is an adapter. `curve`
    is the metric at rising coverage. `best_best` is the new architecture trained with no compatibility term. The flips are
    against the old system, at the start and at the worst coverage; the intervals those of the paired differences new - old
    at the start and at the worst coverage of each resample (`significance.refresh_intervals`).
    """

    old_old: float | None
    new_old: float | None
    new_new: float | None
    curve: Sequence[float]
    n_queries: int
    best_best: float | None = None
    start_flips: FlipCounts | None = None
    worst_flips: FlipCounts | None = None
    start_difference: Interval | None = None
    lowest_difference: Interval | None = None


@dataclass(frozen=True)
class Judgement:
    """The verdict with its reason, and the criteria behind it; None where the measurement does not allow them.

    `update_gain` is relative to `best_best`, or to `new_new` where no such model was measured (`gain_reference` says which).
    """

    verdict: Verdict
    reason: str
    compatible: bool | None
    safe_refresh: bool | None
    lowest: float | None
    update_gain: float | None
    gain_reference: str | None
    compatibility_tax: float | None

    @property
    def certified(self) -> bool:
        """Whether the pair may be mixed."""
        return self.verdict is Verdict.CERTIFIED


def judge(
    measured: Measurement,
    minimum_queries: int = DEFAULT_MINIMUM_QUERIES,
    tolerance: float = 0.0,
    loss: float = 0.0,
) -> Judgement:
    """Certified when new queries do no worse than the old system at the start and at every measured coverage.

    `loss` is accepted: a codec makes vectors smaller, not better, and is certified where it costs no more than that.

    Inconclusive, which never passes, when a number is missing or not finite, when fewer than `minimum_queries` queries count,
    and when an interval does not exclude a loss of more than `tolerance` > 0. A `tolerance` of 0 asks for no interval.
    Raises ValueError for a tolerance or a loss outside 0..1.
    """
    if not (0 <= tolerance <= 1 and 0 <= loss <= 1):
        raise ValueError(f"a tolerance or a loss is a difference of recalls, 0..1, not {tolerance} or {loss}")
    old, start, end = _known(measured.old_old), _known(measured.new_old), _known(measured.new_new)
    best, curve = _known(measured.best_best), [_known(value) for value in measured.curve]
    whole = [value for value in (start, *curve, end) if value is not None]
    lowest = min(whole) if curve and len(whole) == len(curve) + 2 else None
    verdict, reason = _verdict(old, start, lowest, measured, minimum_queries, loss)
    if verdict is Verdict.CERTIFIED and tolerance and (doubt := _doubt(measured, tolerance + loss)):
        verdict, reason = Verdict.INCONCLUSIVE, doubt
    return Judgement(
        verdict=verdict,
        reason=reason,
        compatible=None if old is None or start is None else start > old,
        safe_refresh=None if old is None or lowest is None else lowest >= old,
        lowest=lowest,
        update_gain=_update_gain(old, start, end if best is None else best),
        gain_reference=None if end is None and best is None else "new_new" if best is None else "best_best",
        compatibility_tax=None if best is None or end is None else best - end,
    )


def _verdict(
    old: float | None,
    start: float | None,
    lowest: float | None,
    measured: Measurement,
    minimum: int,
    loss: float,
) -> tuple[Verdict, str]:
    if old is None or start is None or lowest is None:
        return Verdict.INCONCLUSIVE, "a measurement is missing or is not a finite number"
    if measured.n_queries < minimum:
        return Verdict.INCONCLUSIVE, f"{measured.n_queries} queries count, at least {minimum} are needed"
    accepted = f", and a loss of {loss:g} is accepted" if loss else ""
    floor = old - loss - 1e-12  # differences of counts, divided: not exact
    if start < floor:
        return (
            Verdict.REFUSED,
            f"new queries on the gallery as stored score {start:.4f}, the old system scores {old:.4f}{accepted}"
            + _evidence(measured.start_flips),
        )
    if lowest < floor:
        return (
            Verdict.REFUSED,
            f"the refresh falls to {lowest:.4f} on its way, below the old system's {old:.4f}{accepted}"
            + _evidence(measured.worst_flips),
        )
    return (
        Verdict.CERTIFIED,
        f"new queries score {start:.4f} from the start and never below {lowest:.4f}; the old system scores {old:.4f}{accepted}",
    )


def _evidence(flips: FlipCounts | None) -> str:
    """How sure a loss is, as the end of a refusal's reason."""
    if flips is None:
        return ""
    p = mcnemar_p(flips.negative_flips, flips.positive_flips)
    counts = f"{flips.negative_flips} queries turned wrong and {flips.positive_flips} right, p = {p:.2g}"
    return f" ({counts})" if p < SIGNIFICANT else f" ({counts}, which may be chance: more queries would tell)"


def _doubt(measured: Measurement, tolerance: float) -> str | None:
    """Why a loss of more than `tolerance` is not excluded; None where it is."""
    for where, interval in (
        ("at the start", measured.start_difference),
        ("along the refresh", measured.lowest_difference),
    ):
        if interval is None:
            return f"no interval of the difference {where} was measured, and a tolerance of {tolerance:g} needs it"
        if interval.low < -tolerance:
            return (
                f"{where} the new queries score {interval.low:+.4f} to {interval.high:+.4f} against the old system (95 %): "
                f"a loss of more than the tolerance of {tolerance:g} is not excluded"
            )
    return None


def _update_gain(old: float | None, start: float | None, best: float | None) -> float | None:
    if old is None or start is None or best is None or best == old:
        return None
    return (start - old) / (best - old)


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
