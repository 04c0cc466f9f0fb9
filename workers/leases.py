"""Keeping the leases of batches in flight: renewed every third of their length, given up when refused or run out."""

from __future__ import annotations

import threading
import time
from typing import Any

from sqlalchemy import Engine

from orchestrator.errors import HotrefreshError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.rows import Claim


class LeaseKeeper:
    """Renews what is held, in a thread, while its context is open."""

    def __init__(self, engine: Engine, lease_s: float) -> None:
        self._engine = engine
        self._lease_s = lease_s
        self._held: dict[tuple[int, int], tuple[Claim, float]] = {}
        self._lock = threading.Lock()
        self._dropped = threading.Condition(self._lock)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="leases", daemon=True)

    def hold(self, claim: Claim, asked: float) -> None:
        """Begin to renew a claim that was asked for at `asked`, by our own monotonic clock."""
        with self._lock:
            self._held[claim.first_rank, claim.fence] = claim, asked + self._lease_s

    def drop(self, claim: Claim) -> None:
        """Stop renewing it."""
        with self._lock:
            self._held.pop((claim.first_rank, claim.fence), None)
            self._dropped.notify_all()

    def holds(self, claim: Claim) -> bool:
        """Whether the lease was neither refused nor has run out by our own clock."""
        with self._lock:
            held = self._held.get((claim.first_rank, claim.fence))
        return held is not None and time.monotonic() < held[1]

    def wait_for_drop(self, seconds: float) -> bool:
        """Whether anything is held; if so, return when one is dropped, or after so long."""
        with self._lock:
            held = bool(self._held)
            if held:
                self._dropped.wait(seconds)
            return held

    def _run(self) -> None:
        while not self._stop.wait(self._lease_s / 3):
            with self._lock:
                claims = [claim for claim, _ in self._held.values()]
            for claim in claims:
                asked = time.monotonic()
                try:
                    with transaction(self._engine) as connection:
                        renewed = batch_queries.renew_lease(connection, claim, self._lease_s)
                except HotrefreshError:
                    continue  # the database is away; the deadline by our own clock decides
                self._renewed(claim, asked, renewed=renewed)

    def _renewed(self, claim: Claim, asked: float, *, renewed: bool) -> None:
        key = claim.first_rank, claim.fence
        with self._lock:
            if key in self._held:
                if renewed:
                    self._held[key] = claim, asked + self._lease_s
                else:
                    del self._held[key]
                    self._dropped.notify_all()

    def __enter__(self) -> LeaseKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join()
