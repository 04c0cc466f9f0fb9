"""What the operator wants of a rollout now, as the ledger says it: read twice a second while a worker drains."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from orchestrator.context import Context
from orchestrator.errors import HotrefreshError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.rows import RolloutRow

READ_EVERY_S = 0.5
# States in which batches may be claimed and committed; finalized ones have late items only.
WORKABLE = ("backfilling", "finalized")


class Control:
    """Follows one rollout's row in a thread: its speed, and whether this worker may go on with what it holds."""

    def __init__(
        self, context: Context, rollout: RolloutRow, hurry: threading.Event, let_go: Callable[[], None]
    ) -> None:
        """`hurry`: set when the process must end soon. `let_go`: called once, when everything held must be given back."""
        self._context = context
        self._rollout = rollout
        self._hurry = hurry
        self._let_go = let_go
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="control", daemon=True)
        self.speed = float(rollout.config.get("speed", 1.0))

    def _run(self) -> None:
        while not self._over.wait(READ_EVERY_S):
            if self._hurry.is_set():
                self._let_go()
                return
            try:
                with transaction(self._context.engine) as connection:
                    row = rollout_queries.rollout_by_id(connection, self._rollout.id)
            except HotrefreshError:
                continue  # leases decide while the ledger is away
            if row is None or row.generation != self._rollout.generation or row.state not in WORKABLE:
                self._let_go()
                return
            self.speed = float(row.config.get("speed", 1.0))

    def rest(self, busy_s: float, over: threading.Event) -> None:
        """Pause the encoder after `busy_s` seconds of work, so that it is busy for `speed` of the time."""
        rested = 0.0
        while not over.is_set() and (left := busy_s * (1 / self.speed - 1) - rested) > 0:
            step = min(left, READ_EVERY_S)
            over.wait(step)
            rested += step

    def __enter__(self) -> Control:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._over.set()
        self._thread.join()
