"""Metrics for Prometheus, out of the reporting views and this process's replicas; bounded labels, never an item."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator import __version__
from orchestrator.api.replicas import Replicas
from orchestrator.context import Context
from orchestrator.errors import HotrefreshError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries.reporting import read_view

# One set of statements serves all scrapes of this time.
KEPT_S = 1.0
# Rollouts shown: the newest; a scrape must not grow with history.
ROLLOUTS = 100
SEARCH_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
Row = dict[str, Any]


class LedgerCollector(Collector):
    """Reads the views at a scrape, at most once a second; without the ledger its metrics are absent, not zero."""

    def __init__(self, context: Context, replicas: Replicas) -> None:
        self._context = context
        self._replicas = replicas
        self._kept: list[Metric] = []
        self._read_at = float("-inf")

    def describe(self) -> Iterator[Metric]:
        """Nothing: what there is depends on the ledger."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """All metrics but those of searches."""
        if time.monotonic() - self._read_at > KEPT_S:
            try:
                self._kept = self._read()
            except HotrefreshError:
                self._kept = []
            self._read_at = time.monotonic()
        yield InfoMetricFamily("hotrefresh_build", "This release", {"version": __version__})
        yield from self._kept

    def _read(self) -> list[Metric]:
        with transaction(self._context.engine) as connection:
            views = {
                name: read_view(connection, name, limit=ROLLOUTS)
                for name in ("rollout_status", "worker_health", "coverage_by_model", "gate_decisions")
            }
            queue = read_view(connection, "queue_status", limit=10 * ROLLOUTS)
            flips = [
                row
                for status in views["rollout_status"][:10]
                for row in read_view(connection, "flip_summary", newest=True, rollout=status["id"])
            ]
        lag = GaugeMetricFamily(
            "hotrefresh_replica_lag_batches", "Log entries not applied", labels=["gallery"]
        )
        for gallery, entries in self._replicas.lags().items():
            lag.add_metric([gallery], entries)
        return [
            *rollout_metrics(views["rollout_status"]),
            *queue_metrics(queue),
            *worker_metrics(views["worker_health"]),
            *coverage_metrics(views["coverage_by_model"]),
            *flip_metrics(flips),
            *gate_metrics(views["gate_decisions"]),
            lag,
        ]


def rollout_metrics(rows: list[Row]) -> list[Metric]:
    """Of `rollout_status`."""
    items = GaugeMetricFamily("hotrefresh_items", "Items of a rollout by state", labels=["rollout", "state"])
    done = CounterMetricFamily("hotrefresh_items_processed", "Items done", labels=["rollout", "outcome"])
    info = InfoMetricFamily(
        "hotrefresh_rollout", "What a rollout does", labels=["rollout", "state", "from", "to"]
    )
    active = GaugeMetricFamily(
        "hotrefresh_rollout_active_seconds", "Time since the start", labels=["rollout"]
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
        active.add_metric([rollout], (datetime.now(UTC) - row["started_at"]).total_seconds())
        paused.add_metric([rollout], row["paused_s"])
        if row["throttle_reason"] is not None:
            throttled.add_metric([rollout, row["throttle_reason"]], 1)
    return [items, done, info, active, paused, throttled]


def queue_metrics(rows: list[Row]) -> list[Metric]:
    """Of `queue_status`, the rollouts of a band together."""
    depth = GaugeMetricFamily("hotrefresh_queue_depth", "Batches that wait", labels=["band"])
    bands: dict[str, float] = {}
    for row in rows:
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


def flip_metrics(rows: list[Row]) -> list[Metric]:
    """Of `flip_summary`, the newest of each query set."""
    flips = GaugeMetricFamily(
        "hotrefresh_flips", "Queries that flipped against the old system", labels=["queryset", "direction"]
    )
    nfr = GaugeMetricFamily(
        "hotrefresh_negative_flip_ratio", "Negative flips of queries", labels=["queryset"]
    )
    count = GaugeMetricFamily("hotrefresh_negative_flip_ratio_count", "Queries counted", labels=["queryset"])
    seen: set[str] = set()
    for row in rows:  # newest rollout first
        name = f"{row['gallery']}/{row['queryset']}"
        if name in seen or row["nfr"] is None:
            continue
        seen.add(name)
        flips.add_metric([name, "negative"], row["negative_flips"])
        flips.add_metric([name, "positive"], row["positive_flips"])
        nfr.add_metric([name], row["nfr"])
        count.add_metric([name], row["n"])
    return [flips, nfr, count]


def gate_metrics(rows: list[Row]) -> list[Metric]:
    """Of `gate_decisions`: 1 passed, 0 inconclusive, -1 failed; absent while no gate was judged."""
    state = GaugeMetricFamily("hotrefresh_gate_state", "A gate's last decision", labels=["rollout", "gate"])
    values = {"pass": 1.0, "inconclusive": 0.0, "fail": -1.0}
    newest = {(str(row["rollout"]), row["gate"]): values[row["result"]] for row in rows}
    for (rollout, gate), value in newest.items():
        state.add_metric([rollout, gate], value)
    return [state]


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
