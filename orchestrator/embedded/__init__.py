"""PostgreSQL and Valkey out of wheels: started when first needed, stopped when nobody needs them.

Every process that uses them holds a shared lock on `users.lock`. A keeper process owns the servers; when it can take
that lock exclusively nobody is left, and it stops them. Locks end with their process, however it ends (ADR 7).
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from orchestrator.errors import UnreachableError

ENDPOINTS, USERS_LOCK, KEEPER_LOCK, KEEPER_LOG = "endpoints.json", "users.lock", "keeper.lock", "keeper.log"
START_TIMEOUT_S = 60.0
_POLL_S = 0.01


@dataclass
class EmbeddedServers:
    """Servers that stay up as long as this is open (or its process lives)."""

    database_url: str
    broker_url: str
    _users: IO[bytes]

    def close(self) -> None:
        """Say that this process no longer needs them."""
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
    try:
        folder.mkdir(parents=True, exist_ok=True)
        users = (folder / USERS_LOCK).open("ab")
    except OSError as error:
        raise UnreachableError(
            f"cannot write in {folder}: {error.strerror}. Choose another folder with HOTREFRESH_DATA_DIR or --data-dir."
        ) from error
    fcntl.flock(users, fcntl.LOCK_SH)  # waits while a keeper that found nobody is stopping its servers
    try:
        endpoints = _running(folder) or _start(folder)
    except BaseException:
        users.close()
        raise
    return EmbeddedServers(endpoints["database_url"], endpoints["broker_url"], users)


def keeper_lives(folder: Path) -> bool:
    """Whether some process holds the keeper's lock."""
    with (folder / KEEPER_LOCK).open("ab") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _running(folder: Path) -> dict[str, str] | None:
    """The endpoints, if a living keeper has published them. What a dead one left behind does not count."""
    if not keeper_lives(folder):
        return None
    try:
        found: dict[str, str] = json.loads((folder / ENDPOINTS).read_text())
    except (OSError, ValueError):
        return None
    return found


def _start(folder: Path) -> dict[str, str]:
    """Start a keeper and wait for its endpoints. Of several started at once, all but one see the lock and leave."""
    deadline = time.monotonic() + START_TIMEOUT_S
    log = folder / KEEPER_LOG
    keeper: subprocess.Popen[bytes] | None = None
    begun_at = log.stat().st_size if log.exists() else 0
    while time.monotonic() < deadline:
        endpoints = _running(folder)
        if endpoints is not None:
            return endpoints
        if keeper is None or (keeper.poll() is not None and not keeper_lives(folder)):
            if keeper is not None and keeper.returncode not in (0, None):
                break
            keeper = _spawn_keeper(folder, log)
        time.sleep(_POLL_S)
    with log.open("rb") as file:
        file.seek(begun_at)
        tail = file.read().decode(errors="replace").strip().splitlines()[-8:]
    raise UnreachableError(
        "the embedded servers did not start: " + " | ".join(tail or ["no output"]) + f". Full log: {log}. "
        "Mend that, or use servers of your own with HOTREFRESH_DATABASE_URL and HOTREFRESH_BROKER_URL."
    )


def _spawn_keeper(folder: Path, log: Path) -> subprocess.Popen[bytes]:
    # Its own folder as current directory: a `models/` in ours would shadow the package of that name.
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "orchestrator.embedded.keeper", str(folder.parent)],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,  # Ctrl-C in a terminal is for the command, not for the servers of a worker
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
        )
