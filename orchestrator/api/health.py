"""Whether searches should be sent to this process.

ready       200  the ledger answers, its schema is ours, every embedded gallery is held and follows its log
degraded    200  every gallery that was ever held is answered, from the place of the log where it stands: the ledger is
                 away, a replica cannot apply what is new, or lags. Or it refuses a pair of models without a certificate.
                 To take such a process out of service, and with it all of them at once, would turn an absent ledger
                 into an absent search
not_ready   503  a gallery is not loaded yet, or the schema is another release's; with `replica_lag_unready`, a replica lags
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.api.replicas import Replicas
from orchestrator.context import Context
from orchestrator.errors import HotrefreshError
from orchestrator.ledger import database


@dataclass(frozen=True)
class Found:
    """What was found, and why it is not better."""

    status: str
    reasons: tuple[str, ...] = ()

    @property
    def http_status(self) -> int:
        """503 where searches should go elsewhere."""
        return 503 if self.status == "not_ready" else 200


class Health:
    """Looks when it is asked."""

    def __init__(self, context: Context, replicas: Replicas) -> None:
        self._context = context
        self._replicas = replicas

    def look(self) -> Found:
        """One look at the ledger and at the replicas."""
        away, schema = self._ledger()
        missing = [
            f"replica {name}: {why}" if name else why for name, why in self._replicas.missing().items()
        ]
        behind = [f"replica {name}: {fault}" for name, fault in self._replicas.faults().items()]
        refused = [f"replica {name}: {why}" for name, why in self._replicas.refusals().items() if why]
        lagging = [] if away else self._lagging()
        reasons = (*away, *schema, *missing, *behind, *refused, *lagging)
        if schema or missing or (lagging and self._context.settings.replica_lag_unready):
            return Found("not_ready", reasons)
        return Found("degraded" if reasons else "ready", reasons)

    def _lagging(self) -> list[str]:
        """Replicas whose oldest entry that is not applied is older than the settings allow."""
        limit = self._context.settings.replica_lag_s
        try:
            ages = self._replicas.ages()
        except HotrefreshError as error:
            return [f"database: {error}"]
        return [
            f"replica {name} lags: an entry of the log has waited for {age:.0f} s (replica_lag_s is {limit:g})."
            for name, age in ages.items()
            if age > limit
        ]

    def _ledger(self) -> tuple[list[str], list[str]]:
        """Why the ledger cannot be reached; why its schema does not fit."""
        try:
            database.check(self._context.engine)
            found = database.current(self._context.engine)
        except HotrefreshError as error:
            return [f"database: {error}"], []
        except Exception as error:  # noqa: BLE001 - whatever it is, the ledger does not answer
            return [f"database: it does not answer ({type(error).__name__})."], []
        if found != database.HEAD:
            return [], [f"schema: {found}, this release needs {database.HEAD}"]
        return [], []
