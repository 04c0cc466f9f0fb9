"""`hotrefresh worker --supervise`: starts worker processes, replaces those that are stuck or dead, and ends with them.

It loads neither torch nor faiss: what can break a worker must not break the process that replaces it.

* stuck (judged by the `Watcher` from the ledger, not by pulse): SIGKILL, and another at once;
* ended: another after 0.5 s, 1 s … 30 s; code 70 is a GPU error that sticks to its process, counted apart;
* ended five times in a row within 10 s of its start or before it registered: nothing here will mend that, exit code 1;
* SIGTERM or Ctrl-C: passed on, waited for a lease and 10 s, then SIGKILL; a second signal does not wait.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import IO, Any

from orchestrator.core.supervision import FIRST_DELAY_S, restart_delay_s
from orchestrator.errors import ExitCode, HotrefreshError
from orchestrator.service.background import worker_command, worker_environment
from orchestrator.settings import Settings, load_settings
from workers.log import log
from workers.watcher import Watcher

DEFAULT_STUCK_S = 45.0
FAST_EXIT_S, FAST_EXITS = 10.0, 5
# A child that lived this long is healthy: the next restart waits the shortest time again.
HEALTHY_S = 60.0
STOP_GRACE_S = 10.0
GPU_ERROR_CODE = 70
_TAIL_LINES, _LONGEST_LINE = 20, 65_536
_POLL_S = 0.1


class TrippedError(HotrefreshError):
    """Workers end as soon as they are started; restarting does not help."""

    code = "tripped"


@dataclass
class Child:
    """One of the N places for a worker process, and what happened in it."""

    number: int
    process: subprocess.Popen[bytes] | None = None
    pump: threading.Thread | None = None
    tail: deque[str] = field(default_factory=lambda: deque(maxlen=_TAIL_LINES))
    started: float = 0.0
    start_at: float = 0.0
    killed_for: str | None = None
    fast_exits: int = 0
    short_lives: int = 0
    restarts: int = 0
    gpu_errors: int = 0
    retired: bool = False


class Supervisor:
    """Runs N workers until told to stop. One object, one `run`, in the main thread (children die with that thread)."""

    def __init__(
        self,
        settings: Settings,
        *,
        processes: int = 1,
        stuck_s: float = DEFAULT_STUCK_S,
        idle_s: float | None = None,
    ) -> None:
        """`idle_s`: workers leave after this time without work, and are not replaced then."""
        self._command = worker_command(idle_s)
        self._environment = worker_environment(settings)
        self._stop_s = settings.lease_s + STOP_GRACE_S
        self._leaves_when_idle = idle_s is not None
        self._children = [Child(number) for number in range(1, processes + 1)]
        self._output = threading.Lock()
        self._signals = 0
        self._watcher = Watcher(settings, stuck_s, self._say)

    def run(self) -> int:
        """Supervise until a signal, or until every worker has left idle; returns the exit code.

        Raises:
            TrippedError: a worker ended `FAST_EXITS` times in a row right after its start.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._signalled)
        self._say("supervisor.started", pid=os.getpid(), processes=len(self._children))
        with self._watcher:
            try:
                while not self._signals and not all(child.retired for child in self._children):
                    self._step()
                    time.sleep(_POLL_S)
            finally:
                self._stop_all()
        self._say("supervisor.stopped", **self._counts())
        return ExitCode.DONE

    def _signalled(self, *_: object) -> None:
        self._signals += 1

    # -- one round ------------------------------------------------------------------------------------------------

    def _step(self) -> None:
        self._kill_stuck()
        for child in self._children:
            if child.process is not None and child.process.poll() is not None:
                self._ended(child)
            if child.process is None and not child.retired and time.monotonic() >= child.start_at:
                self._start(child)

    def _start(self, child: Child) -> None:
        child.tail.clear()
        child.killed_for = None
        child.started = time.monotonic()
        child.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "workers.leash", str(os.getpid()), *self._command],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in this terminal is for us; we pass it on as SIGTERM
        )
        assert child.process.stdout is not None
        child.pump = threading.Thread(
            target=self._pass_through, args=(child.process.stdout, child.tail), daemon=True
        )
        child.pump.start()
        self._publish()
        self._say("worker.spawned", pid=child.process.pid, place=child.number)

    def _kill_stuck(self) -> None:
        running = {
            c.process.pid: c for c in self._children if c.process is not None and c.process.poll() is None
        }
        while not self._watcher.verdicts.empty():
            pid, reason = self._watcher.verdicts.get()
            child = running.get(pid)
            if child is None or child.killed_for is not None or child.process is None:
                continue  # a verdict on one that has ended meanwhile
            child.killed_for = reason
            self._say("worker.stuck", level="error", pid=pid, place=child.number, reason=reason)
            child.process.kill()

    def _ended(self, child: Child) -> None:
        """Note why a child ended and when the next may start."""
        assert child.process is not None
        pid, code = child.process.pid, child.process.returncode
        lived_s = time.monotonic() - child.started
        # On a machine that has too much to do, loading torch alone can take longer than a fast exit may.
        at_its_start = lived_s < FAST_EXIT_S or not self._watcher.registered(pid)
        self._forget(child)
        if code == 0 and self._leaves_when_idle:
            child.retired = True
            self._say("worker.retired", pid=pid, place=child.number, duration_s=round(lived_s, 1))
            return
        child.restarts += 1
        child.gpu_errors += code == GPU_ERROR_CODE
        if child.killed_for is not None:
            delay_s = FIRST_DELAY_S  # it was busy, not failing: another may start at once
        else:
            child.fast_exits = child.fast_exits + 1 if at_its_start else 0
            child.short_lives = child.short_lives + 1 if lived_s < HEALTHY_S else 1
            delay_s = restart_delay_s(child.short_lives)
        self._say(
            "worker.ended", level="error", pid=pid, place=child.number, code=code, duration_s=round(lived_s, 1),
            reason=child.killed_for, restarts=child.restarts, gpu_errors=child.gpu_errors, restart_in_s=delay_s,
        )  # fmt: skip
        if child.fast_exits >= FAST_EXITS:
            raise TrippedError(
                f"worker {child.number} ended {FAST_EXITS} times in a row right after its start, last with "
                f"{_ending(code)}; it said: {_said(child.tail)}. Mend that, then start the supervisor again."
            )
        child.start_at = time.monotonic() + delay_s

    def _forget(self, child: Child) -> None:
        """Take leave of a process that has been reaped."""
        assert child.process is not None
        if child.pump is not None:
            child.pump.join(timeout=1)  # its last words; a grandchild may hold the pipe open
        self._watcher.died(
            child.process.pid, child.killed_for or f"ended with {_ending(child.process.returncode)}"
        )
        child.process = None
        self._publish()

    def _publish(self) -> None:
        self._watcher.children = {
            child.process.pid: child.started for child in self._children if child.process is not None
        }

    # -- the end --------------------------------------------------------------------------------------------------

    def _stop_all(self) -> None:
        """SIGTERM, wait, SIGKILL; leaves no child behind."""
        signals, deadline = self._signals, time.monotonic() + self._stop_s
        running = [child for child in self._children if child.process is not None]
        for child in running:
            assert child.process is not None
            child.process.terminate()
        while any(c.process is not None and c.process.poll() is None for c in running):
            if time.monotonic() > deadline or self._signals > signals:
                break
            time.sleep(_POLL_S)
        for child in running:
            assert child.process is not None
            if child.process.poll() is None:
                child.killed_for = f"did not stop within {self._stop_s:g} s"
                self._say("worker.killed", level="error", pid=child.process.pid, reason=child.killed_for)
                child.process.kill()
            child.process.wait()
            self._forget(child)

    # -- output ---------------------------------------------------------------------------------------------------

    def _pass_through(self, output: IO[bytes], tail: deque[str]) -> None:
        """A child's lines, whole, onto our stderr; read on also where nobody reads ours."""
        with output:
            while line := output.readline(_LONGEST_LINE):
                tail.append(line.decode(errors="replace").strip())
                whole = line if line.endswith(b"\n") else line + b"\n"
                with self._output:
                    try:
                        sys.stderr.buffer.write(whole)
                        sys.stderr.buffer.flush()
                    except (OSError, ValueError):
                        continue

    def _say(self, event: str, *, level: str = "info", **keywords: Any) -> None:
        with self._output:
            try:
                log(event, level=level, **keywords)
            except (OSError, ValueError):
                return  # nobody reads us: no reason to stop

    def _counts(self) -> dict[str, Any]:
        return {
            "restarts": sum(child.restarts for child in self._children),
            "gpu_errors": sum(child.gpu_errors for child in self._children),
        }


def _ending(code: int) -> str:
    """An exit status in words."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"


def _said(tail: deque[str]) -> str:
    return " | ".join([line for line in tail if line][-5:])[-1000:].rstrip(".") or "nothing"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="workers.supervisor")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--stuck-s", type=float, default=DEFAULT_STUCK_S)
    parser.add_argument("--exit-when-idle", type=float, default=None)
    return parser.parse_args()


def main() -> None:
    """`python -m workers.supervisor`: what the command becomes."""
    given = _arguments()
    try:
        supervisor = Supervisor(
            load_settings(), processes=given.processes, stuck_s=given.stuck_s, idle_s=given.exit_when_idle
        )
        sys.exit(supervisor.run())
    except HotrefreshError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
