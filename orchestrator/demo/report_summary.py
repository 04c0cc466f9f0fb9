"""summary.json, the promises that the demo checks on every seed, and mean and spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from orchestrator.demo.report_data import (
    Curve,
    Measured,
    MeasuredCurve,
    MethodRun,
    NotRun,
    ReportData,
    SeedRun,
)

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (n - 1) of a figure over seeds, 0..1."""

    mean: Measured
    deviation: Measured


@dataclass(frozen=True)
class Check:
    """One promise on one seed: `value` beside its `limits`. `holds` is None when one of them was not measured."""

    seed: int
    value: Measured
    limits: tuple[tuple[str, Measured], ...]
    holds: bool | None


@dataclass(frozen=True)
class Promise:
    """What the certified upgrade must keep on each seed; `sign` stands between value and limits."""

    key: str
    text: str
    sign: str
    checks: tuple[Check, ...]

    @property
    def holds(self) -> bool | None:
        """False when a seed breaks it, None when no seed does but one was not measured."""
        verdicts = {check.holds for check in self.checks}
        return False if False in verdicts else None if None in verdicts else True


def over_seeds(values: Sequence[Measured]) -> Spread:
    """Mean and spread of one figure; not run as soon as one seed lacks it, no spread of a single seed."""
    missing = next((value for value in values if isinstance(value, NotRun)), None)
    if missing is not None:
        return Spread(missing, missing)
    numbers = [value for value in values if not isinstance(value, NotRun)]
    deviation: Measured = statistics.stdev(numbers) if len(numbers) > 1 else NotRun("one seed has no spread")
    return Spread(statistics.fmean(numbers), deviation)


def upgrade_over_seeds(data: ReportData, figure: Callable[[MethodRun], Measured]) -> Spread:
    """Mean and spread of a figure of the certified upgrade."""
    return over_seeds([figure(seed.method(data.certified_upgrade)) for seed in data.seeds])


def promises(data: ReportData) -> tuple[Promise, ...]:
    """The four promises of the certified upgrade, checked on every seed."""

    def each(one: Callable[[SeedRun, MethodRun], Check]) -> tuple[Check, ...]:
        return tuple(one(seed, seed.method(data.certified_upgrade)) for seed in data.seeds)

    return (
        Promise(
            "starts_no_worse",
            "Before anything is re-embedded, the new model finds at least as much as the old system",
            "≥",
            each(lambda seed, run: _at_least(seed, run.new_old, (("old system", seed.old_old),))),
        ),
        Promise(
            "never_below",
            "At no moment of the refresh does recall fall below the old system",
            "≥",
            each(lambda seed, run: _at_least(seed, run.lowest, (("old system", seed.old_old),))),
        ),
        Promise(
            "order_pays",
            "Refreshing the most uncertain items first beats a random order (area under the curve)",
            ">",
            each(lambda seed, run: _above(seed, run.area, (("random", run.area_random),))),
        ),
        Promise(
            "fewer_negative_flips",
            "Fewer answers turn wrong on the way than with BCT or RACT alone (mean negative flip rate)",
            "<",
            each(lambda seed, run: _below(seed, run.mean_nfr, _mean_flips(seed))),
        ),
    )


def _mean_flips(seed: SeedRun) -> tuple[tuple[str, Measured], ...]:
    return tuple((run.title, run.mean_nfr) for run in (seed.method("bct"), seed.method("ract")))


def _check(
    seed: SeedRun,
    value: Measured,
    limits: tuple[tuple[str, Measured], ...],
    holds: Callable[[float, float], bool],
) -> Check:
    numbers = [limit for _, limit in limits if not isinstance(limit, NotRun)]
    if isinstance(value, NotRun) or len(numbers) < len(limits):
        return Check(seed.seed, value, limits, None)
    return Check(seed.seed, value, limits, all(holds(value, limit) for limit in numbers))


def _at_least(seed: SeedRun, value: Measured, limits: tuple[tuple[str, Measured], ...]) -> Check:
    return _check(seed, value, limits, lambda ours, limit: ours >= limit)


def _above(seed: SeedRun, value: Measured, limits: tuple[tuple[str, Measured], ...]) -> Check:
    return _check(seed, value, limits, lambda ours, limit: ours > limit)


def _below(seed: SeedRun, value: Measured, limits: tuple[tuple[str, Measured], ...]) -> Check:
    return _check(seed, value, limits, lambda ours, limit: ours < limit)


def summary(data: ReportData) -> dict[str, Any]:
    """The document of summary.json: plain values, null where something did not run.

    `metrics` is of the seed that was rolled out for real; `seeds` has every seed, mean and spread. The reason of each
    null is in `not_run`, by its dotted path.
    """
    killed = data.rollout.killed_worker
    tree: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "certified_upgrade": data.certified_upgrade,
        "metrics": _metrics(data.first),
        "independent": {"certified": data.first.method("independent").certified},
        "first_answer_s": data.rollout.first_answer_s,
        "throughput_per_s": data.rollout.throughput_per_s,
        "adapter_rate_per_s": data.rollout.adapter_rate_per_s,
        "killed_worker": {
            "lost": killed if isinstance(killed, NotRun) else killed.lost,
            "duplicated": killed if isinstance(killed, NotRun) else killed.duplicated,
        },
        "items": data.items,
        "classes": data.classes,
        "queries": data.queries,
        "seconds": data.seconds,
        "seeds": _seeds(data),
        "promises": {promise.key: promise.holds for promise in promises(data)},
        "text": _text(data),
        "machine": asdict(data.machine),
        "versions": dict(data.versions),
    }
    not_run: dict[str, str] = {}
    plain = _plain(tree, "", not_run)
    return {**plain, "not_run": not_run}


def _metrics(seed: SeedRun) -> dict[str, Any]:
    return {"old_old": seed.old_old, **{run.name: _method(run) for run in seed.methods}}


def _method(run: MethodRun) -> dict[str, Any]:
    return {
        "certified": run.certified,
        "new_old": run.new_old,
        "new_new": run.new_new,
        "curve": _points(run.curve),
        "nfr_curve": _points(run.nfr_curve),
        "area": run.area,
        "area_random": run.area_random,
        "normalised_area": run.normalised_area,
    }


def _seeds(data: ReportData) -> dict[str, Any]:
    old_old = over_seeds([seed.old_old for seed in data.seeds])
    spreads = {name: _spreads(data, name) for name in (run.name for run in data.first.methods)}
    return {
        "asked": data.seeds_asked,
        "run": len(data.seeds),
        "reason": data.fewer_seeds_reason,
        "spread_is": "sample standard deviation",
        "runs": [{"seed": seed.seed, "metrics": _metrics(seed)} for seed in data.seeds],
        "mean": {
            "old_old": old_old.mean,
            **{name: {key: spread.mean for key, spread in of.items()} for name, of in spreads.items()},
        },
        "spread": {
            "old_old": old_old.deviation,
            **{name: {key: spread.deviation for key, spread in of.items()} for name, of in spreads.items()},
        },
    }


def _spreads(data: ReportData, name: str) -> dict[str, Spread]:
    runs = [seed.method(name) for seed in data.seeds]
    figures: dict[str, Callable[[MethodRun], Measured]] = {
        "new_old": lambda run: run.new_old,
        "new_new": lambda run: run.new_new,
        "lowest": lambda run: run.lowest,
        "mean_nfr": lambda run: run.mean_nfr,
        "area": lambda run: run.area,
        "area_random": lambda run: run.area_random,
        "normalised_area": lambda run: run.normalised_area,
    }
    return {key: over_seeds([figure(run) for run in runs]) for key, figure in figures.items()}


def _text(data: ReportData) -> Any:
    story = data.text
    if isinstance(story, NotRun):
        return story
    return {
        "gallery": story.gallery,
        "items": story.items,
        "certified": story.certified,
        "old_old": story.old_old,
        "new_old": story.new_old,
        "new_old_without_adapter": story.new_old_without_adapter,
        "new_new": story.new_new,
        "curve": _points(story.curve),
        "nfr_curve": _points(story.nfr_curve),
        "seconds": story.seconds,
    }


def _points(curve: MeasuredCurve) -> list[dict[str, float]] | NotRun:
    return curve if isinstance(curve, NotRun) else _as_dicts(curve)


def _as_dicts(curve: Curve) -> list[dict[str, float]]:
    return [{"coverage": point.coverage, "value": point.value} for point in curve]


def _plain(value: Any, path: str, not_run: dict[str, str]) -> Any:
    """The tree with None for each `NotRun`, whose reason goes into `not_run`."""
    if isinstance(value, NotRun):
        not_run[path] = value.reason
        return None
    if isinstance(value, dict):
        return {key: _plain(item, f"{path}.{key}" if path else key, not_run) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, f"{path}.{place}", not_run) for place, item in enumerate(value)]
    return value
