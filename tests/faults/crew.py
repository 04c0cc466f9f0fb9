"""Real worker processes, started as the command line starts them, killed as the kernel kills them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.context import Context
from orchestrator.errors import HotrefreshError
from orchestrator.service import background
from tests.faults import ledger
from tests.faults.encoder import PACE

Worker = subprocess.Popen[bytes]


def until(condition: Callable[[], bool], what: str, timeout_s: float = 120.0) -> float:
    """Wait for something to become true; returns the seconds. The time-out is for a hanging test, not a measurement."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < timeout_s, f"it never came true: {what}"
        time.sleep(0.02)
    return time.monotonic() - started


class Crew:
    """So many workers at all times: whoever is killed is replaced in the background."""

    def __init__(self, context: Context, pace_s: float) -> None:
        self._context = context
        self._pace_s = pace_s
        self._workers: list[Worker] = []
        self._lock = threading.Lock()
        self._spawning = threading.Lock()  # a worker's environment is ours while it is made
        self._pool = ThreadPoolExecutor(3, thread_name_prefix="hire")
        self._hired: list[Future[Worker]] = []
        self._closed = False

    def hire(self, count: int = 1) -> None:
        """Start workers and wait until they are registered."""
        for future in [self._pool.submit(self._start) for _ in range(count)]:
            future.result()

    def replace_later(self) -> None:
        """Start one in the background."""
        self._hired.append(self._pool.submit(self._start))

    def _start(self) -> Worker:
        with self._spawning:
            os.environ[PACE] = str(self._pace_s)
            try:
                worker = self._started()
            finally:
                del os.environ[PACE]
        with self._lock:
            self._workers.append(worker)
        return worker

    def _started(self) -> Worker:
        while True:
            try:
                return background.start_worker(self._context)
            except HotrefreshError:  # a server is being restarted at this moment
                assert not self._closed
                time.sleep(0.2)

    @property
    def workers(self) -> list[Worker]:
        """Those that live."""
        with self._lock:
            self._workers = [worker for worker in self._workers if worker.poll() is None]
            return list(self._workers)

    def kill(self, worker: Worker) -> float:
        """SIGKILL; returns the moment."""
        worker.send_signal(signal.SIGKILL)
        moment = time.monotonic()
        worker.wait()
        return moment

    def close(self) -> None:
        """Kill them all."""
        self._closed = True
        self._pool.shutdown(wait=True, cancel_futures=True)
        for worker in self.workers:
            self.kill(worker)


@contextmanager
def crew(context: Context, count: int, pace_s: float) -> Iterator[Crew]:
    """A crew for a with-statement."""
    opened = Crew(context, pace_s)
    try:
        opened.hire(count)
        yield opened
    finally:
        opened.close()


@dataclass(frozen=True)
class Orphan:
    """A batch whose worker was killed."""

    rollout_id: int
    key: int
    fence: int
    killed_at: float


class Orphanage:
    """Watches the batches of killed workers until somebody has them again."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._waiting: list[Orphan] = []
        self.recovered_s: list[float] = []

    def kill(self, team: Crew, worker: Worker, rollout_id: int) -> None:
        """Kill a worker and remember what it held."""
        killed_at = team.kill(worker)
        for lease in ledger.leases_of_process(self._context, rollout_id, worker.pid):
            self._waiting.append(Orphan(rollout_id, lease.key, lease.fence, killed_at))

    def look(self) -> int:
        """Note which batches were claimed again, or turned out to be committed; returns how many still wait."""
        for rollout_id in {orphan.rollout_id for orphan in self._waiting}:
            now = {lease.key: lease for lease in ledger.leases(self._context, rollout_id)}
            seen = time.monotonic()
            for orphan in [each for each in self._waiting if each.rollout_id == rollout_id]:
                if now[orphan.key].fence > orphan.fence:
                    self.recovered_s.append(seen - orphan.killed_at)
                elif now[orphan.key].state != "committed":
                    continue
                self._waiting.remove(orphan)
        return len(self._waiting)

    def settle(self) -> None:
        """Wait for the rest."""
        until(lambda: not self.look(), "every orphaned batch is claimed again", 60.0)
