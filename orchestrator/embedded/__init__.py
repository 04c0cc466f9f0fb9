"""PostgreSQL and Valkey out of wheels: started when first needed, stopped when nobody needs them.

Every process that uses them holds a shared lock on `users.lock`. A keeper process owns the servers; when it can take
that lock exclusively nobody is left, and it stops them. Locks end with their process, however it ends (ADR 7).
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from orchestrator.embedded import files
from orchestrator.errors import UnreachableError

USERS_LOCK, START_LOCK, KEEPER_LOCK, KEEPER_LOG = "users.lock", "start.lock", "keeper.lock", "keeper.log"
LIVE_LOCK, ENDPOINTS, PREVIOUS = "live.lock", "endpoints.json", "endpoints.previous.json"
FAILURE = "failed: "
START_TIMEOUT_S = 150.0
_started: list[subprocess.Popen[bytes]] = []  # keepers of ours that we have not seen end


@dataclass
class EmbeddedServers:
    """Servers that stay up as long as this is open, or its process (or a fork of it) lives."""

    database_url: str
    broker_url: str
    _users: IO[bytes]

    def close(self) -> None:
        """Say that this process no longer needs them. A second time does nothing."""
        self._users.close()

    def __enter__(self) -> EmbeddedServers:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def use_embedded(data_dir: Path, *, postgres: bool = True, valkey: bool = True) -> EmbeddedServers:
    """Servers for this data folder: those that run, or new ones. Both are started whichever is asked for.

    Raises:
        UnreachableError: they cannot be started; the message holds the end of the log and what to do.
    """
    assert postgres or valkey, "nothing to start"
    folder = data_dir.absolute() / "embedded"
    users: IO[bytes] | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Waits while a keeper that found nobody is stopping its servers; from here on none will find nobody.
        users = files.take(folder / USERS_LOCK, shared=True, timeout_s=START_TIMEOUT_S)
        # One at a time looks for a keeper and starts one.
        with files.take(folder / START_LOCK, timeout_s=START_TIMEOUT_S):
            endpoints = _find_or_start(folder)
    except BaseException as error:
        if users is not None:
            users.close()
        if isinstance(error, TimeoutError):
            raise UnreachableError(
                f"the embedded servers are being started or stopped by a process that does not go on: {error}. "
                f"Find it (`fuser {folder}/*.lock`) and end it, then try again."
            ) from error
        if isinstance(error, OSError):
            raise UnreachableError(
                f"cannot write in {folder}: {error.strerror}. Choose another folder with HOTREFRESH_DATA_DIR or --data-dir."
            ) from error
        raise
    return EmbeddedServers(endpoints["database_url"], endpoints["broker_url"], users)


def keeper_lives(folder: Path) -> bool:
    """Whether a keeper runs on this folder (`<data_dir>/embedded`)."""
    return files.is_held(folder / KEEPER_LOCK)


def _find_or_start(folder: Path) -> dict[str, str]:
    """The endpoints of the living keeper, or of one started now. Nobody else does this at the same time."""
    _started[:] = [keeper for keeper in _started if keeper.poll() is None]
    log = folder / KEEPER_LOG
    log_begins = 0
    deadline = time.monotonic() + START_TIMEOUT_S
    keeper: subprocess.Popen[bytes] | None = None
    while time.monotonic() < deadline:
        # While ours runs we do not probe its lock: that could keep it from taking it.
        if (keeper is not None and keeper.poll() is None) or keeper_lives(folder):
            endpoints = _read_endpoints(folder)
            if endpoints is not None:
                return endpoints
        elif keeper is not None and keeper.returncode != 0:
            raise _failure(log, log_begins)
        else:
            with files.open_log(log) as output:
                log_begins = output.tell()
                keeper = _spawn_keeper(folder, output)
            _started.append(keeper)
        time.sleep(files.POLL_S)
    raise _failure(log, log_begins)


def _read_endpoints(folder: Path) -> dict[str, str] | None:
    """What the living keeper has published. What a dead one left behind does not count."""
    if not files.is_held(folder / LIVE_LOCK):
        return None
    try:
        found: dict[str, str] = json.loads((folder / ENDPOINTS).read_text())
    except FileNotFoundError:
        return None
    return found


def _failure(log: Path, log_begins: int) -> UnreachableError:
    """What the keeper said last, or the end of its log, and what to do."""
    lines: list[str] = []
    with contextlib.suppress(OSError), log.open("rb") as file:
        file.seek(log_begins)
        lines = file.read().decode(errors="replace").strip().splitlines()
    said = [line.removeprefix(FAILURE) for line in lines if line.startswith(FAILURE)]
    reason = said[-1] if said else " | ".join(lines[-8:]) or "no messages"
    stat = os.statvfs(log.parent)
    if "No space left" in reason or stat.f_bavail * stat.f_frsize < 64_000_000:
        advice = f"The disk of {log.parent} is full: free some space (100 MB will do), or set HOTREFRESH_DATA_DIR elsewhere."
    elif "HOTREFRESH_" in reason or "try again" in reason:
        advice = ""
    else:
        advice = (
            "Mend that, or use servers of your own with HOTREFRESH_DATABASE_URL and HOTREFRESH_BROKER_URL. "
            f"The full logs: {log.parent}/*.log"
        )
    return UnreachableError(f"the embedded servers did not start: {reason.rstrip('.')}. {advice}".rstrip())


def _spawn_keeper(folder: Path, output: IO[bytes]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        # Our own folder, and -P: a `models/` in the current directory would shadow the package of that name.
        [sys.executable, "-P", "-m", "orchestrator.embedded.keeper", str(folder.parent)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,  # Ctrl-C in a terminal is for the command, not for the servers of a worker
    )
