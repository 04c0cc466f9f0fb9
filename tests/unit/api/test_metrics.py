"""The contract with Prometheus: names, types, labels, and what a number means."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from orchestrator.api import metrics
from orchestrator.api.timings import BUCKETS, BatchTimings
from orchestrator.api.traffic_metrics import traffic_metrics

CONTRACT = {
    "hotrefresh_items": ("gauge", {"rollout", "state"}),
    "hotrefresh_items_processed": ("counter", {"rollout", "outcome"}),
    "hotrefresh_coverage_ratio": ("gauge", {"gallery", "model"}),
    "hotrefresh_queue_depth": ("gauge", {"band"}),
    "hotrefresh_queue_oldest_age_seconds": ("gauge", set()),
    "hotrefresh_batch_duration_seconds": ("histogram", {"stage", "le"}),
    "hotrefresh_lease_expired": ("counter", {"rollout"}),
    "hotrefresh_rollback_window_closes_timestamp_seconds": ("gauge", {"rollout"}),
    "hotrefresh_throttle_active": ("gauge", {"rollout", "reason"}),
    "hotrefresh_flips": ("counter", {"queryset", "direction"}),
    "hotrefresh_negative_flip_ratio": ("gauge", {"queryset"}),
    "hotrefresh_negative_flip_ratio_count": ("gauge", {"queryset"}),
    "hotrefresh_gate_state": ("gauge", {"rollout", "gate", "queryset"}),
    "hotrefresh_gate_value": ("gauge", {"rollout", "gate", "queryset"}),
    "hotrefresh_gate_limit": ("gauge", {"rollout", "gate", "queryset"}),
    "hotrefresh_overlap_ratio": ("gauge", {"queryset"}),
    "hotrefresh_rbo_ratio": ("gauge", {"queryset"}),
    "hotrefresh_click_loss_ratio": ("gauge", {"queryset"}),
    "hotrefresh_click_loss_ratio_count": ("gauge", {"queryset"}),
    "hotrefresh_rollout": ("info", {"rollout", "state", "from", "to"}),
    "hotrefresh_rollout_active_seconds": ("gauge", {"rollout"}),
    "hotrefresh_rollout_paused_seconds": ("gauge", {"rollout"}),
    "hotrefresh_workers": ("gauge", set()),
    "hotrefresh_worker_last_heartbeat_timestamp_seconds": ("gauge", {"worker"}),
    "hotrefresh_replica_lag_batches": ("gauge", {"gallery"}),
    "hotrefresh_canary_answers": ("counter", {"system"}),
    "hotrefresh_shadow_queries": ("counter", {"outcome"}),
    "hotrefresh_canary_percent": ("gauge", {"gallery"}),
    "hotrefresh_replica_lag_seconds": ("gauge", {"gallery"}),
    "hotrefresh_replica_snapshot_age_seconds": ("gauge", {"gallery"}),
    "hotrefresh_replica_refused": ("gauge", {"gallery"}),
}
NOW = datetime.now(UTC)
ROLLOUT = {
    "id": 7, "state": "backfilling", "from_model": "old", "to_model": "new", "pending": 5, "leased": 2, "committed": 90,
    "quarantined": 3, "started_at": NOW - timedelta(seconds=100), "last_progress_at": NOW - timedelta(seconds=60),
    "paused_s": 30.0, "throttle_reason": "latency",
}  # fmt: skip
QUEUE = [
    {"band": 0, "depth": 4, "oldest_age_s": 9.0, "queue_state": "active"},
    {"band": 0, "depth": 2, "oldest_age_s": 99.0, "queue_state": "parked"},
    {"band": 1, "depth": 8, "oldest_age_s": 999.0, "queue_state": "idle"},
]
WORKERS = [
    {"worker": "host-1", "live": True, "last_heartbeat": NOW},
    {"worker": "host-0", "live": False, "last_heartbeat": NOW - timedelta(days=1)},
]
OPENED = [{"gallery": "pics", "queryset": "asked", "kind": "negative", "count": 6}]
EVALUATIONS = [
    {"rollout": 7, "gallery": "pics", "queryset": "asked", "n": 200, "negative_flips": 4},
    {"rollout": 7, "gallery": "texts", "queryset": "asked", "n": 50, "negative_flips": 0},
    {"rollout": 3, "gallery": "pics", "queryset": "asked", "n": 200, "negative_flips": 100},
    {"rollout": 7, "gallery": "pics", "queryset": "empty", "n": 0, "negative_flips": 0},
]
DECISIONS = [
    {"rollout": 7, "gate": "nfr", "queryset": "a", "result": "inconclusive", "value": None, "limit": 0.05},
    {"rollout": 7, "gate": "nfr", "queryset": "b", "result": "fail", "value": 0.08, "limit": 0.05},
]
CHURN = [
    {"rollout": 7, "gallery": "pics", "queryset": "logged", "n": 50, "overlap": 0.75, "rbo": 0.8},
    {"rollout": 7, "gallery": "pics", "queryset": "unread", "n": 0, "overlap": None, "rbo": None},
    {"rollout": 3, "gallery": "pics", "queryset": "logged", "n": 50, "overlap": 0.1, "rbo": 0.1},
]
CLICKS = [
    {"rollout": 7, "gallery": "pics", "queryset": "clicked", "n": 40, "click_losses": 2},
    {"rollout": 7, "gallery": "pics", "queryset": "empty", "n": 0, "click_losses": 0},
]


def families():
    return [
        *metrics.rollout_metrics([ROLLOUT], NOW),
        *metrics.queue_metrics(QUEUE),
        metrics.lease_metric([{"rollout": 7, "leases": 2}]),
        metrics.window_metric([{"rollout": 6, "closes_at": NOW}]),
        *metrics.worker_metrics(WORKERS),
        *metrics.coverage_metrics([{"gallery": "pics", "model": "new", "ratio": 0.5}]),
        *metrics.flip_metrics(OPENED, EVALUATIONS),
        *metrics.gate_metrics(DECISIONS),
        *metrics.churn_metrics(CHURN, CLICKS),
        metrics.lag_metric({"pics": 3}),
        *traffic_metrics({"old": 9, "new": 1}, {"compared": 4, "dropped": 1, "failed": 0}, {"pics": 10.0}),
        metrics.age_metric({"pics": 1.5}),
        metrics.snapshot_metric({"pics": 700.0}),
        metrics.refused_metric({"pics": None}),
        BatchTimings().family(),
    ]


@pytest.fixture
def samples():
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in families()
        for sample in family.samples
    }


def test_names_types_and_labels_are_those_of_the_contract():
    found = {
        family.name: (family.type, {label for sample in family.samples for label in sample.labels})
        for family in families()
    }
    assert found == CONTRACT


def test_a_scrape_can_be_read_by_prometheus():
    class Fixed:
        def collect(self):
            return families()

        def describe(self):
            return []

    registry = CollectorRegistry()
    registry.register(Fixed())
    from prometheus_client.parser import text_string_to_metric_families

    read = {each.name for each in text_string_to_metric_families(generate_latest(registry).decode())}
    assert "hotrefresh_items_processed" in read


def test_items_are_told_by_state_and_done_ones_are_counters(samples):
    assert samples["hotrefresh_items", ("rollout", "7"), ("state", "pending")] == 5
    assert samples["hotrefresh_items_processed_total", ("outcome", "quarantined"), ("rollout", "7")] == 3


def test_time_goes_on_for_a_rollout_until_it_is_over_and_not_while_it_is_paused(samples):
    assert samples["hotrefresh_rollout_active_seconds", ("rollout", "7")] == pytest.approx(70)
    assert samples["hotrefresh_rollout_paused_seconds", ("rollout", "7")] == 30
    over = metrics.rollout_metrics([ROLLOUT | {"state": "finalized", "paused_s": 0.0}], NOW)
    [active] = [family for family in over if family.name == "hotrefresh_rollout_active_seconds"]
    assert active.samples[0].value == pytest.approx(40)


def test_what_nobody_will_work_on_is_no_queue_and_what_is_paused_does_not_age(samples):
    assert samples["hotrefresh_queue_depth", ("band", "0")] == 6
    assert ("hotrefresh_queue_depth", ("band", "1")) not in samples
    assert samples["hotrefresh_queue_oldest_age_seconds",] == 9


def test_only_workers_that_live_are_named(samples):
    assert samples["hotrefresh_workers",] == 1
    beats = [
        labels for name, *labels in samples if name == "hotrefresh_worker_last_heartbeat_timestamp_seconds"
    ]
    assert beats == [[("worker", "host-1")]]


def test_leases_that_ran_out_and_the_end_of_a_rollback_window_are_told_by_rollout(samples):
    assert samples["hotrefresh_lease_expired_total", ("rollout", "7")] == 2
    window = "hotrefresh_rollback_window_closes_timestamp_seconds"
    assert samples[window, ("rollout", "6")] == NOW.timestamp()


def test_flips_are_counted_and_their_ratio_is_that_of_the_newest_rollout(samples):
    assert samples["hotrefresh_flips_total", ("direction", "negative"), ("queryset", "pics/asked")] == 6
    assert samples["hotrefresh_flips_total", ("direction", "positive"), ("queryset", "pics/asked")] == 0
    assert samples["hotrefresh_negative_flip_ratio", ("queryset", "pics/asked")] == 0.02
    assert samples["hotrefresh_negative_flip_ratio", ("queryset", "texts/asked")] == 0
    assert samples["hotrefresh_negative_flip_ratio_count", ("queryset", "pics/asked")] == 200
    assert (
        "hotrefresh_negative_flip_ratio",
        ("queryset", "pics/empty"),
    ) not in samples  # missing is not zero


def test_a_gate_that_was_not_judged_is_absent_and_so_is_a_value_that_is_missing(samples):
    of_a, of_b = ((("gate", "nfr"), ("queryset", name), ("rollout", "7")) for name in "ab")
    assert samples[("hotrefresh_gate_state", *of_a)] == 0
    assert ("hotrefresh_gate_value", *of_a) not in samples
    assert samples[("hotrefresh_gate_state", *of_b)] == -1
    assert samples[("hotrefresh_gate_value", *of_b)] == 0.08
    assert samples[("hotrefresh_gate_limit", *of_b)] == 0.05
    assert all(family.samples == [] for family in metrics.gate_metrics([]))


def test_batches_are_tallied_once_and_only_those_that_came_after_the_first_look(monkeypatch):
    ends = {1: 10}
    rows = [
        {"seq": s, "decode": 0.2, "encode": 70.0, "store": None, "commit": 0.01 if s > 11 else None}
        for s in range(1, 15)
    ]
    monkeypatch.setattr("orchestrator.api.timings.metric_queries.log_ends", lambda connection: dict(ends))
    monkeypatch.setattr(
        "orchestrator.api.timings.metric_queries.timings_after",
        lambda connection, gallery, seq, limit: [r for r in rows if r["seq"] > seq][:limit],
    )
    monkeypatch.setattr("orchestrator.api.timings.AT_ONCE", 3)
    timings = BatchTimings()
    timings.read(None)
    assert value(timings, "count", "decode") == 0
    ends[1] = 14
    timings.read(None)
    assert value(timings, "count", "decode") == 3  # one scrape reads no more
    for _ in range(3):
        timings.read(None)
    assert value(timings, "count", "decode") == 4
    assert value(timings, "sum", "encode") == pytest.approx(280)
    assert value(timings, "count", "store") == 0
    assert value(timings, "count", "commit") == 3
    buckets = {s.labels["le"]: s.value for s in timings.family().samples if s.labels["stage"] == "decode"
               and s.name.endswith("_bucket")}  # fmt: skip
    assert (buckets["0.1"], buckets["0.25"], buckets["+Inf"]) == (0, 4, 4)
    assert len(buckets) == len(BUCKETS) + 1


def value(timings, what, stage):
    name = f"hotrefresh_batch_duration_seconds_{what}"
    return next(s.value for s in timings.family().samples if s.name == name and s.labels["stage"] == stage)


def test_churn_is_that_of_the_newest_rollout_and_absent_where_nothing_was_compared(samples):
    assert samples["hotrefresh_overlap_ratio", ("queryset", "pics/logged")] == 0.75
    assert samples["hotrefresh_rbo_ratio", ("queryset", "pics/logged")] == 0.8
    assert ("hotrefresh_overlap_ratio", ("queryset", "pics/unread")) not in samples


def test_lost_clicks_have_a_ratio_with_its_count_and_are_no_flips(samples):
    assert samples["hotrefresh_click_loss_ratio", ("queryset", "pics/clicked")] == 0.05
    assert samples["hotrefresh_click_loss_ratio_count", ("queryset", "pics/clicked")] == 40
    assert ("hotrefresh_click_loss_ratio", ("queryset", "pics/empty")) not in samples
    assert not [
        name for name, *labels in samples if "flip" in name and ("queryset", "pics/clicked") in labels
    ]
