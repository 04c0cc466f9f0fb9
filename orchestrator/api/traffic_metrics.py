"""Metrics for Prometheus of this process's canaries and shadows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from orchestrator.api.metrics import labelled
from orchestrator.serving.traffic import Traffic


class TrafficCollector(Collector):
    """What this process answered and compared; never asks the ledger."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def describe(self) -> Iterator[Metric]:
        """Nothing: which galleries have a canary changes."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """As it stands."""
        traffic = self._traffic
        yield from traffic_metrics(traffic.answered, traffic.shadow.counts, traffic.canaries())


def traffic_metrics(
    answered: Mapping[str, int], compared: Mapping[str, int], canaries: Mapping[str, float]
) -> list[Metric]:
    """Answers by system, shadow queries by what became of them, and each gallery's canary while it goes on."""
    answers = CounterMetricFamily(
        "hotrefresh_canary_answers",
        "Searches answered while a canary goes on, by system",
        labels=["system"],
    )
    shadow = CounterMetricFamily(
        "hotrefresh_shadow_queries",
        "Queries for which the other system was asked too, by outcome: compared, dropped, failed",
        labels=["outcome"],
    )
    percent = GaugeMetricFamily(
        "hotrefresh_canary_percent", "Traffic that the new system answers in this process", labels=["gallery"]
    )
    return [labelled(answers, answered), labelled(shadow, compared), labelled(percent, canaries)]
