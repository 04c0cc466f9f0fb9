"""A worker in the background: what makes `gallery embed` and `rollout start` work without a second terminal."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from orchestrator.context import Context
from orchestrator.errors import UnreachableError
from orchestrator.ledger.database import transaction
from orchestrator.ledger.queries import workers as worker_queries
from orchestrator.settings import Settings

READY_TIMEOUT_S = 30.0


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
    """(id, host, pid) of the workers whose heartbeat is fresh."""
    with transaction(context.engine) as connection:
        return worker_queries.live_workers(connection)


def start_worker(context: Context) -> subprocess.Popen[bytes]:
    """Start a worker process of its own session and wait until it is registered."""
    data_dir = context.settings.data_dir.absolute()
    folder, log = data_dir / "run", data_dir / "logs" / "worker.log"
    folder.mkdir(parents=True, exist_ok=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    begun_at = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        worker = subprocess.Popen(
            [sys.executable, "-m", "workers.main", str(context.settings.worker_idle_s)],
            cwd=folder,  # a `models/` in the caller's folder would shadow the package of that name
            env=worker_environment(context.settings),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if any(pid == worker.pid for _, _, pid in live_workers(context)):
            return worker
        if worker.poll() is not None:
            break
        time.sleep(0.05)
    worker.kill()
    worker.wait()
    with log.open("rb") as file:
        file.seek(begun_at)
        tail = file.read().decode(errors="replace").strip().splitlines()[-5:]
    raise UnreachableError(f"the worker did not start: {' | '.join(tail) or 'no output'}. Full log: {log}.")


def worker_environment(settings: Settings) -> dict[str, str]:
    """The environment that gives another process these very settings, paths absolute, secrets not in arguments."""
    given = {
        f"HOTREFRESH_{name.upper()}": str(value)
        for name, value in settings.model_dump(mode="json").items()
        if value is not None
    }
    paths = {
        "HOTREFRESH_DATA_DIR": str(settings.data_dir.absolute()),
        "HOTREFRESH_STORE_DIR": str(settings.extents),
        "HOTREFRESH_MODEL_DIR": str(settings.artifacts),
    }
    inherited = {name: value for name, value in os.environ.items() if name != "HOTREFRESH_CONFIG"}
    return inherited | given | paths
