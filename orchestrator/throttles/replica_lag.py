"""`replica_lag`: how far replicas are behind, PostgreSQL's (seconds) or our own search replicas (batches)."""

from __future__ import annotations

from collections import deque
from datetime import datetime

from orchestrator.ledger.queries.measurements import StreamingReplica, streaming_replicas
from orchestrator.table_fields import Fields
from orchestrator.throttles.base import TIMEOUT_S, Probe, ProbeError, Surroundings
from orchestrator.throttles.database import reaching
from orchestrator.throttles.metrics import scrape

KIND = "replica_lag"
_READS_KEPT = 1000
GAUGE = "hotrefresh_replica_lag_batches"


class PostgresLag:
    """Seconds that the slowest streaming replica is behind, from the server that sends to it.

    The server measures a lag when the replica reports that it went on; of a replica whose replay stands still it knows
    nothing new. So we note where the server's log was at each read: a replica is behind since the first one past it.
    """

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._written: deque[tuple[datetime, int]] = deque(maxlen=_READS_KEPT)

    def read(self, surroundings: Surroundings) -> float | None:
        """The greatest replay lag; a replica that went away is a failure, not a lag of zero."""
        with reaching("the ledger's database"):
            lags = streaming_replicas(surroundings.engine.url, TIMEOUT_S)
        if len(lags) < self._replicas:
            raise ProbeError(f"{len(lags)} of {self._replicas} streaming replicas are connected")
        if any(not replica.visible for replica in lags):
            raise ProbeError("this database user may not see replicas; GRANT pg_read_all_stats to it")
        if lags:
            self._written.append((surroundings.now, lags[0].written))
        return max((self._behind_s(replica, surroundings.now) for replica in lags), default=0.0)

    def _behind_s(self, replica: StreamingReplica, now: datetime) -> float:
        passed = next((at for at, written in self._written if written > replica.replayed), now)
        return max(replica.lag_s, (now - passed).total_seconds())


class SearchLag:
    """Committed batches that the slowest search replica has not applied yet."""

    def __init__(self, url: str) -> None:
        self._url = url

    def read(self, surroundings: Surroundings) -> float | None:
        """The greatest lag that the metrics endpoint shows."""
        return max(sample.value for sample in scrape(self._url, GAUGE))


def build(fields: Fields, limit: float) -> Probe:
    """The probe of one table: `of`, and `url` (search) or `replicas` (postgres: how many must be connected)."""
    if fields.choice("of", ("postgres", "search")) == "search":
        return SearchLag(fields.url("url"))
    return PostgresLag(fields.whole("replicas", 1))


LIMIT_MOST = 1e9
EXAMPLE = {"kind": KIND, "limit": 10, "of": "search", "url": "http://127.0.0.1:9400/metrics"}
