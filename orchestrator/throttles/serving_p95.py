"""`serving_p95`: how long searches take at their 95th percentile, over the interval between two scrapes."""

from __future__ import annotations

from orchestrator.table_fields import Fields
from orchestrator.throttles.base import ProbeError, Surroundings
from orchestrator.throttles.metrics import between, quantile, scrape_buckets

KIND = "serving_p95"
HISTOGRAM = "hotrefresh_search_duration_seconds"


class ServingP95:
    """Seconds, from the search replicas' own histogram."""

    def __init__(self, url: str, limit: float) -> None:
        self._url = url
        self._limit = limit
        self._before: dict[float, float] | None = None

    def read(self, surroundings: Surroundings) -> float | None:
        """The percentile since the last read; None at the first, 0 where nobody searched."""
        buckets = scrape_buckets(self._url, HISTOGRAM)
        highest = sorted(buckets)[-2]
        if highest <= self._limit:
            raise ProbeError(
                f"the highest bucket of {HISTOGRAM} is {highest:g} s: it cannot show more than the limit "
                f"{self._limit:g} s; lower the limit or add buckets"
            )
        before, self._before = self._before, buckets
        return None if before is None else quantile(between(before, buckets), 0.95)


def build(fields: Fields, limit: float) -> ServingP95:
    """The probe of one table: `url`."""
    return ServingP95(fields.url("url"), limit)


LIMIT_MOST = 3600.0
EXAMPLE = {"kind": KIND, "limit": 0.05, "url": "http://127.0.0.1:9400/metrics"}
