"""One worker process: its identity, its heartbeat, what its tasks do, and its own look-out for work."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from typing import Any

from orchestrator.context import Context
from orchestrator.core.states import RolloutState
from orchestrator.errors import ConflictError, HotrefreshError, StoreFullError, UnreachableError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import batches as batch_queries
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries import workers as worker_queries
from orchestrator.service import rollouts
from workers.log import log

# The evaluator is woken at most this often while batches are committed.
EVALUATE_EVERY_S = 0.5


class Runtime:
    """What the tasks of one process share. Work is found in two ways: by message, and by looking every heartbeat."""

    def __init__(self, context: Context, *, exit_when_idle_s: float | None = None) -> None:
        self.context = context
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.stop = threading.Event()
        self._exit_when_idle_s = exit_when_idle_s
        self._busy = threading.Semaphore(1)  # one drain at a time: the encoder is one
        self._evaluators: dict[int, Any] = {}
        self._last_work = time.monotonic()
        self._last_evaluate = 0.0
        self._working = 0
        self._counts = [0, 0]
        self._last_error: str | None = None
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Register and begin to beat."""
        from orchestrator import __version__

        with transaction(self.context.engine) as connection:
            worker_queries.register_worker(
                connection,
                worker_id=self.id,
                host=socket.gethostname(),
                pid=os.getpid(),
                device=_device(),
                version=__version__,
                interval_s=self.context.settings.heartbeat_s,
            )
        log("worker.started", worker_id=self.id)
        self._thread.start()

    def close(self) -> None:
        """Stop at the next batch boundary and sign off."""
        self.stop.set()
        self._thread.join(timeout=5)
        try:
            with transaction(self.context.engine) as connection:
                self._write_heartbeat(connection)
                worker_queries.retire_worker(connection, self.id)
        except UnreachableError:
            pass  # the heartbeat's age will say it
        log("worker.stopped", worker_id=self.id)

    # -- tasks ----------------------------------------------------------------------------------------------------

    def advance(self, rollout_id: int) -> None:
        """Deploy and plan what stands out, then drain."""
        from orchestrator.service.advance import advance

        with self._work(rollout_id):
            row = advance(self.context, rollout_id)
            log("rollout.advanced", rollout_id=rollout_id, state=row.state)
        self.drain(rollout_id)

    def drain(self, rollout_id: int) -> None:
        """Work on a rollout's batches until there are none, then see whether it is complete."""
        from workers.drain import drain

        if not self._busy.acquire(blocking=False):
            return  # this process is draining; the ledger keeps the work, the heartbeat looks again
        try:
            with self._work(rollout_id):
                result = drain(
                    self.context,
                    rollout_id,
                    owner=self.id,
                    stop=self.stop,
                    committed=lambda seq: self._committed(rollout_id),
                )
                self._counts[0] += result.batches
                if result.batches or result.failure:
                    log(
                        "rollout.drained",
                        rollout_id=rollout_id,
                        worker_id=self.id,
                        batches=result.batches,
                        items=result.items,
                        quarantined=result.quarantined,
                        refused=result.refused,
                        duration_s=round(result.wall_s, 3),
                    )
                if result.failure is not None:
                    raise result.failure
                rollouts.complete(self.context, rollout_id)
                rollouts.wake(self.context, "evaluate", rollout_id)
        finally:
            self._busy.release()

    def evaluate(self, rollout_id: int) -> None:
        """Bring the flips up to the log's end."""
        from orchestrator.serving.evaluator import evaluate_rollout

        with self._work(rollout_id):
            evaluate_rollout(self.context, rollout_id, self._evaluators)

    def _committed(self, rollout_id: int) -> None:
        now = time.monotonic()
        if now - self._last_evaluate > EVALUATE_EVERY_S:
            self._last_evaluate = now
            rollouts.wake(self.context, "evaluate", rollout_id)

    def _work(self, rollout_id: int) -> _Work:
        return _Work(self, rollout_id)

    def failed(self, rollout_id: int, error: HotrefreshError) -> None:
        """Say what went wrong; what a retry will not mend pauses the rollout with its reason."""
        self._counts[1] += 1
        self._last_error = str(error)
        log(
            "task.failed",
            level="error",
            rollout_id=rollout_id,
            worker_id=self.id,
            error=error.code,
            message=str(error),
        )
        if isinstance(error, ConflictError):
            return  # somebody moved the rollout meanwhile
        if isinstance(error, UnreachableError) and not isinstance(error, StoreFullError):
            return  # it will be there again; the heartbeat looks for work
        try:
            rollouts.pause(self.context, rollout_id, reason=f"{error.code}: {error}")
        except HotrefreshError as second:
            log("rollout.pause_failed", level="error", rollout_id=rollout_id, message=str(second))

    # -- heartbeat ------------------------------------------------------------------------------------------------

    def _beat(self) -> None:
        while not self.stop.wait(self.context.settings.heartbeat_s):
            try:
                with transaction(self.context.engine) as connection:
                    self._write_heartbeat(connection)
                if self._working == 0:
                    self._look_for_work()
            except HotrefreshError as error:
                log("heartbeat.failed", level="error", worker_id=self.id, message=str(error))
            idle_s = time.monotonic() - self._last_work
            if self._exit_when_idle_s is not None and self._working == 0 and idle_s > self._exit_when_idle_s:
                log("worker.idle", worker_id=self.id, duration_s=round(idle_s, 1))
                os.kill(os.getpid(), signal.SIGTERM)
                return

    def _write_heartbeat(self, connection: Any) -> None:
        worker_queries.heartbeat(
            connection,
            self.id,
            successes=self._counts[0],
            errors=self._counts[1],
            last_error=self._last_error,
        )

    def _look_for_work(self) -> None:
        """Find what no message told us of: lost wake-ups, expired leases, retries that are due."""
        with transaction(self.context.engine) as connection:
            active = rollout_queries.active_rollouts(connection)
            due = []
            for row in active:
                if row.state == RolloutState.BACKFILLING and row.n_batches:
                    wait_s = batch_queries.next_due_s(connection, row.id)
                    if wait_s is None or wait_s <= 0:
                        due.append(("drain", row.id))
                else:
                    due.append(("advance", row.id))
        for task, rollout_id in due:
            rollouts.wake(self.context, task, rollout_id)


class _Work:
    """A piece of work: counts as busy, and turns what is raised into a log line and, where need be, a pause."""

    def __init__(self, runtime: Runtime, rollout_id: int) -> None:
        self._runtime = runtime
        self._rollout_id = rollout_id

    def __enter__(self) -> None:
        self._runtime._working += 1

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        self._runtime._working -= 1
        self._runtime._last_work = time.monotonic()
        if error is None or not isinstance(error, Exception):
            return False
        if not isinstance(error, HotrefreshError):
            log(
                "task.crashed", level="error", rollout_id=self._rollout_id, message=repr(error), exc_info=True
            )
            error = HotrefreshError(
                f"{type(error).__name__}: {error}. This is a fault of hotrefresh; see the worker's log."
            )
        self._runtime.failed(self._rollout_id, error)
        return True


def _device() -> str:
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"
