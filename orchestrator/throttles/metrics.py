"""Numbers out of a Prometheus text endpoint, and a quantile over the interval between two scrapes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from orchestrator.throttles.base import ProbeError, ProbeRefused
from orchestrator.throttles.web import get_text

_MOST_BYTES = 16_000_000


def scrape(url: str, sample: str) -> list[Sample]:
    """The samples of that name at a metrics endpoint.

    Raises:
        ProbeError: no answer, not Prometheus text, or no such sample.
    """
    try:
        text = get_text(url, most_bytes=_MOST_BYTES)
    except ProbeRefused as error:  # a metrics page with a fault says nothing about what it measures
        raise ProbeError(f"the metrics endpoint answered with status {error.status}") from None
    try:
        found = list(_samples(text, sample))
    except (ValueError, KeyError, IndexError) as error:
        raise ProbeError(
            f"the metrics endpoint answered with text that is not Prometheus's: {error}"
        ) from None
    if not found:
        raise ProbeError(f"the metrics endpoint holds no {sample}")
    return found


def _samples(text: str, name: str) -> Iterator[Sample]:
    for family in text_string_to_metric_families(text):
        yield from (sample for sample in family.samples if sample.name == name)


def scrape_buckets(url: str, histogram: str) -> dict[float, float]:
    """Upper bound → cumulative count, over every set of labels of a histogram."""
    buckets: dict[float, float] = {}
    for sample in scrape(url, f"{histogram}_bucket"):
        try:
            bound = float(sample.labels["le"])
        except (KeyError, ValueError):
            raise ProbeError(f"{histogram} has a bucket without a bound") from None
        buckets[bound] = buckets.get(bound, 0.0) + sample.value
    if math.inf not in buckets or len(buckets) < 2:
        raise ProbeError(f"{histogram} has no bucket up to +Inf, or no other")
    return buckets


def between(before: Mapping[float, float], after: Mapping[float, float]) -> dict[float, float]:
    """The counts that were added since the scrape before; those of `after` alone where the process restarted."""
    added = {bound: count - before.get(bound, 0.0) for bound, count in after.items()}
    restarted = before.keys() != after.keys() or any(count < 0 for count in added.values())
    return dict(after) if restarted else added


def quantile(buckets: Mapping[float, float], q: float) -> float:
    """The q-quantile, linear within its bucket, as Prometheus's histogram_quantile; 0 where nothing was counted.

    In the last bucket it is the highest finite bound: the true value is at least that.
    """
    bounds = sorted(buckets)
    total = buckets[bounds[-1]]
    if total <= 0:
        return 0.0
    wanted = q * total
    lower, below = 0.0, 0.0
    for bound in bounds[:-1]:
        if buckets[bound] >= wanted:
            return lower + (bound - lower) * (wanted - below) / (buckets[bound] - below)
        lower, below = bound, buckets[bound]
    return lower
