"""Where processes are born to be killed: a process that has everything imported and does nothing but fork.

It holds no connection and no second thread, so a child is a whole worker after a few milliseconds. The test speaks to
it by lines of JSON; `Nursery` is the test's side, `python -m tests.faults.nursery` the other.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

from orchestrator.settings import Settings
from tests.faults.volume import ROOT

WAIT_S = 60.0
Reply = dict[str, Any]


@dataclass(frozen=True)
class Ending:
    """How a wait for a child ended: exited, killed, stopped or hanging, and what it returned, if anything."""

    how: str
    result: Reply

    @property
    def killed(self) -> bool:
        return self.how == "killed"


class Child:
    """One forked process, seen from the test."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery = nursery
        self.pid = pid

    def wait(self, timeout_s: float = WAIT_S) -> Ending:
        """Wait until it exits, is killed, or stops itself."""
        reply = self._nursery.ask(do="wait", pid=self.pid, timeout_s=timeout_s)
        return Ending(reply["how"], reply["result"])

    def thaw(self) -> Ending:
        """Let a stopped child go on, and wait for its end."""
        os.kill(self.pid, signal.SIGCONT)
        return self.wait()

    def kill(self) -> Ending:
        """SIGKILL it."""
        os.kill(self.pid, signal.SIGKILL)
        return self.wait()


class Nursery:
    """The test's side. `run` forks a child that does one step of `tests.faults.steps`, and waits for it."""

    def __init__(self, settings: Settings, log: Path) -> None:
        self._settings = {k: v for k, v in settings.model_dump(mode="json").items() if v is not None}
        self._log: IO[bytes] = log.open("ab")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "tests.faults.nursery"],
            cwd=log.parent,
            env={
                **os.environ,
                "PYTHONPATH": _python_path(),
                "HOTREFRESH_TESTING": "1",
                "OMP_NUM_THREADS": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
        )
        assert self.ask(do="ready")["ready"]

    def ask(self, **request: Any) -> Reply:
        """One request, one reply."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, f"the nursery is gone; look at {self._log.name}"
        reply: Reply = json.loads(line)
        return reply

    def fork(self, step: str, *, arm: str = "", **arguments: Any) -> Child:
        """Fork a child that arms the fail points and does the step."""
        reply = self.ask(do="fork", settings=self._settings, step=step, arm=arm, arguments=arguments)
        return Child(self, reply["pid"])

    def run(self, step: str, *, arm: str = "", **arguments: Any) -> Ending:
        """Fork a child and wait for it; one that hangs is killed and fails the test."""
        child = self.fork(step, arm=arm, **arguments)
        ending = child.wait()
        if ending.how == "hanging":
            child.kill()
            raise AssertionError(f"step {step} with {arm or 'nothing armed'} and {arguments} hangs")
        return ending

    def close(self) -> None:
        """End it, and with it whatever is left of its children."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._log.close()


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))


# -- the other side ---------------------------------------------------------------------------------------------------


class _Server:
    def __init__(self, output: IO[bytes]) -> None:
        self._output = output
        self._pipes: dict[int, int] = {}  # child → where its result comes out
        self._replies: dict[str, Callable[..., Reply]] = {
            "ready": lambda: {
                "ready": threading.active_count() == 1 and len(os.listdir("/proc/self/task")) == 1
            },
            "fork": self.fork,
            "wait": self.wait,
        }

    def serve(self) -> None:
        """Answer until the test closes the pipe; then nothing that was born here stays."""
        while line := sys.stdin.buffer.readline():
            request = json.loads(line)
            reply = self._replies[request.pop("do")](**request)
            self._output.write(json.dumps(reply).encode() + b"\n")
            self._output.flush()
        for pid in list(self._pipes):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)

    def fork(self, **task: Any) -> Reply:
        """A child that does the task."""
        out, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            _live(into, **task)
        os.close(into)
        self._pipes[pid] = out
        return {"pid": pid}

    def wait(self, pid: int, timeout_s: float) -> Reply:
        """Wait for a child's next change."""
        deadline = time.monotonic() + timeout_s
        while True:
            found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
            if found:
                break
            if time.monotonic() > deadline:
                return {"how": "hanging", "result": {}}
            time.sleep(0.001)
        if os.WIFSTOPPED(status):
            return {"how": "stopped", "result": {}}
        with os.fdopen(self._pipes.pop(pid), "rb") as pipe:
            text = pipe.read()
        return {
            "how": "killed" if os.WIFSIGNALED(status) else "exited",
            "result": json.loads(text) if text else {},
        }


def _live(into: int, *, settings: Reply, step: str, arm: str, arguments: Reply) -> NoReturn:
    """The whole life of a child: connect, arm, do the step, say what came of it."""
    from orchestrator import failpoints
    from orchestrator.bootstrap import open_context
    from tests.faults import steps

    try:
        context = open_context(Settings(**settings), migrate=False)
        failpoints.arm(arm)
        result = steps.STEPS[step](context, **arguments)
    except BaseException as error:  # noqa: BLE001 — the test judges it
        result = {"error": type(error).__name__, "message": str(error)}
    result["fired"] = steps.fired()
    os.write(into, json.dumps(result).encode())
    os._exit(0)  # no clean-up: it would end what the parent shares


def main() -> None:
    """Import everything, then serve."""
    # The protocol's pipe is ours alone: whatever a child prints goes to the log.
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    from tests.faults import steps

    steps.preload()
    gc.collect()
    gc.freeze()
    _Server(output).serve()


if __name__ == "__main__":
    main()
