"""One worker process: its identity, its heartbeat, what its tasks do, and its own look-out for work."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import threading
import time
from typing import Any

from orchestrator.broker import LONGEST_TASK_S
from orchestrator.context import Context
from orchestrator.core.states import RolloutState
from orchestrator.errors import ConflictError, HotrefreshError, StoreFullError, UnreachableError
from orchestrator.ledger import database
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import rollouts as rollout_queries
from orchestrator.ledger.queries import workers as worker_queries
from orchestrator.service import advance, finish, rollouts, wakeups
from orchestrator.service.sweep import Sweeper, missing_task
from workers.log import log

# The evaluator is woken at most this often while batches are committed.
EVALUATE_EVERY_S = 0.5
# A drain ends after so long, so that rollouts share workers.
SLICE_S = 10.0
# Idle time counts from when messages are asked for, and where that fails (no broker) from so long after the start.
BEGINS_WITHIN_S = 60.0


class Runtime:
    """What the tasks of one process share. Work is found in two ways: by message, and by looking every heartbeat.

    Attributes:
        stop: claim nothing more; what is held is finished.
        hurry: give back what is held.
    """

    def __init__(self, context: Context, *, exit_when_idle_s: float | None = None) -> None:
        self.context = context
        self.id = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.stop = threading.Event()
        self.hurry = threading.Event()
        self._exit_when_idle_s = exit_when_idle_s
        self._busy = threading.Semaphore(1)  # one drain at a time: the encoder is one
        self._evaluators: dict[int, Any] = {}
        self._sweeper = Sweeper(context, self.id)
        self._swept = float("-inf")
        self._last_work = time.monotonic() + BEGINS_WITHIN_S
        self._last_evaluate = 0.0
        self._working = 0
        self._counts = [0, 0]
        self._last_error: str | None = None
        self._heart = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._own_drain: threading.Thread | None = None

    def start(self) -> None:
        """Register and begin to beat."""
        from orchestrator import __version__

        with transaction(self.context.engine) as connection:
            worker_queries.register_worker(
                connection,
                worker_id=self.id,
                host=socket.gethostname(),
                pid=os.getpid(),
                device=_device(self.context.settings.device),
                version=__version__,
                interval_s=self.context.settings.heartbeat_s,
            )
        log("worker.started", worker_id=self.id)
        self._heart.start()

    def listening(self) -> None:
        """Messages are asked for from now on: before, there was no work to be had, and no idle time."""
        log("worker.listening", worker_id=self.id)
        self._last_work = min(self._last_work, time.monotonic())

    def close(self) -> None:
        """Finish what is held, give the sweeper's duty to others, and sign off."""
        self.stop.set()
        self._heart.join(timeout=5)
        if self._own_drain is not None:
            self._own_drain.join()
        try:
            self._sweeper.give_up()
            with transaction(self.context.engine) as connection:
                self._write_heartbeat(connection)
                worker_queries.retire_worker(connection, self.id)
        except UnreachableError:
            pass  # the heartbeat's age will say it
        log("worker.stopped", worker_id=self.id)

    # -- tasks ----------------------------------------------------------------------------------------------------

    def deploy(self, rollout_id: int) -> None:
        """Adapt the gallery where there is an adapter, and let the new model serve."""
        with self._work(rollout_id):
            advance.deploy(self.context, rollout_id)
            wakeups.relay(self.context)
        self.plan(rollout_id)

    def plan(self, rollout_id: int) -> None:
        """Score, order and store the plan; then drain."""
        with self._work(rollout_id):
            row = advance.advance(self.context, rollout_id)
            log("rollout.advanced", rollout_id=rollout_id, state=row.state)
        self.drain(rollout_id)

    def drain(self, rollout_id: int) -> None:
        """Work on a rollout's batches for a while, then on whichever rollout is next, until there is nothing to do.

        Not for longer than brokers wait for a message's acknowledgement: the heartbeat begins the next one.
        """
        if "gpu" not in self.context.settings.worker_queues:
            return  # a worker for other work, which went on from planning
        if not self._busy.acquire(blocking=False):
            return  # this process is draining; the ledger keeps the work, the heartbeat looks again
        until = time.monotonic() + LONGEST_TASK_S / 2
        try:
            wanted: int | None = rollout_id
            while wanted is not None and not self.stop.is_set() and time.monotonic() < until:
                if not self._drain_slice(wanted):
                    break
                wanted = self._next_rollout()
        finally:
            self._busy.release()

    def evaluate(self, rollout_id: int) -> None:
        """Bring the flips up to the log's end."""
        from orchestrator.service.evaluate import evaluate_rollout

        with self._work(rollout_id):
            evaluate_rollout(self.context, rollout_id, self._evaluators, log)
            finish.finalize_if_asked(self.context, rollout_id)

    def finalize(self, rollout_id: int) -> None:
        """Do a finalization that was postponed."""
        with self._work(rollout_id):
            finish.finalize_if_asked(self.context, rollout_id)

    def sweep(self, rollout_id: int) -> None:
        """A round of the sweeper, now."""
        with self._work(rollout_id):
            self._sweeper.sweep()

    # -- draining -------------------------------------------------------------------------------------------------

    def _drain_slice(self, rollout_id: int) -> bool:
        """One slice of one rollout; False when it ended with a fault."""
        from workers.drain import drain

        with self._work(rollout_id):
            result = drain(
                self.context,
                rollout_id,
                owner=self.id,
                stop=self.stop,
                hurry=self.hurry,
                slice_s=SLICE_S,
                committed=lambda seq: self._committed(rollout_id),
            )
            if result.batches or result.failed or result.failure:
                log(
                    "rollout.drained",
                    rollout_id=rollout_id,
                    worker_id=self.id,
                    batches=result.batches,
                    items=result.items,
                    quarantined=result.quarantined,
                    refused=result.refused,
                    failed=result.failed,
                    duration_s=round(result.wall_s, 3),
                )
            row = rollouts.reread(self.context, rollout_id)
            if row.state in (RolloutState.CANCELLING, RolloutState.ROLLING_BACK):
                rollouts.acknowledge(self.context, rollout_id)
            if result.failure is not None:
                raise result.failure
            finish.complete(self.context, rollout_id)
            if result.batches:
                wakeups.wake(self.context, "evaluate", rollout_id)
            return True
        return False

    def _next_rollout(self) -> int | None:
        """The rollout whose batches are due and that comes first; None: there is none."""
        with transaction(self.context.engine) as connection:
            for row in rollout_queries.active_rollouts(connection):
                if missing_task(connection, row) == "drain":
                    return row.id
        return None

    def _committed(self, rollout_id: int) -> None:
        self._counts[0] += 1
        now = time.monotonic()
        if now - self._last_evaluate > EVALUATE_EVERY_S:
            self._last_evaluate = now
            wakeups.wake(self.context, "evaluate", rollout_id)

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
                if self._schema_moved():
                    return
                self._sweep_if_due()
                self._sweeper.throttle()
                self._look_for_work()
            except HotrefreshError as error:
                log("heartbeat.failed", level="error", worker_id=self.id, message=str(error))
            except Exception as error:  # noqa: BLE001 — a heart that stops makes a worker look dead that works
                log("heartbeat.crashed", level="error", worker_id=self.id, message=repr(error), exc_info=True)
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

    def _schema_moved(self) -> bool:
        """Another release has changed the ledger's schema: this one must not go on guessing. Ends the process."""
        found = database.current(self.context.engine)
        if found == database.HEAD:
            return False
        log(
            "worker.outdated",
            level="error",
            worker_id=self.id,
            message=f"the ledger's schema is at {found}, this worker needs {database.HEAD}: install that release and start "
            "it again; what it held is given back",
        )
        self.hurry.set()
        os.kill(os.getpid(), signal.SIGTERM)
        return True

    def _sweep_if_due(self) -> None:
        if time.monotonic() - self._swept >= self.context.settings.sweep_s:
            self._swept = time.monotonic()
            self._sweeper.sweep()

    def _look_for_work(self) -> None:
        """Drain what no message told us of: wake-ups that were lost, or a broker that is away."""
        if self._working or self.stop.is_set() or "gpu" not in self.context.settings.worker_queues:
            return
        wanted = self._next_rollout()
        if wanted is not None:
            self._own_drain = threading.Thread(target=self.drain, args=(wanted,), name="drain", daemon=True)
            self._own_drain.start()


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


def _device(wanted: str) -> str:
    """The name of the device that this worker encodes on."""
    import torch

    from models.encoders.device import choose_device

    where = choose_device(wanted)
    return torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
