"""How long batches took, stage by stage: tallied from the log as it grows, so that a scrape never reads all batches."""

from __future__ import annotations

from bisect import bisect_left

from prometheus_client.core import HistogramMetricFamily
from sqlalchemy import Connection

from orchestrator.ledger.queries import metrics as metric_queries

STAGES = ("decode", "encode", "store", "commit")
BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
# Batches read in one scrape; what is more waits for the next one.
AT_ONCE = 2000


class BatchTimings:
    """Counts since this process first looked, as counters do. Not for many threads."""

    def __init__(self) -> None:
        self._seen: dict[int, int] | None = None
        self._counts = {stage: [0] * (len(BUCKETS) + 1) for stage in STAGES}
        self._sums = dict.fromkeys(STAGES, 0.0)

    def read(self, connection: Connection) -> None:
        """Count the batches that were committed since the last look."""
        ends = metric_queries.log_ends(connection)
        if self._seen is None:
            self._seen = ends  # what was before is not counted: it may be millions of batches
        for gallery_id, end in ends.items():
            seen = self._seen.get(gallery_id, 0)
            if end <= seen:
                continue
            rows = metric_queries.timings_after(connection, gallery_id, seen, AT_ONCE)
            for row in rows:
                for stage in STAGES:
                    if row[stage] is not None:
                        self._counts[stage][bisect_left(BUCKETS, row[stage])] += 1
                        self._sums[stage] += row[stage]
            # Entries without a batch are skipped over where all were read.
            self._seen[gallery_id] = end if len(rows) < AT_ONCE else rows[-1]["seq"]

    def family(self) -> HistogramMetricFamily:
        """The tally."""
        family = HistogramMetricFamily(
            "hotrefresh_batch_duration_seconds", "Time of a batch's stage", labels=["stage"]
        )
        for stage in STAGES:
            total, buckets = 0, []
            for edge, count in zip([*map(str, BUCKETS), "+Inf"], self._counts[stage], strict=True):
                total += count
                buckets.append((edge, float(total)))
            family.add_metric([stage], buckets, self._sums[stage])
        return family
