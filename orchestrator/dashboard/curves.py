"""The charts of a rollout: recall as it was measured against what other orders would give, and open flips by cause. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from orchestrator.dashboard.charts import Chart, Series, line_chart
from orchestrator.dashboard.words import decimal, percent

Row = dict[str, Any]
CAUSES = {"mixed_stage": "mixed stage", "model": "the new model", "quantisation": "the codec"}


def recall_charts(measured: Sequence[Row], others: Sequence[Row], order: str) -> list[Chart]:
    """A chart for each query set and k.

    Args:
        measured: rows of `measured_points`, in their order.
        others: rows of `refresh_curve` of simulated orders.
        order: the order in which the rollout re-embeds.
    """
    charts = []
    sets = {row["queryset"] for row in measured}
    for (queryset, k), group in groupby(measured, key=lambda row: (row["queryset"], row["k"])):
        rows = [row for row in group if row["recall"] is not None and row["coverage"] is not None]
        if not rows:
            continue
        old = rows[-1]["old_recall"]
        series = [
            Series(f"measured, order {order}", "measured", _points(rows, "recall"), stepped=True),
            *_simulated(others, f"recall_at_{k}", queryset if len(sets) > 1 else None),
            Series("old system", "old", [(0.0, old), (1.0, old)]),
        ]
        now = rows[-1]
        summary = (
            f"Recall at {k} on {queryset}: {decimal(now['recall'])} at {percent(now['coverage'])} of the gallery, "
            f"{decimal(rows[0]['recall'])} at the start; the old system had {decimal(old)}."
        )
        charts.append(line_chart(f"Recall at {k} on {queryset}", summary, f"recall at {k}", series))
    return charts


def _points(rows: Sequence[Row], column: str) -> list[tuple[float, float]]:
    return [(float(row["coverage"]), float(row[column])) for row in rows]


def _simulated(others: Sequence[Row], metric: str, queryset: str | None) -> list[Series]:
    """`queryset`: only curves that say they are of this one; None where there is but one."""
    of_metric = [row for row in others if row["metric"] == metric and queryset in (None, row.get("queryset"))]
    return [
        Series(
            f"simulated, order {name}",
            "random" if name == "random" else "other",
            _points(sorted(group, key=lambda row: row["coverage"]), "value"),
        )
        for name, group in groupby(
            sorted(of_metric, key=lambda row: str(row["against_order"])),
            key=lambda row: str(row["against_order"]),
        )
    ]


def open_by_cause(
    points: Sequence[Row], changes: Sequence[Row], seqs: Sequence[int]
) -> dict[str, list[tuple[float, float]]]:
    """Cause → (coverage, open negative flips) at each of a query set's points.

    Args:
        points: its rows of `measured_points`, rising.
        changes: its rows of `flips_by_cause`, whose places count in `seqs`.
    """
    found = {}
    for cause in CAUSES:
        of_cause = {int(row["place"]): int(row["change"]) for row in changes if row["cause"] == cause}
        counts, open_now = {}, 0
        for place, seq in enumerate(seqs):
            open_now += of_cause.get(place, 0)
            counts[seq] = open_now
        found[cause] = [(float(row["coverage"]), float(counts[row["seq"]])) for row in points]
    return found


def cause_charts(measured: Sequence[Row], changes: Sequence[Row]) -> list[Chart]:
    """A chart for each query set: open negative flips against the old system at k = 1, by cause as it is known now."""
    at_one = [row for row in measured if row["k"] == 1]
    seqs = sorted({row["seq"] for row in at_one})
    charts = []
    for queryset, group in groupby(at_one, key=lambda row: row["queryset"]):
        points = [row for row in group if row["coverage"] is not None]
        if not points:
            continue
        counts = open_by_cause(points, [row for row in changes if row["queryset"] == queryset], seqs)
        settled = "quantisation" if any(row["cause"] == "quantisation" for row in changes) else "model"
        series = [
            Series(CAUSES[cause], cause.replace("_", "-"), counts[cause], stepped=True)
            for cause in ("mixed_stage", settled)
        ]
        now = {cause: int(counts[cause][-1][1]) for cause in CAUSES}
        summary = (
            f"Open negative flips on {queryset}: {now['mixed_stage']} of a mixed stage, which the rest of the refresh may "
            f"heal, and {now[settled]} of {CAUSES[settled]}."
        )
        charts.append(
            line_chart(f"Open negative flips on {queryset}", summary, "queries", series, whole_numbers=True)
        )
    return charts


def threshold_charts(rows: Sequence[Row]) -> list[Chart]:
    """For each query set and kind of scores: the score at 90 % precision, and who is lost and gained at the old system's.

    Args:
        rows: of `match_threshold` of one rollout, in the view's order.
    """
    charts = []
    served_first = sorted(rows, key=lambda row: (row["queryset"], row["scores"] != "served"))
    for (queryset, scores), group in groupby(served_first, key=lambda row: (row["queryset"], row["scores"])):
        points = [row for row in group if row["coverage"] is not None]
        reached = [row for row in points if row["threshold"] is not None]
        if reached:
            charts.append(_threshold_chart(queryset, reached, scores))
        if points and points[0]["old_threshold"] is not None:
            charts.append(_matching_flips(queryset, points, scores))
    return charts


def _by(scores: str, rows: Sequence[Row]) -> tuple[str, str]:
    """What the title and the summary say of scores that are not those that are served."""
    if scores == "served":
        return "", ""
    row = rows[-1]
    return ", adjusted scores", (
        f" Scores are less {row['beta']:g} times the query's {row['neighbour']}th best among {row['background_n']} items of the "
        "background set in the version of the item."
    )


def _threshold_chart(queryset: str, rows: Sequence[Row], scores: str) -> Chart:
    old, now = rows[0]["old_threshold"], rows[-1]
    title, said = _by(scores, rows)
    series = [Series("threshold", "measured", _points(rows, "threshold"), stepped=True)]
    before = "it reached no such precision"
    if old is not None:
        series.append(Series("old system", "old", [(0.0, old), (1.0, old)]))
        before = f"{decimal(old)}, which found {percent(now['old_recall_at_p90'])}"
    summary = (
        f"Of the first answers on {queryset} that score at least {decimal(now['threshold'])}, 90 % are right at "
        f"{percent(now['coverage'])} of the gallery; they are {percent(now['recall_at_p90'])} of all there are to find. The "
        f"old system: {before}.{said}"
    )
    return line_chart(
        f"Threshold at 90 % precision on {queryset}{title}", summary, "score", series, ratios=False
    )


def _matching_flips(queryset: str, rows: Sequence[Row], scores: str) -> Chart:
    now = rows[-1]
    title, said = _by(scores, rows)
    series = [
        Series("lost", "model", _points(rows, "lost"), stepped=True),
        Series("gained", "measured", _points(rows, "gained"), stepped=True),
    ]
    summary = (
        f"Matching flips on {queryset}, accepted at the old system's threshold of {decimal(now['old_threshold'])}: {now['lost']} "
        f"right answers are no longer accepted, {now['gained']} are only now; {now['accepted_right']} of {now['accepted']} "
        f"accepted answers are right.{said}"
    )
    return line_chart(f"Matching flips on {queryset}{title}", summary, "queries", series, whole_numbers=True)


def in_order(
    recall: Sequence[Chart], causes: Sequence[Chart], thresholds: Sequence[Chart] = ()
) -> list[tuple[str, Chart]]:
    """(an id of its own, the chart) as a page shows them: a first recall, then who is hurt, then the rest."""
    named = [[(f"{name}-{n}", chart) for n, chart in enumerate(charts, 1)]
             for name, charts in (("recall", recall), ("cause", causes), ("threshold", thresholds))]  # fmt: skip
    return [*named[0][:1], *named[1], *named[2], *named[0][1:]]
