"""A worker in the background: what makes `gallery embed` and `rollout start` work without a second terminal."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil

from orchestrator.context import Context
from orchestrator.errors import UnreachableError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import workers as worker_queries
from orchestrator.settings import Settings

READY_TIMEOUT_S = 60.0
_POLL_S = 0.05


def ensure_worker(context: Context) -> subprocess.Popen[bytes] | None:
    """Start a worker where the servers are embedded and none is alive; it leaves by itself when idle.

    Returns the process, or None: one is alive, or the database is external and workers are somebody's to run.

    Raises:
        UnreachableError: the worker ended at once; the message holds the end of its log.
    """
    if not context.embedded or live_workers(context):
        return None
    return start_worker(context)


def live_workers(context: Context) -> list[tuple[str, str, int]]:
    """(id, host, pid) of the workers whose heartbeat is fresh; those of this machine must also have a process."""
    with transaction(context.engine) as connection:
        rows = worker_queries.live_workers(connection)
    here = socket.gethostname()
    # Beside embedded servers every worker is on this machine: a killed one is known at once, not three beats later.
    return [row for row in rows if not context.embedded or row[1] != here or _runs(row[2])]


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def start_worker(context: Context) -> subprocess.Popen[bytes]:
    """Start a worker process of its own session and wait until it is registered.

    Raises:
        UnreachableError: it ended, or did not register in time; the message holds the end of its log.
    """
    log = worker_log(context.settings)
    begun_at = log.stat().st_size if log.exists() else 0
    worker = _spawn(context.settings, log)
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if any(pid == worker.pid for _, _, pid in live_workers(context)):
            return worker
        if worker.poll() is not None:
            break
        time.sleep(_POLL_S)
    worker.kill()
    worker.wait()
    raise UnreachableError(
        f"the worker did not start: {log_tail(log, begun_at)}. Full log: {log}. "
        "Mend that; `hotrefresh worker` runs one in front of you."
    )


def _spawn(settings: Settings, log: Path) -> subprocess.Popen[bytes]:
    run = settings.data_dir.absolute() / "run"
    try:
        run.mkdir(parents=True, exist_ok=True)
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    except OSError as error:
        raise UnreachableError(
            f"cannot write in {settings.data_dir.absolute()}: {error.strerror}. Choose another folder with --data-dir."
        ) from error
    with output:
        return subprocess.Popen(
            worker_command(settings.worker_idle_s),
            cwd=run,
            env=worker_environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in this terminal is for the command, not for the worker
        )


def worker_command(idle_s: float | None) -> list[str]:
    """What runs a worker. `-P`: a `models/` in the current folder would shadow the package of that name."""
    command = [sys.executable, "-P", "-m", "workers.main"]
    return command if idle_s is None else [*command, str(idle_s)]


def worker_log(settings: Settings) -> Path:
    """Where background workers write."""
    return settings.data_dir.absolute() / "logs" / "worker.log"


def log_tail(log: Path, begun_at: int = 0, lines: int = 5) -> str:
    """The last lines written since `begun_at` bytes, in one line."""
    try:
        with log.open("rb") as file:
            file.seek(begun_at)
            text = file.read().decode(errors="replace")
    except OSError:
        return "there is no log"
    return " | ".join(text.strip().splitlines()[-lines:]) or "no output"


def worker_environment(settings: Settings) -> dict[str, str]:
    """The environment that gives another process these very settings, paths absolute, secrets not in arguments."""
    given = {
        f"HOTREFRESH_{name.upper()}": value if isinstance(value, str) else json.dumps(value)
        for name, value in settings.model_dump(mode="json").items()
        if value is not None
    }
    paths = {
        "HOTREFRESH_DATA_DIR": str(settings.data_dir.absolute()),
        "HOTREFRESH_STORE_DIR": settings.extents,
        "HOTREFRESH_MODEL_DIR": str(settings.artifacts),
    }
    inherited = {name: value for name, value in os.environ.items() if name != "HOTREFRESH_CONFIG"}
    if "PYTHONPATH" in inherited:  # the way to an encoder of the user's own; it works in another folder
        entries = [entry for entry in inherited["PYTHONPATH"].split(os.pathsep) if entry]
        inherited["PYTHONPATH"] = os.pathsep.join(str(Path(entry).absolute()) for entry in entries)
    return inherited | given | paths
