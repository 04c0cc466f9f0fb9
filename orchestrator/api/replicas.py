"""The replicas that answer this process's searches: one a gallery, loaded at its first search, following the log."""

from __future__ import annotations

import threading

from orchestrator.context import Context
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import log as log_queries
from orchestrator.service.names import find_gallery
from orchestrator.serving.replica import Replica


class Replicas:
    """Safe for many threads. What is loaded goes on answering while the ledger is away."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._open: dict[str, Replica] = {}
        self._lock = threading.Lock()

    def of(self, gallery_name: str) -> Replica:
        """A gallery's replica.

        Raises:
            NotFoundError: no such gallery.
            ConflictError: it has no embeddings yet.
        """
        if gallery_name in self._open:
            return self._open[gallery_name]
        with self._lock:
            if gallery_name not in self._open:
                with transaction(self._context.engine) as connection:
                    gallery = find_gallery(connection, gallery_name)
                replica = Replica(self._context, gallery)
                replica.follow()
                self._open[gallery_name] = replica
            return self._open[gallery_name]

    def faults(self) -> dict[str, str]:
        """What keeps replicas from following, by gallery; empty when all do."""
        return {name: str(each.error) for name, each in list(self._open.items()) if each.error is not None}

    def lags(self) -> dict[str, int]:
        """How many entries of the log each replica has not applied yet."""
        found = {}
        with transaction(self._context.engine) as connection:
            for name, replica in list(self._open.items()):
                found[name] = log_queries.last_seq(connection, replica.gallery.id) - replica.seq
        return found

    def close(self) -> None:
        """Stop following."""
        for replica in self._open.values():
            replica.close()
