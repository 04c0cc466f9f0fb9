"""From what the jobs measured to figures with intervals over the seeds."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.upgrades.job import Job, result_of
from orchestrator.core.curves import coverage_of_gain, largest_drop, share_below
from orchestrator.core.simulate import mean_of_states, normalised_area, trapezoid_area

# Student's t, two-sided 95 %, by degrees of freedom.
_T95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
_GAIN = 0.9


@dataclass(frozen=True)
class Figure:
    """One metric of one arm, in one order where it depends on it; None for a seed in which it is undefined."""

    data: str
    split: str
    arm: str
    order: str
    metric: str
    values: tuple[float | None, ...]

    @property
    def known(self) -> list[float]:
        """The values of the seeds in which it is defined."""
        return [value for value in self.values if value is not None]

    @property
    def mean(self) -> float | None:
        """Over the seeds; None when one of them has no value: a mean of the lucky ones would flatter."""
        return statistics.fmean(self.known) if self.values and None not in self.values else None

    @property
    def half_width(self) -> float | None:
        """Of the 95 % interval of the mean (Student's t over seeds); None under two seeds."""
        if self.mean is None or len(self.known) < 2:
            return None
        return _T95[len(self.known) - 1] * statistics.stdev(self.known) / math.sqrt(len(self.known))


def metrics_of(result: Mapping[str, Any], best_best: float) -> dict[tuple[str, str], float | None]:
    """(order, metric) -> value of one arm and seed; order "" for what needs none.

    `best_best` is M(new, new) of the model that was trained without any compatibility term.
    """
    old_old, new_old, new_new = result["old_old"], result["new_old"], result["new_new"]
    found: dict[tuple[str, str], float | None] = {
        ("", "old_old"): old_old,
        ("", "new_old"): new_old,
        ("", "new_new"): new_new,
        ("", "tax"): best_best - new_new,
        ("", "update_gain"): (new_old - old_old) / (best_best - old_old) if best_best > old_old else None,
        ("", "start_nfr"): result["start_nfr"],
    }
    for order, curves in result["orders"].items():
        each = [_along(curve, old_old, new_new) for curve in curves]
        for metric in each[0]:
            values = [one[metric] for one in each]
            found[order, metric] = (
                None if None in values else statistics.fmean(v for v in values if v is not None)
            )
    return found | _calibrated(result)


_OF_CALIBRATION = ("area", "lowest", "lowest_over_old", "mean_nfr", "max_nfr")


def _calibrated(result: Mapping[str, Any]) -> dict[tuple[str, str], float | None]:
    """The same of calibrated scores, on queries the maps were not fitted on, and what a guard costs and brings."""
    calibration = result.get("calibration")
    if calibration is None:
        return {}
    found: dict[tuple[str, str], float | None] = {("", "calibration_pays"): float(calibration["pays"])}
    for order, curves in calibration["orders"].items():
        each = [_along(curve, result["old_old"], result["new_new"]) for curve in curves]
        for metric in _OF_CALIBRATION:
            values = [one[metric] for one in each]
            found[order, f"calibrated_{metric}"] = (
                None if None in values else statistics.fmean(v for v in values if v is not None)
            )
    for scores, guard in (calibration["guard"] or {}).items():
        for metric in ("share", "covered", "healed", "broken"):
            found["", f"guard_{scores}_{metric}"] = guard[metric]
        for metric in ("nfr", "recall"):
            found["", f"guard_{scores}_{metric}_before"], found["", f"guard_{scores}_{metric}"] = guard[
                metric
            ]
    return found


def _along(curve: Mapping[str, Sequence[float]], old_old: float, new_new: float) -> dict[str, float | None]:
    """The metrics of one refresh curve; coverage_90 is undefined where the new model gains nothing."""
    coverage, recall = curve["coverage"], curve["recall"]
    gains = new_new > old_old
    return {
        "area": normalised_area(trapezoid_area(coverage, recall), old_old, new_new) if gains else None,
        "area_22_states": normalised_area(mean_of_states(recall), old_old, new_new) if gains else None,
        "coverage_90": coverage_of_gain(coverage, recall, _GAIN, old_old, new_new),
        "lowest": min(recall),
        "lowest_over_old": min(recall) - old_old,
        "share_below_old": share_below(coverage, recall, old_old),
        "largest_drop": largest_drop(recall),
        "mean_nfr": statistics.fmean(curve["nfr"]),
        "max_nfr": max(curve["nfr"]),
        "mean_nfr_previous": statistics.fmean(curve["nfr_previous"][1:]),
        "max_nfr_previous": max(curve["nfr_previous"]),
    }


def summarise(jobs: Iterable[Job]) -> list[Figure]:
    """One figure for every arm (or chain), order and metric of the measured jobs, in their order."""
    values: dict[tuple[str, str, str], dict[tuple[str, str], list[float | None]]] = {}
    for job in (each for each in jobs if each.kind in ("arm", "chain")):
        place = values.setdefault((job.data, job.split, job.name), {})
        for key, value in _measured(job).items():
            place.setdefault(key, []).append(value)
    return [
        Figure(*where, order, metric, tuple(each))
        for where, found in values.items()
        for (order, metric), each in found.items()
    ]


def _measured(job: Job) -> dict[tuple[str, str], float | None]:
    result = result_of(job)
    if job.kind == "chain":
        return {("", metric): value for metric, value in result.items() if metric != "seconds"}
    return metrics_of(result, result_of(job.beside("arm-independent"))["new_new"])


def write_csv(path: Path, figures: Sequence[Figure]) -> None:
    """One line a figure: mean, half width of the 95 % interval, and the value of each seed; empty where undefined."""
    seeds = max((len(figure.values) for figure in figures), default=0)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(
            [
                "data",
                "split",
                "arm",
                "order",
                "metric",
                "mean",
                "half_width_95",
                *(f"seed_{n}" for n in range(seeds)),
            ]
        )
        for figure in figures:
            numbers = [figure.mean, figure.half_width, *figure.values]
            writer.writerow(
                [figure.data, figure.split, figure.arm, figure.order, figure.metric]
                + ["" if number is None else f"{number:.5f}" for number in numbers]
            )
