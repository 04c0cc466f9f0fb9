"""The old system of a rollout: the model that served before it, on the gallery as it stood before its vectors.

Beside a `Replica`, which holds the new one, this doubles the memory of a gallery. It stays a function of the ledger:

- an item that was deleted is gone from both systems;
- an item that came since the rollout began is in the new system only, as after a rollback until the old model has embedded it;
- an item whose content changed since keeps, here, the vector of its former content, under its present name;
- a batch of an older rollout that is committed late (it was still at work when this one began) is applied here too.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection

from orchestrator.context import Context
from orchestrator.errors import ConflictError
from orchestrator.ledger.database import snapshot
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import ItemRow, LogEntry, RolloutRow
from orchestrator.serving.queries import load, query_path
from orchestrator.serving.replica import Replica
from orchestrator.serving.rerank import floats_behind
from orchestrator.serving.served import Served
from orchestrator.serving.snapshots import laid_out


class OldSystem(Replica):
    """Searched as a replica is; whoever feeds the new system's log entries to `take` keeps it up to date.

    Args:
        new: the replica beside it: it names the items.
        rollout: an upgrade of its gallery.

    Raises:
        ConflictError: the vectors of before were given back.
    """

    def __init__(self, context: Context, new: Replica, rollout: RolloutRow) -> None:
        self._new = new
        self._rollout = rollout
        super().__init__(context, new.gallery)
        self.load_attributes()  # neither a filter nor a hit waits for the ledger, as in the replica beside it
        load(context, self.path)  # the first search does not wait for it

    def _reload(self) -> None:
        rollout = self._rollout
        with snapshot(self._context.engine) as connection:
            effective = rollout_queries.effective_rollouts(connection, self.gallery.id)
            older = [each for each in effective if each.id < rollout.id]
            if not older or rollout.from_model_id is None:
                raise ConflictError(f"the vectors from before rollout {rollout.id} were reclaimed.")
            path = query_path(connection, rollout.from_model_id, older[-1])
            matrix = laid_out(connection, self.gallery.id, before=rollout.id)
            columns = self._columns(connection, matrix.version, matrix.seq) if self._filtered else None
            floats = floats_behind(connection, self.gallery.id, path, self._rerank)
        index = self._index(matrix)
        served = Served(index, matrix.version, path, older[-1].id, columns=columns, floats=floats)
        with self._lock.write():
            self._served, self.seq = served, matrix.seq

    def take(self, connection: Connection, entry: LogEntry) -> None:
        """Apply a log entry, unless it is in already."""
        with self._applying:
            if entry.seq > self.seq:
                self._apply(connection, entry)

    def _apply(self, connection: Connection, entry: LogEntry) -> bool:
        older_batch = entry.kind == "batch" and (entry.rollout_id or 0) < self._rollout.id
        if entry.kind == "deleted" or older_batch:
            return super()._apply(connection, entry)
        self.seq = entry.seq
        return False

    def items(self, rows: Sequence[int]) -> dict[int, ItemRow]:
        """As the new system's replica knows them: without the ledger, where that one does without."""
        return self._new.items(rows)
