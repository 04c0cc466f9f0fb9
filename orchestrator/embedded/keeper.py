"""The keeper: owns the embedded servers of one data folder for as long as somebody uses them.

`python -m orchestrator.embedded.keeper DATA_DIR`, started by `use_embedded`, never by hand. Two processes: the keeper, and
its parent, which does nothing but start another keeper when one was killed while there are users.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

from orchestrator.embedded import (
    ENDPOINTS,
    FAILURE,
    KEEPER_LOCK,
    LIVE_LOCK,
    PREVIOUS,
    USERS_LOCK,
    files,
    postgres,
    valkey,
)
from orchestrator.embedded.account import choose_account
from orchestrator.embedded.server import Server
from orchestrator.errors import HotrefreshError

_LOOK_EVERY_S = 0.1
_PORT_PATIENCE_S = 5.0
_LIVES = 10


class StopRequested(Exception):  # noqa: N818 (a request, not an error)
    """Somebody asked the keeper to leave."""


def keep(folder: Path) -> int:
    """Run the servers until nobody holds the users' lock for a while; returns the exit code."""
    try:
        # A short wait: whoever asks whether a keeper lives takes this lock for a moment.
        keeper = files.take(folder / KEEPER_LOCK, timeout_s=1.0)
    except TimeoutError:
        return 0  # another keeper was first
    servers: list[Server] = []
    with keeper, (folder / USERS_LOCK).open("ab") as users:
        try:
            # What a killed keeper published is no longer true, but its ports are worth trying again.
            with contextlib.suppress(FileNotFoundError):
                (folder / ENDPOINTS).rename(folder / PREVIOUS)
            # From here on endpoints, if there are any, are ours. Held to the end of this process.
            live = files.take(folder / LIVE_LOCK, timeout_s=5.0)  # noqa: F841
            servers += _servers(folder)
            for server in servers:
                server.begin()
            for server in servers:
                server.wait_ready()
            _publish(folder, servers)
            _watch(folder, users, servers)
        except StopRequested:
            pass
        except (HotrefreshError, OSError) as error:
            _say(f"{FAILURE}{error}")
            return 1
        finally:
            with contextlib.suppress(OSError):
                (folder / ENDPOINTS).unlink(missing_ok=True)
            for server in servers:
                server.ask_to_stop()
            for server in servers:
                server.end()
    return 0


def _servers(folder: Path) -> list[Server]:
    """Both servers, on the ports that a killed keeper's had: its users still hold those URLs."""
    before: dict[str, int | None] = {}
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads((folder / PREVIOUS).read_text())
        before = {name: urlsplit(found[name]).port for name in ("database_url", "broker_url")}
    account = choose_account(folder, [postgres.programs(folder / "postgres") / "postgres", valkey.program()])
    return [
        valkey.Valkey(folder, account, before.get("broker_url")),
        postgres.Postgres(folder, account, before.get("database_url")),
    ]


def _watch(folder: Path, users: IO[bytes], servers: Sequence[Server]) -> None:
    """Restart a server that died; return, holding the users' lock, when nobody has used them for a while."""
    linger_s = float(os.environ.get("HOTREFRESH_EMBEDDED_LINGER_S", "2.0"))
    alone_since: float | None = None
    while True:
        time.sleep(_LOOK_EVERY_S)
        for server in servers:
            if not server.running():
                assert server.child is not None
                _say(f"{server.name} ended with {server.child.returncode}; starting it again")
                server.begin(patience_s=_PORT_PATIENCE_S)
                server.wait_ready()
                _publish(folder, servers)
        if not files.try_lock(users):
            alone_since = None
            continue
        alone_since = alone_since or time.monotonic()
        if time.monotonic() - alone_since >= linger_s:
            return  # with the lock held: who comes now waits until the servers are down
        files.release(users)


def _publish(folder: Path, servers: Sequence[Server]) -> None:
    """Say where the servers answer, in one step, readable by us alone."""
    urls = {"Postgres": "database_url", "Valkey": "broker_url"}
    partial = folder / f".{ENDPOINTS}.new"
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({urls[server.name]: server.url for server in servers} | {"pid": os.getpid()}, file)
    partial.rename(folder / ENDPOINTS)


def _say(message: str) -> None:
    """A line in the keeper's log, also when the disk is full."""
    with contextlib.suppress(OSError):
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


def _keep_in_child(folder: Path) -> int:
    """Run a keeper in a child; returns its exit code, below 0 when it was killed."""

    def stop(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough: the end shall not be interrupted
        raise StopRequested

    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, stop)
        sys.exit(keep(folder))
    signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    return code


def _in_use(folder: Path) -> bool:
    return files.is_held(folder / USERS_LOCK)


def main() -> None:
    """Entry point: the data folder is the only argument."""
    folder = Path(sys.argv[1]).absolute() / "embedded"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    code = 0
    for _ in range(_LIVES):
        code = _keep_in_child(folder)
        if code >= 0 or not _in_use(folder):
            break
        _say("the keeper was killed; here is another")
    sys.exit(max(code, 0))


if __name__ == "__main__":
    main()
