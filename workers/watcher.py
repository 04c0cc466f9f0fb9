"""The supervisor's eyes: a thread that looks at the ledger and names the workers that are stuck.

A thread of its own, because a database that does not answer must not keep the supervisor from passing a signal on.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from sqlalchemy.exc import DBAPIError

from orchestrator.core.supervision import Sight, Watch, look, stuck
from orchestrator.errors import HotrefreshError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries.supervision import end_worker, supervised_workers
from orchestrator.settings import Settings

LOOK_EVERY_S = 1.0
# As many missed heartbeats as make a worker count as not live in the ledger.
BEATS_MISSED = 3
# A worker that has not registered by then hangs while it starts: importing torch takes seconds, rarely tens of them.
REGISTER_WITHIN_S = 90.0


class Watcher:
    """Looks while its context is open. `children` is replaced by the supervisor; `verdicts` is read by it."""

    def __init__(self, settings: Settings, stuck_s: float, say: Callable[..., None]) -> None:
        """`say`: writes a log line (event, level, keywords)."""
        self._settings = settings
        self._stuck_s = stuck_s
        self._silent_s = max(stuck_s, BEATS_MISSED * settings.heartbeat_s)
        self._say = say
        self.children: dict[int, float] = {}  # pid → when it was started, by the monotonic clock
        self.verdicts: queue.Queue[tuple[int, str]] = queue.Queue()
        self._dead: queue.Queue[tuple[int, str]] = queue.Queue()
        self._to_end: dict[str, str] = {}  # worker id → reason
        self._ids: dict[int, str] = {}
        self._watches: dict[int, Watch] = {}
        self._looking_since = time.monotonic()
        self._blind = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watcher", daemon=True)

    def died(self, pid: int, reason: str) -> None:
        """Tell that a child is dead and reaped; its leases will be let run out."""
        self._dead.put((pid, reason))

    def registered(self, pid: int) -> bool:
        """Whether this child was seen in the ledger."""
        return pid in self._ids

    def _run(self) -> None:
        with ExitStack() as stack:
            context: Any = None
            while True:
                last = self._stop.is_set()
                try:
                    if context is None:
                        from orchestrator.bootstrap import open_context

                        context = stack.enter_context(open_context(self._settings))
                    self._look(context)
                    self._blind = False
                except (HotrefreshError, DBAPIError, OSError) as error:
                    self._go_blind(error)
                if last:
                    return  # after a look that has signed off who died at the end
                self._stop.wait(LOOK_EVERY_S)

    def _look(self, context: Any) -> None:
        children = self.children
        self._take_dead()
        with transaction(context.engine) as connection:
            for worker_id, reason in self._to_end.items():
                end_worker(connection, worker_id, reason)
            rows = supervised_workers(connection, socket.gethostname(), list(children))
        self._to_end.clear()
        now = time.monotonic()
        self._ids |= {row.pid: row.id for row in rows}
        sights = {row.pid: Sight(row.finished, frozenset(row.held), row.beat) for row in rows}
        self._watches = {pid: look(self._watches.get(pid), sight, now) for pid, sight in sights.items()}
        for pid, watch in self._watches.items():
            if (why := stuck(watch, now, self._stuck_s, self._silent_s)) is not None:
                self.verdicts.put((pid, why))
        for pid in children.keys() - sights.keys():
            waited_s = now - max(children[pid], self._looking_since)
            if waited_s > max(REGISTER_WITHIN_S, self._stuck_s):
                self.verdicts.put((pid, f"did not register within {waited_s:.0f} s"))

    def _take_dead(self) -> None:
        while True:
            try:
                pid, reason = self._dead.get_nowait()
            except queue.Empty:
                return
            self._watches.pop(pid, None)
            if (worker_id := self._ids.pop(pid, None)) is not None:
                self._to_end[worker_id] = reason

    def _go_blind(self, error: Exception) -> None:
        """The ledger is away, for the workers too: nobody is judged by this time."""
        self._watches.clear()
        self._looking_since = time.monotonic()
        if not self._blind:
            self._say("supervisor.ledger_unreachable", level="error", message=str(error))
        self._blind = True

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stop.set()
        self._thread.join(timeout=5)
