"""Metrics for Prometheus, out of the reporting views and this process's replicas; bounded labels, never an item."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator import __version__
from orchestrator.api.log import log
from orchestrator.api.replicas import Replicas
from orchestrator.api.timings import BatchTimings
from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import metrics as metric_queries
from orchestrator.ledger.queries.reporting import read_view

# One set of statements serves all scrapes of this time.
KEPT_S = 1.0
# Rollouts shown at most: those that go on, and each gallery's newest; a scrape must not grow with history.
ROLLOUTS = 500
SERVED = {"deployed", "backfilling", "paused", "finalizable", "finalized"}
OVER = {"finalized", "superseded", "cancelled", "rolled_back", "failed"}
SEARCH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
Row = dict[str, Any]


class LedgerCollector(Collector):
    """Reads the views at a scrape, at most once a second; without the ledger its metrics are absent, not zero."""

    def __init__(self, context: Context, replicas: Replicas) -> None:
        self._context = context
        self._replicas = replicas
        self._timings = BatchTimings()
        self._lock = threading.Lock()
        self._kept: list[Metric] = []
        self._read_at = float("-inf")

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is depends on the ledger."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All metrics but those of searches."""
        with self._lock:
            if time.monotonic() - self._read_at > KEPT_S:
                try:
                    self._kept = self._read()
                except Exception as error:  # noqa: BLE001 - a scrape is answered with what there is
                    self._kept = []
                    log("scrape.failed", level="warning", message=str(error).partition("\n")[0])
                self._read_at = time.monotonic()
            kept = self._kept
        yield InfoMetricFamily("hotrefresh_build", "This release", {"version": __version__})
        yield from kept

    def _read(self) -> list[Metric]:
        with transaction(self._context.engine) as connection:
            rollouts = metric_queries.rollouts_shown(connection, ROLLOUTS)
            ids = [row["id"] for row in rollouts]
            upgrades = [row["id"] for row in rollouts if row["kind"] == "upgrade" and row["state"] in SERVED]
            ledger = [
                *rollout_metrics(rollouts, datetime.now(UTC)),
                *queue_metrics(metric_queries.queues_shown(connection, ids)),
                lease_metric(metric_queries.lease_expiries(connection, ids)),
                window_metric(metric_queries.rollback_windows(connection)),
                *worker_metrics(read_view(connection, "worker_health", live=True)),
                *coverage_metrics(read_view(connection, "coverage_by_model")),
                *flip_metrics(
                    metric_queries.flips_opened(connection, upgrades),
                    metric_queries.newest_evaluations(connection, upgrades),
                ),
                *gate_metrics(metric_queries.newest_decisions(connection, ids)),
                *churn_metrics(
                    metric_queries.newest_churn(connection, upgrades),
                    metric_queries.newest_clicks(connection, upgrades),
                ),
            ]
            self._timings.read(connection)
        return [*ledger, self._timings.family(), *self._replica_metrics()]

    def _replica_metrics(self) -> list[Metric]:
        ages, refusals = self._replicas.ages(), self._replicas.refusals()
        snapshots = snapshot_metric(self._replicas.snapshot_ages())
        return [lag_metric(self._replicas.lags()), age_metric(ages), snapshots, refused_metric(refusals)]


def labelled(family: Metric, values: Mapping[str, float]) -> Metric:
    """A family of one label, with its values."""
    for label, value in values.items():
        family.add_metric([label], value)  # type: ignore[attr-defined]
    return family


def lag_metric(lags: dict[str, int]) -> Metric:
    """Of this process's replicas."""
    family = GaugeMetricFamily(
        "hotrefresh_replica_lag_batches", "Log entries not applied", labels=["gallery"]
    )
    return labelled(family, lags)


def age_metric(ages: dict[str, float]) -> Metric:
    """Of this process's replicas."""
    family = GaugeMetricFamily(
        "hotrefresh_replica_lag_seconds",
        "Since the oldest log entry that is not applied was committed",
        labels=["gallery"],
    )
    return labelled(family, ages)


def snapshot_metric(ages: dict[str, float]) -> Metric:
    """Of this process's replicas; absent where there is no snapshot."""
    family = GaugeMetricFamily(
        "hotrefresh_replica_snapshot_age_seconds",
        "Since the first log entry that is not in the snapshot was committed",
        labels=["gallery"],
    )
    return labelled(family, ages)


def refused_metric(refusals: dict[str, str | None]) -> Metric:
    """Of this process's replicas."""
    family = GaugeMetricFamily(
        "hotrefresh_replica_refused",
        "1 while searches are refused: a pair of models lacks its certificate",
        labels=["gallery"],
    )
    return labelled(family, {name: float(reason is not None) for name, reason in refusals.items()})


def rollout_metrics(rows: list[Row], now: datetime) -> list[Metric]:
    """Of `rollout_status`; rollouts that go on are active until `now`."""
    items = GaugeMetricFamily("hotrefresh_items", "Items of a rollout by state", labels=["rollout", "state"])
    done = CounterMetricFamily("hotrefresh_items_processed", "Items done", labels=["rollout", "outcome"])
    info = InfoMetricFamily(
        "hotrefresh_rollout", "What a rollout does", labels=["rollout", "state", "from", "to"]
    )
    active = GaugeMetricFamily(
        "hotrefresh_rollout_active_seconds", "Time since the start, not paused", labels=["rollout"]
    )
    paused = GaugeMetricFamily("hotrefresh_rollout_paused_seconds", "Time spent paused", labels=["rollout"])
    throttled = GaugeMetricFamily(
        "hotrefresh_throttle_active", "1 while claims are held back", labels=["rollout", "reason"]
    )
    for row in rows:
        rollout = str(row["id"])
        for state in ("pending", "leased", "committed", "quarantined"):
            items.add_metric([rollout, state], float(row[state]))
        for outcome in ("committed", "quarantined"):
            done.add_metric([rollout, outcome], float(row[outcome]))
        info.add_metric([rollout, row["state"], row["from_model"] or "", row["to_model"]], {})
        active.add_metric([rollout], _active_s(row, now))
        paused.add_metric([rollout], row["paused_s"])
        if row["throttle_reason"] is not None:
            throttled.add_metric([rollout, row["throttle_reason"]], 1)
    return [items, done, info, active, paused, throttled]


def _active_s(row: Row, now: datetime) -> float:
    """Seconds in which it could go on: until now, or until its last progress where it is over."""
    until: datetime = (row["last_progress_at"] or row["started_at"]) if row["state"] in OVER else now
    elapsed: float = (until - row["started_at"]).total_seconds() - float(row["paused_s"])
    return max(0.0, elapsed)


def queue_metrics(rows: list[Row]) -> list[Metric]:
    """Of `queue_status`, the rollouts of a band together."""
    depth = GaugeMetricFamily("hotrefresh_queue_depth", "Batches that wait", labels=["band"])
    bands: dict[str, float] = {}
    for row in rows:
        if row["queue_state"] == "idle":
            continue  # cancelled, rolled back, done: nobody will work on it
        bands[str(row["band"])] = bands.get(str(row["band"]), 0.0) + float(row["depth"])
    for band, batches in sorted(bands.items()):
        depth.add_metric([band], batches)
    oldest = GaugeMetricFamily(
        "hotrefresh_queue_oldest_age_seconds", "Since work last went on, where it waits"
    )
    waiting = [
        r["oldest_age_s"]
        for r in rows
        if r["oldest_age_s"] is not None and r["queue_state"] not in ("idle", "parked")
    ]
    oldest.add_metric([], max(waiting, default=0.0))
    return [depth, oldest]


def lease_metric(rows: list[Row]) -> Metric:
    """Batches whose worker was not heard of in time, and that another one got."""
    expired = CounterMetricFamily("hotrefresh_lease_expired", "Leases that ran out", labels=["rollout"])
    for row in rows:
        expired.add_metric([str(row["rollout"])], row["leases"])
    return expired


def window_metric(rows: list[Row]) -> Metric:
    """Absent where a rollout is not finalized, or can no longer go back whatever the time."""
    closes = GaugeMetricFamily(
        "hotrefresh_rollback_window_closes_timestamp_seconds",
        "Until then a finalized rollout can go back",
        labels=["rollout"],
    )
    for row in rows:
        closes.add_metric([str(row["rollout"])], row["closes_at"].timestamp())
    return closes


def worker_metrics(rows: list[Row]) -> list[Metric]:
    """Of `worker_health`: the workers that are not signed off long ago."""
    beat = GaugeMetricFamily(
        "hotrefresh_worker_last_heartbeat_timestamp_seconds", "A worker's last sign", labels=["worker"]
    )
    live = GaugeMetricFamily("hotrefresh_workers", "Workers with a fresh heartbeat")
    for row in rows:
        if row["live"]:
            beat.add_metric([row["worker"]], row["last_heartbeat"].timestamp())
    live.add_metric([], sum(bool(row["live"]) for row in rows))
    return [beat, live]


def coverage_metrics(rows: list[Row]) -> list[Metric]:
    """Of `coverage_by_model`."""
    ratio = GaugeMetricFamily("hotrefresh_coverage_ratio", "Share of a gallery", labels=["gallery", "model"])
    for row in rows:
        ratio.add_metric([row["gallery"], row["model"]], row["ratio"])
    return [ratio]


def flip_metrics(opened: list[Row], evaluations: list[Row]) -> list[Metric]:
    """Flips against the old system: those that were ever opened, and the share of queries flipped now."""
    flips = CounterMetricFamily(
        "hotrefresh_flips", "Queries that flipped, healed ones too", labels=["queryset", "direction"]
    )
    nfr = GaugeMetricFamily(
        "hotrefresh_negative_flip_ratio", "Negative flips of queries", labels=["queryset"]
    )
    count = GaugeMetricFamily("hotrefresh_negative_flip_ratio_count", "Queries counted", labels=["queryset"])
    for row in opened:
        flips.add_metric([_queryset(row), row["kind"]], row["count"])
    seen: set[str] = set()
    for row in evaluations:  # newest rollout first
        name = _queryset(row)
        if name in seen or not row["n"]:
            continue
        seen.add(name)
        nfr.add_metric([name], row["negative_flips"] / row["n"])
        count.add_metric([name], row["n"])
        for direction in ("negative", "positive"):
            if not any(_queryset(each) == name and each["kind"] == direction for each in opened):
                flips.add_metric([name, direction], 0)  # measured, and none: not the same as absent
    return [flips, nfr, count]


def _queryset(row: Row) -> str:
    """Query sets of different galleries may have one name."""
    return f"{row['gallery']}/{row['queryset']}"


def gate_metrics(rows: list[Row]) -> list[Metric]:
    """Of `gate_decisions`: 1 passed, 0 inconclusive, -1 failed; absent while no gate was judged, as is a missing value."""
    labels = ["rollout", "gate", "queryset"]
    state = GaugeMetricFamily("hotrefresh_gate_state", "A gate's last decision", labels=labels)
    value = GaugeMetricFamily("hotrefresh_gate_value", "What it decided from", labels=labels)
    limit = GaugeMetricFamily("hotrefresh_gate_limit", "Above it the gate fails", labels=labels)
    answers = {"pass": 1.0, "inconclusive": 0.0, "fail": -1.0}
    for row in rows:
        gate = [str(row["rollout"]), row["gate"], row["queryset"]]
        state.add_metric(gate, answers[row["result"]])
        for metric, number in ((value, row["value"]), (limit, row["limit"])):
            if number is not None:
                metric.add_metric(gate, number)
    return [state, value, limit]


def churn_metrics(churn: list[Row], clicks: list[Row]) -> list[Metric]:
    """Query sets beside the old system: answers in common, clicked items lost. Absent where nothing is compared."""
    labels = ["queryset"]
    overlap = GaugeMetricFamily(
        "hotrefresh_overlap_ratio", "First answers as in the old system", labels=labels
    )
    rbo = GaugeMetricFamily("hotrefresh_rbo_ratio", "Rank-biased overlap with the old system", labels=labels)
    lost = GaugeMetricFamily(
        "hotrefresh_click_loss_ratio",
        "Queries whose clicked item is no longer the first answer",
        labels=labels,
    )
    count = GaugeMetricFamily("hotrefresh_click_loss_ratio_count", "Queries with clicks", labels=labels)
    for row in _newest_first(churn):
        overlap.add_metric([_queryset(row)], row["overlap"])
        rbo.add_metric([_queryset(row)], row["rbo"])
    for row in _newest_first(clicks):
        lost.add_metric([_queryset(row)], row["click_losses"] / row["n"])
        count.add_metric([_queryset(row)], row["n"])
    return [overlap, rbo, lost, count]


def _newest_first(rows: list[Row]) -> Iterator[Row]:
    """Of each query set the row of its newest rollout that compared anything; they come newest rollout first."""
    seen: set[str] = set()
    for row in rows:
        if row["n"] and _queryset(row) not in seen:
            seen.add(_queryset(row))
            yield row


def make_registry(context: Context, replicas: Replicas) -> tuple[CollectorRegistry, Histogram]:
    """The process's metrics, and the histogram that searches are timed with."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(context, replicas))
    searches = Histogram(
        "hotrefresh_search_duration_seconds",
        "Time to answer a search",
        buckets=SEARCH_BUCKETS,
        registry=registry,
    )
    return registry, searches
