"""The keeper: owns the embedded servers of one data folder for as long as somebody uses them.

`python -m orchestrator.embedded.keeper DATA_DIR`, started by `use_embedded`, never by hand.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import IO

from orchestrator.embedded import ENDPOINTS, KEEPER_LOCK, KEEPER_LOG, USERS_LOCK
from orchestrator.embedded.postgres import Postgres
from orchestrator.embedded.valkey import Valkey

LINGER_S = float(os.environ.get("HOTREFRESH_EMBEDDED_LINGER_S", "2.0"))
_LOOK_EVERY_S = 0.2


class Stop(Exception):
    """Somebody asked the keeper to leave."""


def keep(folder: Path) -> int:
    """Run the servers until nobody holds the users' lock for a while; returns the exit code."""
    lock = (folder / KEEPER_LOCK).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # another keeper was first
    # Held to the end of the process; the descriptor is not inherited, so no server can keep the lock alive.
    (folder / ENDPOINTS).unlink(missing_ok=True)
    with (folder / KEEPER_LOG).open("ab") as log, (folder / USERS_LOCK).open("ab") as users:
        postgres, valkey = Postgres(folder, log), Valkey(folder, log)
        try:
            postgres.start()
            valkey.start()
            _publish(folder, postgres, valkey)
            _watch(folder, users, postgres, valkey)
        except Stop:
            pass
        except (RuntimeError, OSError) as error:
            sys.stderr.write(f"{error}\n")
            return 1
        finally:
            (folder / ENDPOINTS).unlink(missing_ok=True)
            valkey.stop()
            postgres.stop()
    return 0


def _watch(folder: Path, users: IO[bytes], postgres: Postgres, valkey: Valkey) -> None:
    """Restart a server that died; return, holding the users' lock, when nobody has used them for LINGER_S."""
    alone_since: float | None = None
    while True:
        time.sleep(_LOOK_EVERY_S)
        for server in (postgres, valkey):
            if server.child is not None and server.child.poll() is not None:
                sys.stderr.write(f"{type(server).__name__} ended with {server.child.returncode}; starting it again\n")
                server.start()
                _publish(folder, postgres, valkey)
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone_since = alone_since or time.monotonic()
            if time.monotonic() - alone_since >= LINGER_S:
                return  # with the lock held: who comes now waits until the servers are down
            fcntl.flock(users, fcntl.LOCK_UN)
            continue
        alone_since = None


def _publish(folder: Path, postgres: Postgres, valkey: Valkey) -> None:
    """Say where the servers answer, in one step, readable by us alone."""
    partial = folder / f".{ENDPOINTS}.{os.getpid()}"
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump({"database_url": postgres.url, "broker_url": valkey.url, "pid": os.getpid()}, file)
    partial.rename(folder / ENDPOINTS)


def main() -> None:
    """Entry point: the data folder is the only argument."""

    def stop(*_: object) -> None:
        raise Stop

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(keep(Path(sys.argv[1]).absolute() / "embedded"))


if __name__ == "__main__":
    main()
